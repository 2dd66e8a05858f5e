"""``qatconvert models`` and the names on the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from support.distributions import write_distribution
from support.terminal import on_terminal


def listed(qatconvert):
    return {model["name"]: model for model in json.loads(qatconvert("models", "--json").stdout)}


def test_every_alias_is_listed_with_what_it_stands_for_and_takes(qatconvert):
    done = qatconvert("models")
    assert done.returncode == 0
    lines = {line.split(maxsplit=1)[0]: line for line in done.stdout.splitlines() if line}
    assert re.split("  +", lines["gemma4-e2b"]) == [
        "gemma4-e2b", "about 10.2 GB", "300 MB to 1.1 GB", "gguf, litert, onnx",
        "google/gemma-4-E2B-it-qat-q4_0-unquantized",
    ]  # fmt: skip
    assert re.split("  +", lines["gemma4-demo"]) == [
        "gemma4-demo", "none", "110 MB to 650 MB", "gguf, litert, onnx", "ships with qatconvert",
    ]  # fmt: skip
    assert "unknown" in lines["gemma4-31b"]
    assert "gguf" in lines["gemma4-e4b-mobile"]
    assert "google/gemma-4-26B-A4B-it-qat-q4_0-unquantized" in lines["gemma4-26b-a4b"]


def test_what_registries_have_is_what_can_be_converted(qatconvert, tmp_path):
    """A target that lacks the family is not among them, and what keeps a form from being read is told."""
    modules = {
        "packed": """
            from converter.checkpoint.stored import Form, Layout

            form = Form("packed", "packed codes", lambda config: "quantization_config" in config, Layout)
        """,
        "paper": "target = None",
    }
    points = {
        "qatconvert.forms": {"packed": "packed:form"},
        "qatconvert.targets": {"paper": "paper:target"},
        "qatconvert.families.paper": {"gemma3": "paper:target"},
    }
    site = write_distribution(tmp_path / "site", "packed", points, modules)
    environment = {"PYTHONPATH": str(site)}
    done = qatconvert("models", "--json", environment=environment)
    models = {model["name"]: model for model in json.loads(done.stdout)}
    assert models["gemma4-e2b"]["targets"] == ["gguf", "litert", "onnx"]
    assert models["gemma4-e2b-mobile"]["targets"] == []
    why = "the stored forms 'gemma-mobile' and 'packed' recognise it"
    assert why in models["gemma4-e2b-mobile"]["why"]
    told = qatconvert("models", environment=environment).stdout
    mobile = "gemma4-e2b-mobile, gemma4-e4b-mobile, gemma4-demo-mobile"
    assert f"not yet: {mobile}: config.json: {why}" in told


@pytest.mark.parametrize("columns", [80, 60])
def test_the_table_fits_a_terminal(columns, tmp_path):
    program = str(Path(sys.executable).with_name("qatconvert"))
    status, text = on_terminal([program, "models"], columns, tmp_path, {"QATCONVERT_HOME": str(tmp_path)})
    assert status == 0
    assert max(map(len, text.splitlines())) <= columns
    assert "google/gemma-4-26B-A4B-it-qat-q4_0-unquantized" in text


def test_a_name_can_be_added_listed_and_removed(qatconvert):
    assert qatconvert("models", "add", "gemma4-9b", "my-team/gemma-4-9B").returncode == 0
    found = listed(qatconvert)["gemma4-9b"]
    assert (found["repo"], found["origin"], found["targets"]) == ("my-team/gemma-4-9B", "user", None)
    assert "my-team/gemma-4-9B (yours)" in qatconvert("models").stdout
    assert qatconvert("models", "remove", "gemma4-9b").returncode == 0
    assert "my-team" not in qatconvert("models").stdout


def test_an_unknown_name_is_wrong_usage_and_suggests_what_comes_close(qatconvert):
    done = qatconvert("gemma4-dmeo")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "gemma4-demo" in done.stderr
    assert done.stdout == ""


def test_an_unknown_target_lists_the_known_ones(qatconvert):
    done = qatconvert("gemma4-demo", "--target", "tflite")
    assert done.returncode == 2
    assert "unknown target 'tflite' (did you mean litert?); known: gguf" in done.stderr


def test_an_unknown_option_is_wrong_usage(qatconvert):
    done = qatconvert("gemma4-demo", "--tarjet", "gguf")
    assert done.returncode == 2
    assert "--tarjet" in done.stderr


def test_without_arguments_the_help_is_shown(qatconvert):
    done = qatconvert()
    assert "Usage: qatconvert" in done.stdout + done.stderr
    for command in ("convert", "inspect", "validate", "modelfile", "models"):
        assert command in done.stdout + done.stderr
