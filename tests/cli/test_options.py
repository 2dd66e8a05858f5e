"""An option that has no effect in the call is wrong usage."""

from __future__ import annotations

from importlib import import_module

import click
import pytest

from converter.cli.options import EFFECT, VALIDATION
from validation.gates import MAY_NOT_RUN

COMMANDS = {
    name: import_module(f"converter.cli.{name}").command for name in ("convert", "inspect", "validate")
}
VALUES = {
    "split_max_size": "2G",
    "system": "x",
    "num_ctx": "64",
    "onnx_scales": "f16",
    "onnx_dtype": "float16",
    "accuracy_level": "4",
    "provider": "cpu",
    "prefill_lengths": "64",
    "activations": "1",
    "context_length": "512",
    "npu": "qualcomm:SM8750",
    "android_assets": "assets",
    "positions": "64",
    "reference_dtype": "bfloat16",
    "max_memory": "4",
    "gates": "mean_kld=1",
    "allow_unrun": "graph_kld",
    "baseline": "naive-q4_0",
    "text_file": __file__,
    "license_files": __file__,
}
CONDITIONAL = {name: needs for name, needs in EFFECT.items() if needs}


def words(parameter: click.Parameter) -> list[str]:
    flag = isinstance(parameter, click.Option) and parameter.is_flag
    option = (*parameter.secondary_opts, *parameter.opts)[0]
    return [option] if flag else [option, VALUES[parameter.name or ""]]


def cases(command: str) -> list[click.Parameter]:
    return [one for one in COMMANDS[command].params if EFFECT.get(one.name or "")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_has_an_effect_with(command):
    options = [one.name for one in COMMANDS[command].params if isinstance(one, click.Option)]
    assert [name for name in options if name not in EFFECT] == []


@pytest.mark.parametrize("command", ["convert", "validate"])
def test_every_gate_that_may_not_run_can_be_allowed_and_stands_in_the_help(command):
    (option,) = [one for one in COMMANDS[command].params if one.name == "allow_unrun"]
    assert tuple(option.type.choices) == MAY_NOT_RUN
    assert all(name in option.help for name in MAY_NOT_RUN)


@pytest.mark.parametrize("parameter", cases("convert"), ids=lambda one: one.name)
def test_an_option_without_its_target_or_validation_names_both(parameter, qatconvert, error_of, tmp_path):
    needs = EFFECT[parameter.name]
    target = next(name for name in ("gguf", "onnx") if name not in needs)
    off = ["--no-validate"] if VALIDATION in needs else []
    told = error_of(qatconvert("owner/name", "-t", target, *off, *words(parameter), seconds=60), 2)
    assert words(parameter)[0] in told
    assert any(name in told for name in ("--no-validate", *(f"without target {one}" for one in needs)))


@pytest.mark.parametrize("parameter", cases("inspect"), ids=lambda one: one.name)
def test_inspect_refuses_options_of_targets_that_it_does_not_plan(parameter, qatconvert, error_of):
    told = error_of(qatconvert("inspect", "owner/name", "-t", "gguf", *words(parameter), seconds=60), 2)
    assert f"{words(parameter)[0]} has no effect without target" in told


def test_validate_refuses_a_provider_for_an_artifact_that_has_none(qatconvert, error_of, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    done = qatconvert("validate", tmp_path / "a.gguf", "--reference", "owner/name", "--provider", "cpu")
    assert "--provider has no effect without target onnx" in error_of(done, 2)


def test_defaults_are_not_given_and_options_of_their_target_are_taken(
    qatconvert, checkpoint_factory, tmp_path
):
    model, out = checkpoint_factory("text"), tmp_path / "out"
    done = qatconvert(model, "--no-validate", "--num-ctx", "64", "--split-max-size", "2G", "-o", out)
    assert done.returncode == 0, done.stderr
    for options in ([], ["--onnx-scales", "f16", "--prefill-lengths", "64"]):
        assert qatconvert("inspect", model, *options).returncode == 0


def test_off_lattice_is_known_to_be_given_or_not():
    for name in ("convert", "inspect"):
        (option,) = (one for one in COMMANDS[name].params if one.name == "off_lattice")
        assert option.default is None or repr(option.default).startswith("Sentinel")
