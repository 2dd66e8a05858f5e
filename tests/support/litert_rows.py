"""Codes with one float32 scale for each row, in small TFLite graphs that LiteRT runs."""

from __future__ import annotations

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from converter.checkpoint.weight import NEEDS_F32_SCALE, Lattice, LatticeRows, Weight
from targets.litert.filling import fill

MATRIX = "layers.0.mlp.down_proj.weight"
TABLE = "embed_tokens.weight"
HEAD = "lm_head.weight"
#: A table that is looked up, and the head that is tied to it.
EMBEDDING_HEAD = (TABLE, HEAD)
BITS = {2: "INT2 per row", 4: "INT4 per row", 8: "INT8 per row"}
ROWS, COLUMNS = 48, 96
XNNPACK = OpResolverType.AUTO
PLAIN = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def rows_of(bits, name=MATRIX, shape=(ROWS, COLUMNS), scales=None, *, stored=True, seed=0):
    """A weight of random codes and scales that no shorter number holds; ``stored`` scales are read alone."""
    random = np.random.default_rng(seed)
    codes = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)
    codes[0, :2] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if scales is None:
        scales = random.uniform(0.01, 0.1, shape[0])
    scales = np.array(scales, np.float32).reshape(-1, 1)
    status = np.full(scales.shape, NEEDS_F32_SCALE, np.uint8)
    return Weight(
        name,
        name,
        shape,
        "F32",
        lambda start, stop: codes[start:stop] * scales[start:stop],
        Lattice(bits, 0),
        lambda start, stop: LatticeRows(codes[start:stop], scales[start:stop], status[start:stop]),
        scales=(lambda start, stop: scales[start:stop]) if stored else None,
    )


def values(weight):
    return weight.floats(0, weight.rows)


def write(path, flatbuffer, weights, formats, **options):
    with open(path, "wb") as output:
        filled = fill(flatbuffer, {weight.name: weight for weight in weights}, formats, output, **options)
    return filled


def run(path, resolver=XNNPACK, **inputs):
    made = Interpreter(model_path=str(path), experimental_op_resolver_type=resolver)
    return made.get_signature_runner("function_0")(**inputs)
