"""An ONNX model to read, and copies of it to damage."""

from __future__ import annotations

import shutil

import pytest

from converter.checkpoint.opened import open_checkpoint
from support.onnx_weights import DATA, write


@pytest.fixture(scope="module")
def checkpoint(checkpoint_factory):
    """A small checkpoint."""
    return open_checkpoint(checkpoint_factory("text"))


@pytest.fixture(scope="module")
def original(checkpoint, tmp_path_factory):
    """Its ONNX model, which nobody may change."""
    return write(checkpoint, tmp_path_factory.mktemp("onnx")).path


@pytest.fixture
def artifact(original, tmp_path):
    """A copy of ``original`` and its data to damage."""
    for file in (original, original.with_name(DATA)):
        shutil.copy(file, tmp_path)
    return tmp_path / original.name
