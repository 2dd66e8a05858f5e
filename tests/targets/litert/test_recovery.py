"""The lattice that ai-edge-quantizer's own recovery does not find is exact in what is written here.

Its algorithm ``dequantized_weight_recovery`` takes the smallest difference between two values of a block for
the scale. That holds for products of a scale and codes as float32 gives them; a checkpoint has them rounded
to bfloat16.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer")
from ai_edge_quantizer import quantizer

from converter.checkpoint.lattice import bf16_bits
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.weight import EXACT, Lattice, Weight
from support.litert_graph import graph
from targets.litert.filling import fill
from targets.litert.reading import describe, describe_models, open_models

RECIPE = [
    {
        "regex": ".*",
        "operation": "FULLY_CONNECTED",
        "algorithm_key": "dequantized_weight_recovery",
        "op_config": {
            "weight_tensor_config": {
                "num_bits": 4,
                "symmetric": True,
                "granularity": "BLOCKWISE_32",
                "dtype": "INT",
            },
            "compute_precision": "INTEGER",
            "explicit_dequantize": False,
            "skip_checks": False,
            "min_weight_elements": 0,
        },
    }
]


def write(path, weight, format):
    """A model that multiplies with one weight; its path."""
    flatbuffer = graph(lambda f: f.multiply(weight.name, *weight.shape, 4))
    with path.open("wb") as output:
        fill(flatbuffer, {weight.name: weight}, {weight.name: format}, output)
    return path


def recover(path):
    """The model with the codes and scales that the library finds."""
    made = quantizer.Quantizer(str(path), RECIPE).quantize(enable_progress_report=False)
    made.export_model(str(path.with_suffix(".recovered.tflite")))
    return path.with_suffix(".recovered.tflite")


def stored(path, weight):
    """The numbers that a model has for a weight."""
    return describe_models(open_models(path), {weight.name: weight})[weight.name].floats(0, weight.rows)


def matrices(checkpoint):
    weights = checkpoint.weights.values()
    return [one for one in weights if one.lattice == Lattice(4, 32) and len(one.shape) == 2]


def test_the_librarys_recovery_raises_where_the_export_is_exact(demo_checkpoint, tmp_path):
    weights = matrices(open_checkpoint(demo_checkpoint))
    assert len(weights) > 70
    for weight in weights:
        assert (weight.codes(0, weight.rows).status == EXACT).all()
        path = write(tmp_path / "float.tflite", weight, "FLOAT")
        with pytest.raises(ValueError, match="Failed to recover weights"):
            recover(path)
        exact = stored(write(tmp_path / "int4.tflite", weight, "INT4"), weight)
        assert np.array_equal(bf16_bits(exact), bf16_bits(weight.floats(0, weight.rows)))


def test_the_bundle_of_the_same_checkpoint_holds_the_same_lattice(litert_bundle, demo_checkpoint):
    checkpoint = open_checkpoint(demo_checkpoint)
    found = describe(litert_bundle("demo"), checkpoint)
    for weight in matrices(checkpoint):
        assert found[weight.name].type == "INT4"
        values = found[weight.name].floats(0, weight.rows)
        assert np.array_equal(bf16_bits(values), bf16_bits(weight.floats(0, weight.rows)))


def test_the_librarys_recovery_finds_products_that_were_not_rounded(tmp_path):
    """It is used as it is meant to be: on the lattice that it was made for it succeeds."""
    random = np.random.default_rng(0)
    codes = random.integers(-7, 8, (48, 96))
    codes[:, ::32], codes[:, 1::32] = 7, 1  # some difference in every block is the scale itself
    scales = 2.0 ** random.integers(-6, -2, (48, 3))
    values = (codes * np.repeat(scales, 32, axis=1)).astype(np.float32)
    weight = Weight("w", "w", (48, 96), "BF16", lambda start, stop: values[start:stop])
    np.testing.assert_array_equal(
        stored(recover(write(tmp_path / "m.tflite", weight, "FLOAT")), weight), values
    )
