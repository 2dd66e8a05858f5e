"""Variables ``QATCONVERT_COMMAND_OPTION`` give options their defaults."""

from __future__ import annotations

import json
import re

import click
import pytest

from converter.cli import group

OUTPUT_OPTIONS = {
    "QATCONVERT_CONVERT_TARGET": "gguf,onnx",
    "QATCONVERT_CONVERT_VALIDATE": "0",
    "QATCONVERT_CONVERT_NUM_CTX": "64",
    "QATCONVERT_CONVERT_JSON": "1",
}
#: The options that no variable sets.
BARE = {"--help", "--version", "--debug"}


@pytest.mark.parametrize("words", [["convert", "gemma4-demo"], ["gemma4-demo"]])
def test_they_are_the_defaults_of_both_forms(qatconvert, tmp_path, words):
    done = qatconvert(*words, environment={**OUTPUT_OPTIONS, "QATCONVERT_CONVERT_OUTPUT": "out"})
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["targets"]) == ["gguf", "onnx"]
    assert "PARAMETER num_ctx 64" in (tmp_path / "work" / "out" / "ollama" / "Modelfile").read_text()


def test_the_command_line_comes_first_and_a_default_without_effect_is_left_alone(qatconvert):
    environment = {**OUTPUT_OPTIONS, "QATCONVERT_CONVERT_RUNTIME": "gguf.llamacpp"}
    words = ("gemma4-demo", "-t", "onnx", "--dry-run")
    done = qatconvert(*words, environment=environment)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["targets"]) == ["onnx"]


def test_a_choice_of_verbosity_on_the_command_line_comes_first(qatconvert):
    done = qatconvert("inspect", "gemma4-demo", "-q", environment={"QATCONVERT_INSPECT_VERBOSE": "2"})
    assert (done.returncode, done.stderr) == (0, "")
    done = qatconvert("inspect", "gemma4-demo", "-v", environment={"QATCONVERT_INSPECT_QUIET": "1"})
    assert "qatconvert.command" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("QATCONVERT_CONVERT_POSITIONS", "many", "'--positions'"),
        ("QATCONVERT_CONVERT_TARGET", "ggfu", "did you mean gguf?"),
        ("QATCONVERT_CONVERT_FORCE", "perhaps", "'--force'"),
        ("QATCONVERT_CONVERT_ONNX_DTYPE", "float3", "did you mean float32?"),
    ],
)
def test_a_wrong_value_is_told_with_the_variable(qatconvert, error_of, variable, value, told):
    line = error_of(qatconvert("gemma4-demo", environment={variable: value}), status=2)
    assert told in line
    assert line.endswith(f"(from the environment: {variable})")
    assert "environment" not in error_of(qatconvert("gemma4-demo", "--num-ctx", "x"), status=2)


def test_every_option_of_every_command_has_one():
    context = click.Context(group)
    for name in group.list_commands(context):
        _, command, _ = group.resolve_command(context, [name])
        for option in command.get_params(context):
            if isinstance(option, click.Option) and not BARE & set(option.opts):
                flag = max(option.opts, key=len).removeprefix("--")
                assert option.envvar == re.sub("-", "_", f"QATCONVERT_{name}_{flag}").upper()


@pytest.mark.parametrize(
    "words",
    [
        ["--debug", "inspect", "x.gguf"],
        ["inspect", "x.gguf", "--debug"],
        ["x.gguf", "--debug"],
        ["verify", "x", "--debug"],
        ["modelfile", "x.gguf", "--debug"],
        ["models", "remove", "x", "--debug"],
        ["models", "--debug", "remove", "x"],
    ],
)
def test_a_traceback_can_be_asked_for_anywhere(qatconvert, words):
    done = qatconvert(*words)
    assert "Traceback (most recent call last)" in done.stderr
    assert "qatconvert: " not in done.stderr
    bare = [word for word in words if word != "--debug"]
    assert "Traceback" in qatconvert(*bare, environment={"QATCONVERT_DEBUG": "1"}).stderr
    assert "Traceback" not in qatconvert(*bare).stderr


def test_a_text_that_reads_like_the_option_is_none(qatconvert, error_of):
    error_of(qatconvert("x.gguf", "--system", "--debug"), status=2)


def test_the_help_of_every_command_groups_its_options(qatconvert):
    for name in ("convert", "inspect", "validate", "verify", "modelfile", "completion", "doctor"):
        told = qatconvert(name, "--help").stdout
        assert "\nOptions:" not in told, name
        assert "\nResults and messages:" in told
