"""``qatconvert validate`` on the output of a conversion, by the manifest that lies in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

WORDS = ("--positions", "64", "--no-same-weights", "--json", "-q")


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """The demo in two formats, without a proof; nobody may change it."""
    from converter import Conversion, convert

    output = tmp_path_factory.mktemp("converted") / "out"
    convert(Conversion("gemma4-demo", ["gguf", "onnx"], output, validation=None), warn=lambda line: None)
    return output


@pytest.fixture
def out(converted, tmp_path) -> Path:
    return shutil.copytree(converted, tmp_path / "out")


def test_a_whole_output_is_validated_against_the_source_that_its_manifest_names(qatconvert, out):
    done = qatconvert("validate", out, *WORDS)
    assert done.returncode == 3, done.stderr  # a proof without the same weights is not whole
    report = json.loads(done.stdout)
    assert report["command"].startswith("qatconvert validate OUT --reference gemma4-demo ")
    assert list(report["targets"]) == ["gguf", "onnx"]
    for name, artifact in (("gguf", "gemma4-demo-q4_0.gguf"), ("onnx", "model.onnx")):
        entry = report["targets"][name]
        assert entry["artifact"] == artifact
        assert entry["options"]["from"] == "manifest.json"
        assert entry["weights"]["exact_fraction"] == 1
        assert entry["logits"]["positions"] == 64
        before = json.loads((out / "report.json").read_text())["targets"][name]
        for key in ("bytes", "weight_bytes", "bits_per_weight"):
            assert entry[key] == before[key]


def test_one_of_its_targets_or_files_is_chosen_and_reports_are_renewed(qatconvert, out):
    words = ("--positions", "64", "-q")
    assert qatconvert("validate", out, "--target", "gguf", *words, "-o", out, "--force").returncode == 0
    report = json.loads((out / "report.json").read_text())
    assert report["targets"]["gguf"]["passed"] is True
    assert report["targets"]["onnx"]["passed"] is None
    assert qatconvert("verify", out).returncode == 0
    done = qatconvert("validate", out / "gguf" / "gemma4-demo-q4_0.gguf", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["targets"]) == ["gguf"]


def test_a_wrong_artifact_among_them_fails_alone(qatconvert, out):
    data = out / "onnx" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0x11
    data.write_bytes(content)
    done = qatconvert("validate", out, "--positions", "64", "--json", "-q")
    assert done.returncode == 3, done.stderr
    targets = json.loads(done.stdout)["targets"]
    assert (targets["gguf"]["passed"], targets["onnx"]["passed"]) == (True, False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda out: (out / "manifest.json").unlink(), "out holds 0 artifacts ("),
        (
            lambda out: named(out, {"repo": None, "revision": None, "path": "x"}),
            "names its source only as the",
        ),
        (lambda out: listed(out, "gguf", []), "manifest.json: lists no artifact of gguf"),
        (lambda out: listed(out, "gguf", ["../elsewhere.gguf"]), "manifest.json: lists no artifact of gguf"),
    ],
    ids=["no manifest", "a directory", "no file", "a file outside"],
)
def test_what_names_no_source_or_no_file_is_one_line(qatconvert, out, change, told):
    change(out)
    done = qatconvert("validate", out)
    assert done.returncode in (1, 2), done.stderr
    (line,) = done.stderr.splitlines()
    assert told in line


def named(out: Path, source: dict[str, object]) -> None:
    content = json.loads((out / "manifest.json").read_text())
    content["source"] |= source
    (out / "manifest.json").write_text(json.dumps(content))


def listed(out: Path, target: str, files: list[str]) -> None:
    content = json.loads((out / "manifest.json").read_text())
    content["targets"][target]["files"] = files
    (out / "manifest.json").write_text(json.dumps(content))


def test_a_file_without_a_manifest_needs_its_reference(qatconvert, converted, tmp_path, error_of):
    alone = shutil.copy(converted / "gguf" / "gemma4-demo-q4_0.gguf", tmp_path / "alone.gguf")
    line = error_of(qatconvert("validate", alone), status=2)
    assert "does not lie in the output of a conversion" in line
    assert "--reference MODEL" in line


def test_a_target_that_is_not_there_is_named(qatconvert, converted, error_of):
    line = error_of(qatconvert("validate", converted, "--target", "litert"), status=2)
    assert line.endswith("holds no litert, but gguf and onnx")
