"""A file beside its destination takes its place when it is whole, and nobody else makes such files."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from converter.system.replacing import UNFINISHED, replacing, write_whole

ROOT = Path(__file__).parents[3]
#: Who may rename: the writer of one file, and what moves things that are whole already.
RENAMING = {
    "converter/system/replacing.py",
    "converter/system/publication.py",  # an output as a whole, by its journal
    "converter/hub/cache.py",  # a download that goes on where it stopped has a name of its own
    "converter/pipeline/proving.py",  # from one scratch directory to another
    "targets/litert/devices/npu.py",  # from a scratch directory that the next run finds and clears
}
_WRITER = """
import sys, time
from pathlib import Path
from converter.system import interruption
from converter.system.replacing import replacing

interruption.install()
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert list(tmp_path.glob(UNFINISHED)) == [temporary]
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["model.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "model.json"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.json"]


def test_a_file_that_was_never_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "model.json"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_old_file_and_nothing_else(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "model.json"
    path.write_text("old")
    command = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # a shell has what it runs in the background ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        assert len(list(tmp_path.glob(UNFINISHED))) == 1
        writer.send_signal(number)
        assert writer.wait(20) != 0
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("p")
    (tmp_path / "link").symlink_to("precious")
    write_whole(tmp_path / "link", "x")
    assert (tmp_path / "precious").read_text() == "p"
    assert not (tmp_path / "link").is_symlink()


def test_text_is_written_as_utf_8_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "text", "\u2581\r\n")
    write_whole(tmp_path / "new" / "bytes", b"\r\n")
    assert (tmp_path / "new" / "text").read_bytes() == b"\xe2\x96\x81\r\n"
    assert (tmp_path / "new" / "bytes").read_bytes() == b"\r\n"


def test_a_durable_file_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def replaced(source: Path, place: Path) -> None:
        done.append("replace")
        replace(source, place)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_whole(tmp_path / "model.json", "x", durable=True)
    assert [name.split(".")[1] if name.startswith(".") else name for name in done] == [
        "model",
        "replace",
        tmp_path.name,
    ]
    done.clear()
    write_whole(tmp_path / "model.json", "x")
    assert done == ["replace"]


def renames(source: str) -> bool:
    """Whether a module renames files, or makes the names of temporary ones itself."""
    used = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    named = {"os.replace", "tempfile.mkstemp", "tempfile.NamedTemporaryFile"}
    return bool(used & named) or any(name.endswith(".rename") for name in used)


def test_no_other_module_renames_or_names_temporary_files() -> None:
    modules = [
        path for package in ("converter", "targets", "validation") for path in ROOT.glob(f"{package}/**/*.py")
    ]
    assert {str(path.relative_to(ROOT)) for path in modules if renames(path.read_text("utf-8"))} == RENAMING


def test_a_module_that_renames_would_be_found() -> None:
    assert renames("import os\nos.replace('a', 'b')")
    assert renames("from pathlib import Path\nPath('a').rename('b')")
    assert renames("import tempfile\ndef f(): return tempfile.mkstemp()")
    assert not renames("import os, tempfile\nos.unlink('a')\ntempfile.TemporaryDirectory()")
