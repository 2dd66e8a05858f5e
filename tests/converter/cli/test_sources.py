"""A model in a kind of source that another distribution brings, as a user names it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support.outside import OUTSIDE, archive_source, register

write_zip = archive_source().write_zip


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """In which the distribution of ``tests/outside`` is installed."""
    register(tmp_path / "packages")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "packages"), str(OUTSIDE)])}


@pytest.fixture
def archive(checkpoint_factory, tmp_path) -> Path:
    return write_zip(checkpoint_factory("text"), tmp_path / "small-model.zip")


def test_it_is_converted_under_its_name_and_verified(qatconvert, environment, archive, tmp_path):
    out = tmp_path / "work" / "small-model-qatconvert"
    done = qatconvert(archive, "--no-validate", "-q", environment=environment)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (out / "gguf").iterdir()] == ["small-model-q4_0.gguf"]
    done = qatconvert("verify", out, "--rebuild", "--reference", archive, environment=environment)
    assert done.returncode == 0, done.stderr
    without = qatconvert("verify", out, "--rebuild", environment=environment)
    assert "names its source only as the file small-model.zip, which has no commit" in without.stderr


def test_it_has_a_modelfile_and_is_inspected(qatconvert, environment, archive, checkpoint_factory):
    def of(model):
        done = qatconvert("modelfile", model, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    directory = checkpoint_factory("text")
    assert of(archive) == of(directory).replace(directory.name, "small-model")
    done = qatconvert("inspect", archive, "--target", "gguf", "--json", "-q", environment=environment)
    assert json.loads(done.stdout)["source"]["path"] == "small-model.zip"


def test_without_the_distribution_it_is_one_line(qatconvert, archive, error_of):
    line = error_of(qatconvert("inspect", archive))
    assert "small-model.zip: not a GGUF file (safetensors: give the directory with config.json)" in line
