"""A form, a family and a target that another distribution brings, as a user sees them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from support.distributions import write_distribution
from support.packed_form import tensors_of, write_packed
from support.qwen3 import write_qwen3

OUTSIDE = Path(__file__).parents[2] / "outside"
#: A family that only reads models, as Gemma 3's.
INVENTED = """
from dataclasses import replace
from converter.checkpoint.architecture import Family, gemma3

def read(config, model_type):
    return replace(gemma3.read(config, model_type), family="invented")

FAMILY = Family(("invented",), read)
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> dict[str, str]:
    """The environment of a command that finds the distribution ``qatconvert-outside`` installed."""
    directory = tmp_path_factory.mktemp("outside")
    source = shutil.copytree(OUTSIDE, directory / "source")
    options = [
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        directory / "packages",
    ]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True)
    return {"PYTHONPATH": str(directory / "packages")}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("qwen3") / "model")


def test_a_model_of_another_family_is_converted_and_proven(qatconvert, outside, qwen3, tmp_path):
    words = ("convert", qwen3, "--target", "gguf", "-o", tmp_path / "out", "--json")
    done = qatconvert(*words, environment=outside)
    assert done.returncode == 0, done.stderr
    assert "no Modelfile is written: ollama: the family qwen3 is not known" in done.stderr
    assert not (tmp_path / "out" / "ollama").exists()
    found = json.loads(done.stdout)["targets"]["gguf"]
    assert found["passed"]
    assert found["weights"]["exact_fraction"] == 1
    assert found["logits"]["mean_kld"] < 1e-3
    (graph,) = (gate for gate in found["gates"] if gate["name"] == "graph_kld")
    assert graph["value"] < 1e-9


def test_what_is_not_known_of_it_is_one_line(qatconvert, outside, qwen3, tmp_path, error_of):
    for target in ("onnx", "litert"):
        words = ("convert", qwen3, "--target", target, "-o", tmp_path / "out", "--no-validate")
        line = error_of(qatconvert(*words, environment=outside))
        assert f"{target}: the family qwen3 is not known; known: gemma3, gemma4" in line
    line = error_of(qatconvert("modelfile", qwen3, environment=outside))
    assert "ollama: the family qwen3 is not known; known: gemma3, gemma4" in line
    assert not (tmp_path / "out").exists()


def test_inspection_tells_what_each_target_makes_of_it_and_which_cannot(qatconvert, outside, qwen3):
    done = qatconvert("inspect", qwen3, "--json", environment=outside)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["targets"]
    assert found["gguf"]["bytes"] > 0
    assert found["onnx"] == {"error": "onnx: the family qwen3 is not known; known: gemma3, gemma4"}
    told = qatconvert("inspect", qwen3, environment=outside).stdout
    assert "the family qwen3 is not known" in told
    assert "gguf, planned" in told
    done = qatconvert("inspect", qwen3, "--target", "onnx", environment=outside)
    assert done.returncode == 1


@pytest.mark.parametrize("target", ["gguf", "onnx", "litert"])
def test_a_family_that_no_target_knows(target, qatconvert, checkpoint_factory, tmp_path, error_of):
    group = {"qatconvert.families": {"invented": "invented_family:FAMILY"}}
    packages = write_distribution(tmp_path / "packages", "outside", group, {"invented_family": INVENTED})
    model = shutil.copytree(checkpoint_factory("gemma3-text"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "invented"}))
    words = ("convert", model, "--target", target, "-o", tmp_path / "out")
    line = error_of(qatconvert(*words, environment={"PYTHONPATH": str(packages)}))
    assert line == f"qatconvert: {target}: the family invented is not known; known: gemma3, gemma4"
    assert not (tmp_path / "out").exists()


def test_a_broken_distribution_is_one_line_where_its_family_is_meant(
    qatconvert, checkpoint_factory, qwen3, tmp_path, error_of
):
    group = {"qatconvert.families": {"qwen3": "broken_module:FAMILY"}}
    modules = {"broken_module": "raise RuntimeError('\\x1b]0;no such\\nlibrary')"}
    packages = write_distribution(tmp_path / "packages", "other", group, modules)
    paths = {"PYTHONPATH": str(packages)}
    line = error_of(qatconvert("inspect", qwen3, environment=paths))
    assert "entry point 'qwen3' of qatconvert.families, which 'other' registers, cannot be loaded" in line
    words = ("inspect", checkpoint_factory("text"), "--target", "gguf")
    assert qatconvert(*words, environment=paths).returncode == 0


def test_without_the_distribution_the_model_is_unknown(qatconvert, qwen3, error_of):
    assert "model_type 'qwen3' is unknown" in error_of(qatconvert("inspect", qwen3))


