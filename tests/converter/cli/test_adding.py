"""Another target in an output that holds an earlier conversion, and ``--force`` for some of several."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def out(qatconvert, model, tmp_path) -> Path:
    """A conversion of ``model`` to GGUF."""
    place = tmp_path / "out"
    done = qatconvert(model, "--no-validate", "--system", "Be brief.", "-o", place)
    assert done.returncode == 0, done.stderr
    return place


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def other(model: Path) -> None:
    """Make ``model`` another checkpoint of the same shape."""
    path = model / "generation_config.json"
    settings = read(path) if path.exists() else {}
    path.write_text(json.dumps({**settings, "temperature": 0.25}))
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)


def check_manifest(out: Path) -> None:
    """Every file of the output stands in its manifest, with its digest."""
    listed = {entry["path"]: entry["sha256"] for entry in read(out / "manifest.json")["artifacts"]}
    found = {name: hashlib.sha256(data).hexdigest() for name, data in content(out).items()}
    found.pop("manifest.json")
    assert listed == found


def test_a_target_is_added_without_force_and_the_earlier_one_stays(qatconvert, model, out):
    before, report, manifest = content(out), read(out / "report.json"), read(out / "manifest.json")
    done = qatconvert(model, "--target", "onnx", "--positions", "64", "-o", out)
    assert done.returncode == 0, done.stderr
    after = content(out)
    kept = [name for name in before if name.split("/")[0] in ("gguf", "ollama")]
    assert len(kept) == 2
    assert all(after[name] == before[name] for name in kept)
    merged = read(out / "report.json")
    assert list(merged["targets"]) == ["gguf", "onnx"]
    kept_apart = {"reference": None, "command": report["command"]}
    assert merged["targets"]["gguf"] == {**kept_apart, **report["targets"]["gguf"]}
    assert merged["command"] == "qatconvert convert ./model --target onnx --positions 64"
    assert merged["targets"]["onnx"]["passed"] is True
    assert merged["reference"]["positions"] == 64
    for name in ("report.md", "report.html"):
        assert all(word in after[name].decode() for word in ("gguf", "onnx"))
    entries = read(out / "manifest.json")["targets"]
    assert entries["gguf"]["earlier"] == {"options": manifest["options"]}
    assert {key: value for key, value in entries["gguf"].items() if key != "earlier"} == manifest["targets"][
        "gguf"
    ]
    check_manifest(out)


@pytest.mark.slow
def test_a_new_proof_of_one_target_leaves_what_the_report_says_of_others(qatconvert, model, out):
    assert qatconvert(model, "-t", "onnx", "--no-validate", "-o", out).returncode == 0
    earlier = read(out / "report.json")
    before = {"reference": None, "command": earlier["command"], **earlier["targets"]["onnx"]}
    artifact = next((out / "gguf").iterdir())
    words = ["--reference", model, "--positions", "64", "-o", out, "--force"]
    done = qatconvert("validate", artifact, *words)
    assert done.returncode == 0, done.stderr
    merged = read(out / "report.json")
    assert merged["targets"]["gguf"]["passed"] is True
    assert merged["targets"]["onnx"] == before
    check_manifest(out)
    assert "known from" not in done.stdout  # but from the manifest

    other(model)
    alone = shutil.copy(artifact, out.parent)
    done = qatconvert("validate", alone, *words[:-3], "-q")
    assert done.returncode == 3
    assert "  options  known from the artifact: " in done.stdout
    assert "off_lattice q8_0" in done.stdout
    done = qatconvert("validate", alone, *words)
    assert "the new report has one target only: " in done.stderr
    assert "of another checkpoint (generation_config.json differs)" in done.stderr
    assert list(read(out / "report.json")["targets"]) == ["gguf"]


def test_a_target_that_is_there_is_refused_and_named(qatconvert, error_of, model, out):
    before = content(out)
    for targets in (["gguf"], ["onnx", "gguf"]):
        words = [word for name in targets for word in ("-t", name)]
        told = error_of(qatconvert(model, *words, "--no-validate", "-o", out, seconds=60))
        assert "it holds gguf already" in told
        assert "--force" in told
    assert content(out) == before


def test_force_replaces_only_the_targets_named(qatconvert, model, out):
    assert qatconvert(model, "-t", "onnx", "--no-validate", "-o", out).returncode == 0
    before = content(out)
    done = qatconvert(model, "-t", "gguf", "--no-validate", "--force", "-o", out)
    assert done.returncode == 0, done.stderr
    after = content(out)
    assert set(after) == set(before)
    told = {"manifest.json", "report.html", "report.json", "report.md"}  # of another command
    assert {name for name in after if after[name] != before[name]} == {"ollama/Modelfile", *told}
    assert list(read(out / "report.json")["targets"]) == ["gguf", "onnx"]
    check_manifest(out)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_models_are_never_mixed_in_one_output(qatconvert, error_of, model, out, force):
    other(model)
    before = content(out)
    done = qatconvert(model, "-t", "onnx", "--no-validate", *force, "-o", out)
    told = error_of(done)
    assert "holds gguf of another checkpoint (" in told
    assert "choose another --output" in told
    assert content(out) == before


def test_force_for_every_target_replaces_another_checkpoint(qatconvert, model, out):
    other(model)
    before = read(out / "manifest.json")
    assert qatconvert(model, "-t", "gguf", "--no-validate", "--force", "-o", out).returncode == 0
    after = read(out / "manifest.json")
    assert after["source"] != before["source"]
    assert list(after["targets"]) == ["gguf"]
    check_manifest(out)


def test_files_of_the_users_stay_and_are_never_replaced_without_force(qatconvert, error_of, model, out):
    (out / "notes.txt").write_text("mine")
    (out / "onnx").mkdir()
    (out / "onnx" / "model.onnx").write_text("mine")
    told = error_of(qatconvert(model, "-t", "onnx", "--no-validate", "-o", out))
    assert "onnx/model.onnx is in the way and no conversion wrote it" in told
    assert (out / "onnx" / "model.onnx").read_text() == "mine"
    (out / "onnx" / "model.onnx").unlink()
    assert qatconvert(model, "-t", "onnx", "--no-validate", "-o", out).returncode == 0
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", ["gone", "other size", "link"])
def test_a_target_that_is_no_longer_what_the_manifest_says_is_not_vouched_for(
    qatconvert, error_of, model, out, tmp_path, damage
):
    (artifact,) = (out / "gguf").iterdir()
    if damage == "other size":
        artifact.write_bytes(b"x")
    else:
        shutil.move(out / "gguf", tmp_path / "elsewhere")
        if damage == "link":
            (out / "gguf").symlink_to(tmp_path / "elsewhere")
    told = error_of(qatconvert(model, "-t", "onnx", "--no-validate", "-o", out))
    assert f"{artifact} is not what manifest.json says" in told


@pytest.mark.parametrize("text", ['{"targets": {"gguf": 3}}', '{"targets": {"gguf": {}}, "source": {}}'])
def test_a_report_that_is_none_is_one_line(qatconvert, error_of, model, out, text):
    (out / "report.json").write_text(text)
    told = error_of(qatconvert(model, "-t", "onnx", "--no-validate", "-o", out))
    assert "report.json is no report of a conversion" in told


@pytest.mark.parametrize("text", ['{"targets": 3}', "{}", '{"targets": {"gguf": {}}, "artifacts": [{}]}'])
def test_a_manifest_that_is_none_makes_an_output_like_any_other(qatconvert, error_of, model, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(text)
    told = error_of(qatconvert(model, "-t", "onnx", "--no-validate", "-o", tmp_path / "out", seconds=60))
    assert "is not empty: choose another --output, or add --force" in told


def test_a_run_that_lost_the_race_does_not_overwrite_what_the_first_published(model, tmp_path, monkeypatch):
    """Both runs look at the destination before either has it."""
    from converter.errors import DestinationError
    from converter.pipeline import conversion as pipeline
    from converter.system import output

    place, scratch = tmp_path / "out", output.scratch_directory

    def conversion() -> pipeline.Conversion:
        return pipeline.Conversion(str(model), ["gguf"], place, validation=None)

    def late(destination, work):
        monkeypatch.setattr(output, "scratch_directory", scratch)
        pipeline.convert(conversion())
        return scratch(destination, work)

    monkeypatch.setattr(output, "scratch_directory", late)
    with pytest.raises(DestinationError, match="it holds gguf already"):
        pipeline.convert(conversion())
    check_manifest(place)
