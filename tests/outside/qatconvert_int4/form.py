"""The stored form ``int4-groups``: int4 codes in groups of 128 with a scale each, two codes a byte.

A matrix is ``weight_packed`` (U8 ``[rows, columns / 2]``, of two codes the first in the low bits, each plus
8) and ``weight_scale`` (F32 or F16 ``[rows, columns / 128]``). Anything else is a tensor of its own name.
Modules may have an ``input_scale``, attentions a ``k_scale`` and a ``v_scale`` of their caches.
Zero points are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.safetensors import SourceTensor
from converter.checkpoint.stored import Form, Layout, Parameters, Tensors
from converter.checkpoint.stored.modules import as_floats
from converter.checkpoint.stored.unquantized import make_weight
from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, Lattice, LatticeRows, Weight
from converter.errors import CheckpointError

GROUP = 128
METHOD = "int4-groups"

Array = NDArray[np.generic]


def recognises(config: Mapping[str, object]) -> bool:
    """Whether the configuration names this form."""
    section = config.get("quantization_config")
    return isinstance(section, Mapping) and section.get("quant_method") == METHOD


def layout(config: Mapping[str, object]) -> Layout:
    """How a checkpoint stores its modules; raises ``CheckpointError`` for zero points."""
    section = config["quantization_config"]
    if not isinstance(section, Mapping) or section.get("symmetric") is not True:
        raise CheckpointError("config.json: quantization_config asks for zero points, which are not read")
    return Layout(parameters, make, weight_of, shape, scales)


def parameters(name: str) -> tuple[Parameters, ...]:
    """A weight is codes with scales, or a tensor of its own name."""
    return (
        Parameters({"packed": f"{name}_packed", "scale": f"{name}_scale"}),
        Parameters({"weight": name}),
    )


def weight_of(name: str) -> str:
    """The weight that a tensor belongs to."""
    return name.removesuffix("_packed") if name.endswith("_packed") else name.removesuffix("_scale")


def shape(tensors: Tensors) -> tuple[int, ...]:
    """The shape of a weight, by what is packed of it."""
    if "weight" in tensors:
        return tensors["weight"].shape
    *rows, pairs = tensors["packed"].shape or (0,)
    return (*rows, 2 * pairs)


def scales(module: str) -> dict[str, str]:
    """Tensors with scales of what goes through a module, and of its caches."""
    return {"input": f"{module}.input_scale", "key": f"{module}.k_scale", "value": f"{module}.v_scale"}


def make(name: str, shape: tuple[int, ...], tensors: Tensors) -> Weight:
    """The weight; raises ``CheckpointError`` for tensors of other dtypes or shapes."""
    if "weight" in tensors:
        return replace(make_weight(name, tensors["weight"], shape), coded=False)
    packed, scale = tensors["packed"], tensors["scale"]
    _check(packed, ("U8",), (*shape[:-1], shape[-1] // 2))
    _check(scale, ("F32", "F16"), (*shape[:-1], shape[-1] // GROUP))

    def codes(start: int, stop: int) -> LatticeRows:
        values = as_floats(scale.read_rows(start, stop))
        narrow = values.astype(np.float16).astype(np.float32) == values
        status = np.where(narrow, EXACT, NEEDS_F32_SCALE).astype(np.uint8)
        return LatticeRows(unpacked(packed.read_rows(start, stop)), values, status)

    def floats(start: int, stop: int) -> NDArray[np.float32]:
        rows = codes(start, stop)
        return np.repeat(rows.scales, GROUP, axis=1) * rows.codes

    return Weight(name, packed.name, shape, "I4", floats, Lattice(4, GROUP), codes, coded=True)


def _check(tensor: SourceTensor, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if tensor.dtype not in dtypes or tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.where} is {tensor.dtype} {list(tensor.shape)}, expected {dtypes[0]} {list(shape)}"
        )


def unpacked(pairs: Array) -> NDArray[np.int8]:
    """Codes ``[rows, columns]`` of bytes ``[rows, columns / 2]``."""
    both = np.stack([pairs & 15, pairs >> 4], axis=-1).astype(np.int8) - 8
    return both.reshape(pairs.shape[0], -1).astype(np.int8)


def packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """What ``unpacked`` reads."""
    pairs = (codes + 8).astype(np.uint8)
    return pairs[..., ::2] | pairs[..., 1::2] << 4


FORM = Form(METHOD, "int4 in groups of 128", recognises, layout, loads_as_stored=False)