@pytest.fixture(scope="module")
def packed(tmp_path_factory, checkpoint_factory) -> Path:
    """A checkpoint of int4 codes in groups of 128, which transformers does not load."""
    source = checkpoint_factory("31b")
    return write_packed(source, tmp_path_factory.mktemp("packed") / "model", tensors_of(source, "float16"))


def test_a_form_of_another_distribution_is_converted_and_proven(qatconvert, outside, packed, tmp_path):
    words = ("convert", packed, "--target", "gguf", "-o", tmp_path / "out", "--json", "-q")
    done = qatconvert(*words, environment=outside)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["source"]["format"] == "int4-groups"
    found = report["targets"]["gguf"]
    assert found["passed"]
    assert found["weights"]["exact_fraction"] == 1
    assert found["weights"]["equal_code_blocks"] == found["weights"]["blocks"] > 1000
    (graph,) = (gate for gate in found["gates"] if gate["name"] == "graph_kld")
    assert graph["value"] < 1e-9


def test_codes_that_are_not_the_checkpoints_fail_the_proof_of_such_a_form(
    qatconvert, outside, packed, tmp_path
):
    words = ("convert", packed, "--target", "gguf", "-o", tmp_path / "out", "--no-validate", "-q")
    assert qatconvert(*words, environment=outside).returncode == 0
    (file,) = (tmp_path / "out" / "gguf").glob("*.gguf")
    (tensor,) = (one for one in gguf.GGUFReader(file).tensors if one.name == "blk.0.ffn_up.weight")
    content = bytearray(file.read_bytes())
    content[tensor.data_offset + 2] ^= 1
    file.write_bytes(content)
    done = qatconvert("validate", file, "--reference", packed, "--json", "-q", environment=outside)
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)["targets"]["gguf"]
    assert found["weights"]["exact_fraction"] < 1


def test_a_target_of_another_distribution_is_written_proven_and_read_by_its_own_package(
    qatconvert, outside, packed, tmp_path
):
    words = ("convert", packed, "--target", "plain", "--plain-type", "float32", "--plain-memory", "1")
    done = qatconvert(*words, "-o", tmp_path / "out", "--json", "-q", environment=outside)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["targets"]["plain"]
    assert found["passed"]
    assert found["weights"]["exact_fraction"] == 1
    assert found["logits"]["mean_kld"] < 1e-9
    assert found["runtime"]["runner"] == "plain.transformers"
    assert found["runtime"]["plain_memory"] == 1
    tensors = load_file(tmp_path / "out" / found["artifact"])
    assert tensors["model.norm.weight"].dtype == np.float32
    verified = qatconvert("verify", tmp_path / "out", "--rebuild", "--reference", packed, environment=outside)
    assert verified.returncode == 0, verified.stderr


def test_a_wrong_number_in_its_artifact_fails_the_proof(qatconvert, outside, demo_checkpoint, tmp_path):
    words = ("convert", demo_checkpoint, "--target", "plain", "--no-validate", "-o", tmp_path / "out", "-q")
    assert qatconvert(*words, environment=outside).returncode == 0
    (file,) = (tmp_path / "out" / "plain").iterdir()
    content = bytearray(file.read_bytes())
    content[-2] ^= 0x40  # the exponent of the last value
    file.write_bytes(content)
    words = ("validate", file, "--reference", demo_checkpoint, "--json", "-q")
    done = qatconvert(*words, environment=outside)
    assert done.returncode == 3, done.stderr
    gates = json.loads(done.stdout)["targets"]["plain"]["gates"]
    assert "same_as_built" in {gate["name"] for gate in gates if not gate["passed"]}


def test_its_options_stand_in_the_help_and_belong_to_it(qatconvert, outside, tmp_path, error_of):
    told = qatconvert("convert", "--help", environment=outside).stdout
    assert "Plain numbers" in told
    assert "--plain-type" in told
    assert "--plain-memory" in told
    words = ("convert", "gemma4-demo", "-o", tmp_path / "out", "--plain-type", "float16")
    line = error_of(qatconvert(*words, environment=outside), status=2)
    assert "--plain-type has no effect without target plain" in line
    assert "--plain-type" not in qatconvert("convert", "--help").stdout


def test_nothing_that_is_shipped_names_what_the_distribution_brings():
    root = OUTSIDE.parents[1]
    names = re.compile(
        r"qwen|int4-groups|int4_groups|qatconvert_plain|plain_type|plain_memory", re.IGNORECASE
    )
    rooms = ("converter", "targets", "validation", "benchmarks")
    files = [root / "pyproject.toml", *(file for room in rooms for file in (root / room).rglob("*.py"))]
    assert len(files) > 200
    assert [file for file in files if names.search(file.read_text("utf-8"))] == []
    assert names.search((OUTSIDE / "pyproject.toml").read_text("utf-8"))
