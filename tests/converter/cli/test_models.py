"""``qatconvert models`` and the names on the command line."""

from __future__ import annotations

import json


def test_every_alias_is_listed_with_its_repository(qatconvert):
    done = qatconvert("models")
    assert done.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["gemma4-e2b"] == "google/gemma-4-E2B-it-qat-q4_0-unquantized"
    assert lines["gemma4-26b-a4b"] == "google/gemma-4-26B-A4B-it-qat-q4_0-unquantized"
    assert lines["gemma4-e4b-mobile"] == "google/gemma-4-E4B-it-qat-mobile-transformers"
    assert lines["gemma4-demo"] == "ships with qatconvert"


def test_a_name_can_be_added_listed_and_removed(qatconvert):
    assert qatconvert("models", "add", "gemma4-9b", "my-team/gemma-4-9B").returncode == 0
    listed = json.loads(qatconvert("models", "--json").stdout)
    assert {"name": "gemma4-9b", "repo": "my-team/gemma-4-9B", "origin": "user"} in listed
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
