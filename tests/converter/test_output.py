"""The output directory appears whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converter.errors import DestinationError
from converter.output import MANIFEST, check_destination, check_space, publish, scratch_directory


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def manifest(*paths: str) -> str:
    return json.dumps({"artifacts": [{"path": path} for path in paths]})


def test_an_absent_or_empty_destination_is_accepted(tmp_path):
    check_destination(tmp_path / "new" / "deep", force=False)
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty", force=False)
    assert list((tmp_path / "empty").iterdir()) == []


def test_existing_output_is_refused_without_force(tmp_path):
    write(tmp_path / "out", {"a": "x"})
    with pytest.raises(DestinationError, match=r"not empty.*--force"):
        check_destination(tmp_path / "out", force=False)
    check_destination(tmp_path / "out", force=True)


def test_a_file_in_the_way_is_refused_even_with_force(tmp_path):
    write(tmp_path, {"out": "x"})
    with pytest.raises(DestinationError, match="is a file"):
        check_destination(tmp_path / "out", force=True)


def test_too_little_room_is_refused_with_both_figures(tmp_path):
    with pytest.raises(DestinationError, match=r"1000000000\.00 GB needed, .* GB free"):
        check_space(tmp_path / "out", 10**18)


def test_the_scratch_directory_goes_when_the_run_fails(tmp_path):
    def fail() -> None:
        with scratch_directory(tmp_path / "out") as scratch:
            write(scratch, {"gguf/half": "x"})
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(DestinationError, match="/dev/full: No space left"),
        scratch_directory(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device", "/dev/full")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared_by_the_next(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from converter.output import scratch_directory\n"
        "with scratch_directory(Path(sys.argv[1])) as scratch:\n"
        "    (scratch / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with pytest.raises(DestinationError, match="another run is writing"):
        scratch_directory(out).__enter__()
    child.kill()
    child.wait(10)
    assert not out.exists()
    assert (tmp_path / ".out.partial" / "half").exists()
    with scratch_directory(out) as scratch:
        assert list(scratch.iterdir()) == []
        write(scratch, {MANIFEST: manifest(), "whole": "y"})
        publish(scratch, out)
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, "whole"]
    assert not (tmp_path / ".out.partial").exists()


def test_a_symbolic_link_in_place_of_the_scratch_directory_is_not_followed(tmp_path):
    write(tmp_path / "elsewhere", {"precious": "x"})
    (tmp_path / ".out.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DestinationError, match="Not a directory"):
        scratch_directory(tmp_path / "out").__enter__()
    assert (tmp_path / "elsewhere" / "precious").read_text() == "x"


def test_replacing_removes_only_what_the_earlier_manifest_lists(tmp_path):
    out = tmp_path / "out"
    write(out, {MANIFEST: manifest("gguf/old.gguf", "../precious"), "gguf/old.gguf": "o", "notes.txt": "n"})
    write(tmp_path, {"precious": "p"})
    with scratch_directory(out) as scratch:
        write(scratch, {MANIFEST: manifest("gguf/new.gguf"), "gguf/new.gguf": "w"})
        publish(scratch, out)
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert left == ["gguf/new.gguf", MANIFEST, "notes.txt"]
    assert (tmp_path / "precious").read_text() == "p"


def test_the_manifest_arrives_last(tmp_path):
    out, before = tmp_path / "out", time.time_ns()
    with scratch_directory(out) as scratch:
        write(scratch, {MANIFEST: manifest("z"), "z": "w"})
        publish(scratch, out)
    assert (out / MANIFEST).stat().st_ctime_ns >= (out / "z").stat().st_ctime_ns > before - 10**9
