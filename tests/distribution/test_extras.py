"""What an installation promises: the package alone, and each of its extras alone.

What ``llamacpp`` and ``reference`` promise together is in tests/test_walk.py.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from distribution.conftest import Environment, variables

from support.stages import without_stages

Make = Callable[..., Environment]
_THERE = "from importlib.util import find_spec as f; print([n for n in {names!r} if f(n)])"


def lacks(environment: Environment, *names: str) -> bool:
    """Whether none of ``names`` can be imported."""
    return environment.python(_THERE.format(names=names)) == "[]\n"


def test_the_package_alone_converts_to_gguf_and_reads_what_it_wrote(installed: Make) -> None:
    base = installed()
    assert "convert" in base.run("--help").stdout
    assert "gemma4-demo" in base.run("models").stdout
    assert json.loads(base.run("inspect", "gemma4-demo", "-t", "gguf", "--json").stdout)
    base.run("gemma4-demo", "-t", "gguf", "--no-validate", "-o", "out")
    base.run("verify", "out")
    (artifact,) = (base.path / "work" / "out" / "gguf").glob("*.gguf")
    assert base.run("modelfile", artifact).stdout.startswith("FROM ")


def test_the_package_alone_comes_without_torch_and_without_runtimes(installed: Make) -> None:
    assert lacks(installed(), "torch", "transformers", "onnx", "litert_torch", "xllamacpp", "pip")


@pytest.mark.parametrize(
    ("words", "extras"),
    [
        (("-t", "gguf"), "reference,llamacpp"),
        (("-t", "onnx", "--no-validate"), "onnx"),
        (("-t", "litert", "--no-validate"), "litert"),
    ],
    ids=["proof", "onnx", "litert"],
)
def test_what_is_missing_is_one_line_with_its_extra(
    installed: Make, words: tuple[str, ...], extras: str
) -> None:
    done = installed().run("gemma4-demo", *words, "-o", "missing", status=2)
    (line,) = without_stages(done.stderr).splitlines()
    assert f"pip install 'qatconvert[{extras}]'" in line


def test_the_version_tells_what_is_missing(installed: Make) -> None:
    told = installed().run("--version", "-v").stdout
    assert "not installed (extra onnx)" in told


def test_what_the_doctor_advises_makes_the_target_ready(installed: Make) -> None:
    environment = installed("llamacpp")
    done = environment.run("doctor", "gguf", "--json", status=1)
    (target,) = json.loads(done.stdout)["targets"]
    assert target["prove"]["problems"] == ["torch, transformers, accelerate are not installed"]
    (command,) = target["prove"]["commands"]
    subprocess.run(shlex.split(command), check=True, env=variables(), capture_output=True)
    environment.run("doctor", "gguf")


@pytest.mark.parametrize("target", ["onnx", pytest.param("litert", marks=pytest.mark.slow)])
def test_an_extra_alone_converts_and_runs_and_lacks_the_reference(installed: Make, target: str) -> None:
    environment = installed(target)
    (found,) = json.loads(environment.run("doctor", target, "--json", status=1).stdout)["targets"]
    assert found["convert"]["ready"]
    assert found["prove"]["problems"] == ["accelerate is not installed"]


@pytest.mark.slow
def test_onnx_alone_converts_and_its_runtime_opens_the_model(
    installed: Make, checkpoint_factory: Callable[..., Path]
) -> None:
    environment = installed("onnx")
    environment.run(str(checkpoint_factory("gemma3")), "-t", "onnx", "--no-validate", "-o", "out")
    (model,) = (environment.path / "work" / "out" / "onnx").glob("*.onnx")
    source = f"import onnxruntime as o; print(len(o.InferenceSession({str(model)!r}).get_outputs()) > 0)"
    assert environment.python(source) == "True\n"


@pytest.mark.slow
def test_litert_alone_converts(installed: Make, checkpoint_factory: Callable[..., Path]) -> None:
    environment = installed("litert")
    two = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    model = str(checkpoint_factory("gemma3", text=two))  # each layer takes its time to export
    environment.run(model, "-t", "litert", "--no-validate", "-o", "out")
    assert list((environment.path / "work" / "out" / "litert").glob("*.litertlm"))
