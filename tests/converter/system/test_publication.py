"""How a finished output gets to its place, and what is left when that is killed at any step."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.errors import DestinationError
from converter.filenames import MANIFEST
from converter.system.output import check_places, publish, scratch_directory, settle
from support.directories import write_files

#: An earlier conversion with a file that stays, some that are replaced, one that goes, and the user's own.
EARLIER = {
    MANIFEST: json.dumps(
        {"artifacts": [{"path": name} for name in ("gguf/a", "onnx/b", "old/c", "report.md")]}
    ),
    "gguf/a": "a",
    "onnx/b": "b",
    "old/c": "c",
    "report.md": "r",
    "notes.txt": "n",
}
NEW = {
    MANIFEST: json.dumps(
        {"artifacts": [{"path": name} for name in ("gguf/a", "onnx/b", "new/d", "report.md")]}
    ),
    "onnx/b": "B",
    "new/d": "D",
    "report.md": "R",
}
AFTER = {**{name: text for name, text in EARLIER.items() if name != "old/c"}, **NEW}


def content(directory: Path) -> dict[str, str]:
    """Every file of a directory; what belongs to no conversion apart."""
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file() and not path.relative_to(directory).parts[0].startswith(".qatconvert")
    }


def publish_and_be_killed(output: Path, step: int) -> bool:
    """Publish ``NEW`` in a process of its own that kills itself before a step (0: never); whether it came to
    that step."""
    child = os.fork()
    if child == 0:
        try:
            publish_counted(output, step)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def publish_counted(output: Path, last: int) -> None:
    """Publish ``NEW``; what changes the disk counts as a step."""
    steps = 0

    def counted(step: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal steps
            steps += 1
            if steps == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **options)

        return call

    with scratch_directory(output) as scratch:
        write_files(scratch, NEW)
        for name in ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        publish(scratch, output)


def test_what_the_new_manifest_lists_stays_and_what_it_does_not_list_goes(tmp_path):
    write_files(tmp_path / "out", EARLIER)
    with scratch_directory(tmp_path / "out") as scratch:
        write_files(scratch, NEW)
        publish(scratch, tmp_path / "out")
    assert content(tmp_path / "out") == AFTER
    assert not any(path.name.startswith(".") for path in (tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_earlier_conversion_or_the_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the machine goes on: only time is saved
    seen, killed, step = set(), True, 0
    while killed:
        step += 1
        out = tmp_path / str(step)
        write_files(out, EARLIER)
        killed = publish_and_be_killed(out, step)
        manifest = out / MANIFEST
        if manifest.exists() and manifest.read_text() == NEW[MANIFEST]:  # it looks finished, and so it is
            assert content(out) == AFTER
        settle(out, "test")
        assert content(out) in (EARLIER, AFTER)
        seen.add(content(out) == AFTER)
        assert not publish_and_be_killed(out, 0)  # the same once more
        assert content(out) == AFTER
        assert not any(path.name.startswith(".") for path in out.iterdir())
    assert seen == {True, False}
    assert step > 30


def test_an_error_in_the_middle_brings_the_earlier_conversion_back(tmp_path, monkeypatch):
    out, replace = tmp_path / "out", os.replace
    write_files(out, EARLIER)

    def fail(source, place):
        if Path(place) == out / "report.md" and Path(source).parent.name == ".qatconvert.partial":
            raise OSError(28, "No space left on device", str(place))
        replace(source, place)

    with scratch_directory(out) as scratch:
        write_files(scratch, NEW)
        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(DestinationError, match=r"report\.md: No space left on device"):
            publish(scratch, out)
    assert content(out) == EARLIER


def test_a_signal_while_files_are_replaced_waits_until_they_are(tmp_path, monkeypatch):
    from converter.system import interruption

    out, replace = tmp_path / "out", os.replace
    write_files(out, EARLIER)
    before = {number: signal.getsignal(number) for number in interruption.STATUSES}
    interruption.install()
    try:
        with scratch_directory(out) as scratch:
            write_files(scratch, NEW)

            def interrupt(source, place):
                os.kill(os.getpid(), signal.SIGTERM)
                replace(source, place)

            monkeypatch.setattr(os, "replace", interrupt)
            with pytest.raises(interruption.Interrupted) as caught:
                publish(scratch, out)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert caught.value.status == 143
    assert content(out) == AFTER


@pytest.mark.parametrize("folder", ["gguf", "new"])
def test_nothing_is_written_through_a_link(tmp_path, folder):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    write_files(out, {MANIFEST: EARLIER[MANIFEST], "notes.txt": "n"})
    elsewhere.mkdir()
    (out / folder).symlink_to(elsewhere)
    with pytest.raises(DestinationError, match=f"{folder} is a link in the way"):
        check_places(out, [Path(folder, "file")])
    with scratch_directory(out) as scratch:
        write_files(scratch, {f"{folder}/file": "x", MANIFEST: NEW[MANIFEST]})
        with pytest.raises(DestinationError, match=f"{folder} is a link in the way"):
            publish(scratch, out)
    assert list(elsewhere.iterdir()) == []
    assert (out / MANIFEST).read_text() == EARLIER[MANIFEST]


def test_without_force_a_file_of_the_users_is_never_replaced(tmp_path):
    out = tmp_path / "out"
    write_files(out, {**EARLIER, "new/d": "mine"})
    with scratch_directory(out) as scratch:
        write_files(scratch, NEW)
        with pytest.raises(DestinationError, match="new/d is in the way and no conversion wrote it"):
            publish(scratch, out, force=False)
    assert content(out) == {**EARLIER, "new/d": "mine"}


def test_files_are_on_the_disk_before_the_rename_that_shows_them(tmp_path, monkeypatch):
    order: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "rename", lambda *paths: (order.append("rename"), rename(*paths)))
    with scratch_directory(tmp_path / "out") as scratch:
        write_files(scratch, {MANIFEST: "{}", "gguf/z": "w"})
        publish(scratch, tmp_path / "out")
    at = order.index("rename")
    partial = str(tmp_path / ".out.partial")
    assert {partial, f"{partial}/gguf", f"{partial}/gguf/z", f"{partial}/{MANIFEST}"} == set(order[:at])
    assert order.index(f"{partial}/gguf/z") < order.index(f"{partial}/gguf") < order.index(partial)
    assert order[at + 1 :] == [str(tmp_path)]


@pytest.mark.parametrize("kind", ["file", "directory", "link", "another user's"])
def test_what_is_not_ours_under_the_name_of_a_replacement_is_refused(tmp_path, kind):
    out = tmp_path / "out"
    write_files(out, EARLIER)
    aside = out / ".qatconvert.earlier"
    if kind == "file":
        aside.write_text("mine")
    elif kind == "directory":
        write_files(aside, {"mine": "m"})
    elif kind == "link":
        aside.symlink_to(tmp_path)
    else:
        aside.mkdir()
        if os.geteuid() != 0:
            pytest.skip("only root can give a directory to another user")
        os.chown(aside, 12345, 12345)
    with pytest.raises(DestinationError, match=r"\.qatconvert\.earlier was not made by qatconvert"):
        settle(out, "test")
    assert os.path.lexists(aside)


def test_a_hostile_journal_removes_nothing_outside(tmp_path):
    out = tmp_path / "out"
    write_files(out, EARLIER)
    write_files(tmp_path, {"precious": "p", "elsewhere/x": "x"})
    (out / "link").symlink_to("../elsewhere")
    names = [
        "../precious",
        str(tmp_path / "precious"),
        "link/x",
        7,
        None,
        "a\u0000b",
        "absent/../../precious",
    ]
    write_files(out / ".qatconvert.earlier", {"arriving.json": json.dumps({"new": names})})
    settle(out, "test")
    assert (tmp_path / "precious").read_text() == "p"
    assert (tmp_path / "elsewhere" / "x").read_text() == "x"
    assert content(out).keys() >= EARLIER.keys()
