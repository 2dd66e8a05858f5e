"""ONNX on the command line: options, providers, missing packages, damaged artifacts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.forked import PROGRAM

PACKAGES = ("mobius", "onnx", "onnx_ir", "onnxruntime", "onnxscript")


@pytest.fixture(scope="module")
def artifact(reference, tmp_path_factory) -> Path:
    """The directory of an ONNX artifact of ``reference``; nobody may change it."""
    out = tmp_path_factory.mktemp("onnx") / "out"
    command = [PROGRAM, str(reference), "--target", "onnx", "--no-validate", "-o", str(out)]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "onnx"


@pytest.mark.parametrize("validate", [True, False])
def test_packages_that_writing_needs_are_named_before_any_work(
    without, validate, error_of, reference, tmp_path
):
    options = [] if validate else ["--no-validate"]
    done = without(PACKAGES, reference, "--target", "onnx", "-o", tmp_path / "out", *options)
    assert error_of(done, 2) == (
        "qatconvert: target onnx needs packages that are not installed: pip install 'qatconvert[onnx]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_is_missing_is_named_unless_nothing_is_validated(
    without, error_of, reference, tmp_path
):
    done = without(("onnxruntime",), reference, "--target", "onnx", "-o", tmp_path / "out")
    assert "pip install 'qatconvert[onnx]' (or convert with --no-validate)" in error_of(done, 2)


def test_what_is_planned_for_onnx_shows_without_its_packages(without, reference):
    done = without(PACKAGES, "inspect", reference, "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["targets"]) == {"gguf", "litert", "onnx"}


def test_the_types_of_scales_and_activations_change_the_plan(qatconvert, reference):
    def planned(*options: str) -> int:
        done = qatconvert("inspect", reference, "--target", "onnx", "--json", *options)
        assert done.returncode == 0, done.stderr
        size: int = json.loads(done.stdout)["targets"]["onnx"]["bytes"]
        return size

    assert planned() == planned("--onnx-scales", "f32", "--onnx-dtype", "float32")
    assert planned("--onnx-dtype", "float16") < planned("--onnx-scales", "f16") < planned()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--onnx-scales", "f8"], "'f8' is not one of 'f32', 'f16'"),
        (["--onnx-dtype", "int4"], "'int4' is not one of 'float32', 'float16'"),
        (["--accuracy-level", "5"], "5 is not in the range 0<=x<=4"),
        (["--onnx-scales", "f32", "--onnx-dtype", "float16"], "float16"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, refused, reference):
    assert message in refused(reference, "--target", "onnx", *options, status=2)


@pytest.mark.parametrize("level", [0, 1])
def test_an_accuracy_level_that_is_given_is_written(level, qatconvert, reference, tmp_path):
    from targets.onnx.accuracy import accuracy_levels

    options = ["--no-validate", "--accuracy-level", level, "-o", tmp_path / "out"]
    assert qatconvert(reference, "--target", "onnx", *options).returncode == 0
    assert accuracy_levels((tmp_path / "out" / "onnx" / "model.onnx").read_bytes()) == (level,)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["targets"]["onnx"]["options"]["accuracy_level"] == level


def test_reports_tell_the_memory_of_keys_and_values(qatconvert, reference, tmp_path):
    done = qatconvert("convert", reference, "--target", "onnx", "--no-validate", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    config = json.loads((tmp_path / "out" / "onnx" / "genai_config.json").read_text())
    cache = report["targets"]["onnx"]["kv_cache"]
    assert cache["tokens"] == config["search"]["max_length"]
    plan = json.loads((tmp_path / "out" / "manifest.json").read_text())["targets"]["onnx"]
    assert plan["kv_cache"] == cache
    told = f"{cache['bytes'] / 1e6:,.0f} MB for {cache['tokens']:,} tokens"
    for name in ("report.md", "report.html"):
        assert told in (tmp_path / "out" / name).read_text()


def test_the_level_that_was_kept_is_told_with_its_speed_and_that_of_the_other(
    qatconvert, reference, tmp_path
):
    options = ["--positions", "64", "-o", tmp_path / "out"]
    done = qatconvert(reference, "--target", "onnx", *options)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("  run with  "))
    kept, other = line.removeprefix("  run with  ").split("; ")
    assert re.fullmatch(r"accuracy level [04]: kept, [0-9,]+ tokens/s", kept)
    assert re.fullmatch(r"accuracy level [04]: (passed|failed), [0-9,]+ tokens/s", other)
    assert kept[:16] != other[:16]


@pytest.mark.parametrize("provider", ["rknpu", "quantum", "VSINPUExecutionProvider", ""])
def test_a_provider_that_is_not_there_is_refused_before_any_work(
    provider, qatconvert, error_of, artifact, tmp_path
):
    model = artifact / "model.onnx"
    for words in (
        ["owner/name", "--target", "gguf", "--target", "onnx", "-o", tmp_path / "out"],
        ["validate", model, "--reference", "owner/name", "-o", tmp_path / "out"],
    ):
        line = error_of(qatconvert(*words, "--provider", provider, seconds=60), 2)
        assert f"provider {provider!r} is not in this onnxruntime (" in line
        assert "available: " in line
        assert "cpu" in line.split("available: ")[1].split(", ")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.onnx", ""])
def test_an_artifact_is_validated_by_its_file_or_its_directory(
    name, qatconvert, reference, artifact, tmp_path
):
    options = ["--positions", "64", "--provider", "CPUExecutionProvider", "--json"]
    done = qatconvert("validate", artifact / name, "--reference", reference, *options)
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)["targets"]["onnx"]
    assert entry["artifact"] == "model.onnx"
    assert entry["bytes"] == sum((artifact / f"model.onnx{end}").stat().st_size for end in ("", ".data"))
    assert entry["weights"]["exact_fraction"] == 1.0
    assert entry["runtime"]["provider"] == "cpu"
    assert entry["runtime"]["accuracy_level"] == 0
    assert entry["runtime"]["decode"]["mean_kld"] < 1e-9


def test_a_directory_without_an_artifact_or_with_several_is_refused(
    qatconvert, error_of, reference, tmp_path
):
    (tmp_path / "empty").mkdir()
    done = qatconvert("validate", tmp_path / "empty", "--reference", reference)
    assert "holds 0 artifacts (.gguf, .litertlm, .onnx): give the file itself" in error_of(done, 2)
    for name in ("one.onnx", "two.onnx"):
        (tmp_path / name).touch()
    done = qatconvert("validate", tmp_path, "--reference", reference)
    assert "holds 2 artifacts" in error_of(done, 2)


def cut(directory: Path) -> None:
    os.truncate(directory / "model.onnx.data", (directory / "model.onnx.data").stat().st_size - 1000)


def emptied(directory: Path) -> None:
    os.truncate(directory / "model.onnx.data", 0)


def missing(directory: Path) -> None:
    (directory / "model.onnx.data").unlink()


def another_kind(directory: Path) -> None:
    missing(directory)
    (directory / "model.onnx.data").mkdir()


def cut_graph(directory: Path) -> None:
    os.truncate(directory / "model.onnx", 5000)


def another_format(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"PK\x03\x04" * 500)


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (cut, "model.onnx.data"),
        (emptied, "model.onnx.data"),
        (missing, "model.onnx.data"),
        (another_kind, "model.onnx.data"),
        (cut_graph, "model.onnx"),
        (another_format, "model.onnx"),
    ],
)
def test_a_damaged_artifact_is_one_line_that_names_the_file(
    damage: Callable[[Path], None], file, qatconvert, error_of, reference, artifact, tmp_path
):
    directory = shutil.copytree(artifact, tmp_path / "onnx")
    damage(directory)
    model = directory / "model.onnx"
    done = qatconvert("validate", model, "--reference", reference, "-o", tmp_path / "out", seconds=60)
    assert f"{file}: " in error_of(done)
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_another_model_is_not_validated(qatconvert, error_of, checkpoint_factory, artifact):
    done = qatconvert("validate", artifact / "model.onnx", "--reference", checkpoint_factory("gemma3-text"))
    assert "model.onnx: " in error_of(done)


def test_damaged_values_fail_the_gates_and_are_no_error(qatconvert, reference, artifact, tmp_path):
    directory = shutil.copytree(artifact, tmp_path / "onnx")
    data = bytearray((directory / "model.onnx.data").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    (directory / "model.onnx.data").write_bytes(data)
    options = ["--positions", "64", "--no-same-weights", "--json"]
    done = qatconvert("validate", directory, "--reference", reference, *options)
    assert done.returncode == 3, done.stderr
    entry = json.loads(done.stdout)["targets"]["onnx"]
    assert entry["gates"][0]["name"] == "exact_fraction"
    assert entry["gates"][0]["passed"] is False
