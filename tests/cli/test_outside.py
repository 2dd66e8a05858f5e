"""A family that another distribution brings, converted, proven and refused as a user sees it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.distributions import write_distribution
from support.qwen3 import write_qwen3

OUTSIDE = Path(__file__).parents[1] / "outside"
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
    """The environment of a command that finds the distribution ``qatconvert-qwen3`` installed."""
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
    words = ("convert", qwen3, "--target", "gguf", "-o", tmp_path / "out", "--json", "-q")
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
