"""Every file of an output is as its manifest says, and nothing else is there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from converter.errors import CheckpointError
from converter.pipeline.validation import validate
from converter.pipeline.verification import read_verdicts, verify
from support.altered_output import edit_manifest, list_again

GGUF = "gguf/gemma4-demo-q4_0.gguf"
MODELFILE = "ollama/Modelfile"


@pytest.fixture
def output(demo_output, tmp_path) -> Path:
    """A copy that the test may change."""
    return shutil.copytree(demo_output, tmp_path / "out")


def problems(output: Path) -> dict[str, str]:
    return {finding.path: finding.problem for finding in verify(output).findings}


def test_what_a_conversion_leaves_is_as_its_manifest_says(demo_output):
    from importlib.metadata import version

    found = verify(demo_output)
    files = [path for path in demo_output.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert found.exit_status == 0
    assert found.findings == []
    assert found.regular == {path.relative_to(demo_output).as_posix() for path in files}
    assert found.bytes == sum(path.stat().st_size for path in files)
    assert found.manifest.tool == version("qatconvert")
    assert found.manifest.origin.path == "gemma4-demo"


def test_reports_that_a_validation_adds_are_listed(output):
    """In place of those of the conversion, and in a directory that holds no manifest for the rest."""
    settings = {"positions": 16, "same_weights": False}
    validate(output / GGUF, "gemma4-demo", output_directory=output, force=True, settings=settings)
    assert problems(output) == {}
    assert verify(output).verdicts["gguf"] != "not validated"


@pytest.mark.parametrize("name", [GGUF, MODELFILE, "report.json", "report.md", "report.html"])
def test_a_changed_byte_of_any_file_is_a_difference(output, name):
    data = bytearray((output / name).read_bytes())
    data[len(data) // 3] ^= 1
    (output / name).write_bytes(data)
    assert list(problems(output)) == [name]
    assert "has SHA-256 " in problems(output)[name]


def test_another_size_is_told_without_reading(output):
    size = (output / GGUF).stat().st_size
    os.truncate(output / GGUF, size - 1)
    seen: list[int] = []
    found = verify(output, lambda stage, done, total: seen.append(total))
    assert [finding.problem for finding in found.findings] == [
        f"has {size - 1} bytes, the manifest says {size}"
    ]
    assert max(seen) < size


def test_a_missing_file_is_a_difference(output):
    (output / MODELFILE).unlink()
    assert problems(output) == {MODELFILE: "is missing"}


@pytest.mark.parametrize("name", ["mine", ".hidden", "gguf/mine", "gguf/.a/.b/c", "manifest.json.bak"])
def test_an_unlisted_file_at_any_depth_is_a_difference(output, name):
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_text("x")
    assert problems(output) == {name: "is a file that the manifest does not list"}


def test_an_empty_directory_is_a_difference(output):
    (output / "onnx").mkdir()
    assert problems(output) == {"onnx": "is an empty directory that the manifest does not list"}


def test_a_link_or_a_pipe_is_a_difference_and_is_not_followed(output, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("x")
    (output / "link").symlink_to(tmp_path / "outside")
    (output / "gguf" / "loop").symlink_to("..")
    os.mkfifo(output / "pipe")
    assert problems(output) == {
        "link": "is a link that the manifest does not list",
        "gguf/loop": "is a link that the manifest does not list",
        "pipe": "is no file that the manifest does not list",
    }


def test_a_listed_file_that_became_a_link_to_the_same_bytes_is_a_difference(output, tmp_path):
    shutil.move(output / GGUF, tmp_path / "moved")
    (output / GGUF).symlink_to(tmp_path / "moved")
    assert problems(output) == {GGUF: "is a link, which is not followed"}


def test_a_directory_that_became_a_link_is_a_difference(output, tmp_path):
    shutil.move(output / "gguf", tmp_path / "moved")
    (output / "gguf").symlink_to(tmp_path / "moved")
    assert problems(output) == {
        "gguf": "is a link that the manifest does not list",
        GGUF: "is missing (gguf is a link, which is not followed)",
    }


def test_a_listed_file_that_became_something_else_is_a_difference(output):
    (output / GGUF).unlink()
    (output / GGUF).mkdir()
    (output / MODELFILE).unlink()
    os.mkfifo(output / MODELFILE)
    assert problems(output) == dict.fromkeys([GGUF, MODELFILE], "is no regular file")


def test_progress_counts_every_byte_that_is_read(demo_output):
    seen: list[tuple[str, int, int]] = []
    found = verify(demo_output, lambda *step: seen.append(step))
    assert seen[-1] == ("hashing files", found.bytes, found.bytes)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


# the report


def test_the_verdict_of_the_report_is_read(demo_output):
    assert verify(demo_output).verdicts == {"gguf": "not validated"}


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        ({"passed": True, "gates": [{"passed": True}]}, "passed"),
        ({"passed": False, "gates": [{"passed": True}, {"passed": False}]}, "failed"),
        ({"passed": False, "error": "crashed"}, "failed"),
        ({"passed": True, "gates": [{"passed": True}, {"passed": None}]}, "not fully proven"),
        ({"passed": None, "gates": [{"passed": True}, {"passed": None}]}, "not fully proven"),
        ({"passed": None}, "not validated"),
        ({}, "not validated"),
        ({"passed": True, "gates": [{"passed": False}]}, "failed"),
    ],
)
def test_what_is_not_proven_is_not_called_passed(entry, verdict, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"targets": {"gguf": entry}}))
    assert read_verdicts(tmp_path / "report.json") == {"gguf": verdict}


@pytest.mark.parametrize("text", ["", "[]", '{"targets": []}', '{"targets": {"gguf": 1}}', "{}"])
def test_a_report_that_is_none_says_nothing(text, tmp_path):
    (tmp_path / "report.json").write_text(text)
    assert read_verdicts(tmp_path / "report.json") == {}


def test_a_report_that_was_changed_is_not_believed(output):
    report = json.loads((output / "report.json").read_text())
    report["targets"]["gguf"]["passed"] = True
    (output / "report.json").write_text(json.dumps(report))
    assert verify(output).verdicts == {}


# manifests of strangers


@pytest.mark.parametrize(
    "name",
    [
        "../outside", "/etc/passwd", "gguf/../../outside", "gguf//x", "./x", "gguf/.", "", ".", "x/", "a\\b",
        "a\nb", "\x1b]0;t\x07", "manifest.json", "\ud800", 5, None,
    ],
)  # fmt: skip
def test_a_name_that_leads_out_of_the_output_is_refused(output, tmp_path, name):
    (tmp_path / "outside").write_text("x")
    digest = "0" * 64
    entry = {"path": name, "bytes": 1, "sha256": digest}
    edit_manifest(output, lambda content: content["artifacts"].append(entry))
    with pytest.raises(CheckpointError, match=r"manifest\.json: artifacts\[5\]\.path is "):
        verify(output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("artifacts"), "artifacts is null, expected a list"),
        (lambda content: content.update(artifacts={}), "artifacts is an object, expected a list"),
        (lambda content: content.update(artifacts=["x"]), r"artifacts\[0\] is a string, expected an object"),
        (lambda content: content.pop("tool"), "tool is missing: this is no manifest of qatconvert"),
        (lambda content: content["tool"].update(name="other"), "is another program's manifest"),
        (lambda content: content["tool"].update(version="x" * 300), "expected a short printable text"),
        (lambda content: content["tool"].update(version="\x1b[0m"), "expected a short printable text"),
        (lambda content: content.update(schema=2), "schema is 2, and this version reads 1: use qatconvert 0"),
        (lambda content: content.update(schema=True), "schema is True, and this version reads 1"),
        (lambda content: content.pop("schema"), "schema is None, and this version reads 1"),
        (lambda content: content.update(source=3), "source is an integer, expected an object"),
        (lambda content: content["source"].update(path=None), "the manifest names no source"),
        (lambda content: content["source"].update(repo="a/b"), "names a repository but no commit"),
        (lambda content: content["libraries"].update(gguf=3), "gguf is 3, expected a string"),
        (lambda content: content.update(targets={"gguf": 1}), "gguf is an integer, expected an object"),
        (
            lambda content: content["artifacts"].append(content["artifacts"][0]),
            r"artifacts\[5\]\.path is .*, which is listed twice",
        ),
        (lambda content: content["artifacts"][0].update(bytes=-1), "bytes is -1, outside 0"),
        (lambda content: content["artifacts"][0].update(bytes=True), "bytes is True, expected an integer"),
        (lambda content: content["artifacts"][0].update(bytes=1 << 70), "bytes is 1.*, outside 0"),
        (lambda content: content["artifacts"][0].update(sha256="0" * 63), "expected 64 hexadecimal digits"),
        (lambda content: content["artifacts"][0].update(sha256="A" * 64), "expected 64 hexadecimal digits"),
        (lambda content: content["source"]["files"][0].update(path="../x"), r"source\.files\[0\]\.path is"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(output, change, message):
    edit_manifest(output, change)
    with pytest.raises(CheckpointError, match=message) as raised:
        verify(output)
    assert "\n" not in str(raised.value)
    assert "manifest.json" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"schema": 1, "schema": 1}', "twice"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_one_line(output, text, message):
    (output / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=message):
        verify(output)


def test_a_manifest_that_is_too_large_is_not_read(output):
    os.truncate(output / "manifest.json", 65 << 20)
    with pytest.raises(CheckpointError, match="larger than the 67108864 bytes"):
        verify(output)


def test_a_manifest_that_is_a_link_is_refused(output, tmp_path):
    shutil.move(output / "manifest.json", tmp_path / "moved")
    (output / "manifest.json").symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"manifest\.json: is not a regular file; refused"):
        verify(output)


@pytest.mark.parametrize(
    ("place", "message"),
    [("absent", "no such directory"), ("file", "is not a directory"), ("empty", r"has no manifest\.json")],
)
def test_an_output_that_is_none_is_one_line(tmp_path, place, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message):
        verify(tmp_path / place)


def test_an_output_may_be_named_by_a_link(demo_output, tmp_path):
    (tmp_path / "link").symlink_to(demo_output)
    assert verify(tmp_path / "link").exit_status == 0


def test_the_digests_of_an_attacker_pass_without_the_source(output):
    """What the manifest alone can show: see test_rebuild.py for what else there is."""
    (output / MODELFILE).write_text("FROM other\n")
    list_again(output, MODELFILE)
    assert problems(output) == {}
