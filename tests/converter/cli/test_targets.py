"""``--target`` names what can be written."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["-t", "gguf,onnx"], ["gguf", "onnx"]),
        (["-t", "onnx", "-t", "gguf, onnx"], ["gguf", "onnx"]),
        (["-t", "all"], ["gguf", "litert", "onnx"]),
        (["-t", "gguf,all"], ["gguf", "litert", "onnx"]),
        ([], ["gguf", "litert", "onnx"]),
    ],
)
def test_several_are_named_at_once(qatconvert, words, names):
    done = qatconvert("inspect", "gemma4-demo", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["targets"]) == names


def test_a_conversion_takes_them_too(qatconvert, tmp_path):
    words = ("gemma4-demo", "-t", "onnx,gguf", "--no-validate", "--json", "-o", tmp_path / "out")
    done = qatconvert(*words)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["targets"]) == ["gguf", "onnx"]


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_the_help_lists_those_that_are_registered(qatconvert, command):
    assert "gguf, litert, onnx, several" in " ".join(qatconvert(command, "--help").stdout.split())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("ggfu", "unknown target 'ggfu' (did you mean gguf?); known: gguf, litert, onnx"),
        ("gguf,ggfu", "unknown target 'ggfu' (did you mean gguf?)"),
        ("all,tensorrt", "unknown target 'tensorrt'; known: gguf"),
        ("gguf,", "unknown target ''; known: gguf"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_another_name_is_refused_and_a_near_one_proposed(qatconvert, error_of, command, given, told):
    assert told in error_of(qatconvert(command, "gemma4-demo", "-t", given), status=2)
