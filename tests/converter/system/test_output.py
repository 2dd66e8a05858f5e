"""The output directory appears whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converter.errors import DestinationError
from converter.filenames import MANIFEST
from converter.system.output import (
    check_destination,
    check_places,
    check_source,
    check_space,
    earlier_manifest,
    publish,
    scratch_directory,
    write_file,
)
from support.directories import write_files


def manifest(*paths: str) -> str:
    return json.dumps({"artifacts": [{"path": path} for path in paths]})


def test_an_absent_or_empty_destination_is_accepted(tmp_path):
    check_destination(tmp_path / "new" / "deep", force=False)
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty", force=False)
    assert list((tmp_path / "empty").iterdir()) == []


def test_existing_output_is_refused_without_force(tmp_path):
    write_files(tmp_path / "out", {"a": "x"})
    with pytest.raises(DestinationError, match=r"not empty.*--force"):
        check_destination(tmp_path / "out", force=False)
    check_destination(tmp_path / "out", force=True)


def test_a_file_in_the_way_is_refused_even_with_force(tmp_path):
    write_files(tmp_path, {"out": "x"})
    with pytest.raises(DestinationError, match="is a file"):
        check_destination(tmp_path / "out", force=True)


def test_too_little_room_is_refused_with_both_figures(tmp_path):
    with pytest.raises(DestinationError, match=r"1000 PB needed, .* [kMGT]B free"):
        check_space(tmp_path / "out", 10**18)


def test_the_scratch_directory_goes_when_the_run_fails(tmp_path):
    def fail() -> None:
        with scratch_directory(tmp_path / "out") as scratch:
            write_files(scratch, {"gguf/half": "x"})
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
        "import sys, time; from pathlib import Path; from converter.system.output import scratch_directory\n"
        "with scratch_directory(Path(sys.argv[1])) as scratch:\n"
        "    (scratch / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
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
        write_files(scratch, {MANIFEST: manifest(), "whole": "y"})
        publish(scratch, out)
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, "whole"]
    assert not (tmp_path / ".out.partial").exists()


def test_a_symbolic_link_in_place_of_the_scratch_directory_is_not_followed(tmp_path):
    write_files(tmp_path / "elsewhere", {"precious": "x"})
    (tmp_path / ".out.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DestinationError, match="Not a directory"):
        scratch_directory(tmp_path / "out").__enter__()
    assert (tmp_path / "elsewhere" / "precious").read_text() == "x"


def test_replacing_removes_only_what_the_earlier_manifest_lists(tmp_path):
    out = tmp_path / "out"
    listed = manifest("gguf/old.gguf", "../precious")
    write_files(out, {MANIFEST: listed, "gguf/old.gguf": "o", "notes.txt": "n"})
    write_files(tmp_path, {"precious": "p"})
    with scratch_directory(out) as scratch:
        write_files(scratch, {MANIFEST: manifest("gguf/new.gguf"), "gguf/new.gguf": "w"})
        publish(scratch, out)
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert left == ["gguf/new.gguf", MANIFEST, "notes.txt"]
    assert (tmp_path / "precious").read_text() == "p"


def test_a_new_output_appears_in_one_step(tmp_path):
    with scratch_directory(tmp_path / "out") as scratch:
        write_files(scratch, {MANIFEST: manifest("gguf/z"), "gguf/z": "w"})
        whole = scratch.stat().st_ino
        publish(scratch, tmp_path / "out")
        assert not scratch.exists()
    assert (tmp_path / "out").stat().st_ino == whole
    assert os.listdir(tmp_path) == ["out"]


def test_the_manifest_arrives_last_in_an_earlier_output(tmp_path):
    out, before = tmp_path / "out", time.time_ns()
    out.mkdir()
    with scratch_directory(out) as scratch:
        write_files(scratch, {MANIFEST: manifest("z"), "z": "w"})
        publish(scratch, out)
    assert (out / MANIFEST).stat().st_ctime_ns >= (out / "z").stat().st_ctime_ns > before - 10**9


def published(scratch_files: dict[str, str], out: Path, keep: bool = False) -> list[str]:
    """Publish some files to ``out`` and return what is there then."""
    with scratch_directory(out) as scratch:
        write_files(scratch, scratch_files)
        publish(scratch, out, keep=keep)
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_a_link_to_nowhere_is_refused_before_any_work(tmp_path):
    (tmp_path / "out").symlink_to("absent")
    with pytest.raises(DestinationError, match="out is a link to nowhere"):
        check_destination(tmp_path / "out", force=True)


def test_a_way_through_an_absent_directory_is_refused(tmp_path):
    with pytest.raises(DestinationError, match="absent does not exist"):
        check_destination(tmp_path / "absent" / "..", force=True)


def test_a_file_among_the_parents_is_named(tmp_path):
    write_files(tmp_path, {"file": ""})
    with pytest.raises(DestinationError, match="file is a file"):
        check_destination(tmp_path / "file" / "out", force=False)


@pytest.mark.parametrize("output", [".", "model", "model/../model", "link", "to-parent"])
def test_a_directory_that_holds_the_source_is_refused(tmp_path, output):
    write_files(tmp_path, {"model/config.json": "{}"})
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "to-parent").symlink_to(".")
    with pytest.raises(DestinationError, match="holds the checkpoint itself"):
        check_source(tmp_path / output, [tmp_path / "model" / "config.json"])


def test_the_blob_behind_a_link_is_part_of_the_source(tmp_path):
    write_files(tmp_path, {"blobs/5ee7": "x"})
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/5ee7")
    with pytest.raises(DestinationError, match="holds the checkpoint itself"):
        check_source(tmp_path / "blobs", [tmp_path / "snapshot" / "model.safetensors"])


def test_a_directory_beside_or_below_the_source_is_accepted(tmp_path):
    write_files(tmp_path, {"model/config.json": "{}"})
    for output in ("out", "model/out", "model-2"):
        check_source(tmp_path / output, [tmp_path / "model" / "config.json"])


def test_what_is_in_the_way_is_named_and_nothing_is_removed(tmp_path):
    out = tmp_path / "out"
    write_files(out, {MANIFEST: manifest("old"), "old": "o", "gguf": "mine", "report.md/mine": "m"})
    with pytest.raises(DestinationError, match="gguf is a file in the way"):
        check_places(out, [Path("gguf/new.gguf")])
    with pytest.raises(DestinationError, match=r"report\.md is a directory in the way"):
        published({"report.md": "r"}, out)
    with pytest.raises(DestinationError, match="gguf is a file in the way"):
        published({"gguf/new.gguf": "n"}, out)
    assert sorted(os.listdir(out)) == ["gguf", MANIFEST, "old", "report.md"]


def test_nothing_is_removed_through_a_link(tmp_path):
    out = tmp_path / "out"
    write_files(tmp_path, {"elsewhere/precious": "p"})
    write_files(out, {MANIFEST: manifest("link/precious", str(tmp_path / "elsewhere" / "precious"))})
    (out / "link").symlink_to("../elsewhere")
    published({"new": "n"}, out)
    assert (tmp_path / "elsewhere" / "precious").read_text() == "p"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        '{"artifacts": 3}',
        '{"artifacts": ["old", null, {}, {"path": 3}, {"path": ""}, {"path": "."}]}',
        '{"artifacts": [{"path": "a\\u0000b"}, {"path": "\\ud800"}, {"path": "' + "x" * 300 + '"}]}',
    ],
)
def test_a_manifest_of_another_kind_removes_nothing(tmp_path, text):
    write_files(tmp_path / "out", {MANIFEST: text, "old": "o"})
    assert {"new", "old"} <= set(published({"new": "n"}, tmp_path / "out"))


def test_a_pipe_for_a_manifest_is_not_waited_for(tmp_path):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / MANIFEST)
    assert earlier_manifest(tmp_path / "out") == {}


def test_files_can_be_added_to_an_earlier_conversion(tmp_path):
    write_files(tmp_path / "out", {MANIFEST: manifest("gguf/a.gguf"), "gguf/a.gguf": "a"})
    assert published({"report.md": "r"}, tmp_path / "out", keep=True) == [
        "gguf/a.gguf",
        MANIFEST,
        "report.md",
    ]


def test_a_single_file_replaces_no_device_and_follows_no_link(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DestinationError, match="pipe is no regular file"):
        write_file(tmp_path / "pipe", "x")
    write_files(tmp_path, {"precious": "p"})
    (tmp_path / ".Modelfile.partial").symlink_to("precious")
    write_file(tmp_path / "Modelfile", "x")
    assert sorted(os.listdir(tmp_path)) == [".Modelfile.partial", "Modelfile", "pipe", "precious"]
    assert (tmp_path / "precious").read_text() == "p"
    assert (tmp_path / "Modelfile").read_text() == "x"
