"""Parts of an ONNX graph to change, and what is read of the changed file."""

from __future__ import annotations

import onnx
import pytest

from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.errors import CheckpointError
from targets.onnx.reading import describe

CODES = "model.layers.0.mlp.down_proj.weight"
SCALES = "model.layers.0.mlp.down_proj.scales"
NORM = "model.norm.weight"


def load(path):
    """The graph of a file, without its data."""
    return onnx.load(path, load_external_data=False)


def initializer(model, name):
    """A graph's constant by its name."""
    return next(one for one in model.graph.initializer if one.name == name)


def user(model, name):
    """The first node that takes ``name``."""
    return next(node for node in model.graph.node if name in node.input)


def entry(tensor, key):
    """What a constant says of its external data: ``location``, ``offset`` or ``length``."""
    return next(one for one in tensor.external_data if one.key == key)


def read_all(path, checkpoint):
    """All weights of the file as floats, by canonical name."""
    found = describe(path, checkpoint)
    return {name: found[name].floats(0, weight.rows) for name, weight in checkpoint.weights.items()}


def refused(path, checkpoint, message):
    """Reading the file ends with one printable line that matches ``message``."""
    with pytest.raises(CheckpointError, match=message) as error:
        read_all(path, checkpoint)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert str(path.parent) in str(error.value)


def as_bf16(values):
    """Rounded to bfloat16, as floats."""
    return bf16_floats(bf16_bits(values))
