"""A stored form that only tests register: int4 codes in groups of 128, two codes a byte.

A matrix is ``weight_packed`` (U8 ``[rows, columns / 2]``, of two codes the first in the low bits, each plus
8) and ``weight_scale`` (F32 or F16 ``[rows, columns / 128]``). Anything else is a tensor of its own name.
Modules may have an ``input_scale``, attentions a ``k_scale`` and a ``v_scale`` of their caches.
Zero points are refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.safetensors import SourceTensor
from converter.checkpoint.stored import Form, Layout, Parameters, Tensors
from converter.checkpoint.stored.modules import as_floats
from converter.checkpoint.stored.unquantized import make_weight
from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, Lattice, LatticeRows, Weight
from converter.errors import CheckpointError
from support.raw_safetensors import write_shards, write_tensors

GROUP = 128
METHOD = "packed-test"

Array = NDArray[np.generic]


def recognises(config: Mapping[str, object]) -> bool:
    section = config.get("quantization_config")
    return isinstance(section, Mapping) and section.get("quant_method") == METHOD


def layout(config: Mapping[str, object]) -> Layout:
    section = config["quantization_config"]
    if not isinstance(section, Mapping) or section.get("symmetric") is not True:
        raise CheckpointError("config.json: quantization_config asks for zero points, which are not read")
    return Layout(parameters, make, scales)


def parameters(name: str) -> tuple[Parameters, ...]:
    return (
        Parameters({"packed": f"{name}_packed", "scale": f"{name}_scale"}),
        Parameters({"weight": name}),
    )


def scales(module: str) -> dict[str, str]:
    return {"input": f"{module}.input_scale", "key": f"{module}.k_scale", "value": f"{module}.v_scale"}


def make(name: str, shape: tuple[int, ...], tensors: Tensors) -> Weight:
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


form = Form(METHOD, "int4 in groups of 128", recognises, layout)


def register(directory: Path, *names: str) -> None:
    """A distribution in ``directory`` that registers ``form`` under each of ``names`` (default: its own)."""
    own = directory / "packed_form-1.dist-info"
    own.mkdir(parents=True)
    (own / "METADATA").write_text("Metadata-Version: 2.1\nName: packed-form\nVersion: 1\n")
    lines = [f"{name} = support.packed_form:form" for name in names or (METHOD,)]
    (own / "entry_points.txt").write_text("\n".join(["[qatconvert.forms]", *lines, ""]))


def tensors_of(source: Path, dtype: str) -> dict[str, Array]:
    """The tensors of an unquantised checkpoint, every matrix of whole groups packed with invented codes and
    scales of ``dtype`` (``float16``, ``float32``)."""
    random = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for weight in open_checkpoint(source).weights.values():
        values = weight.floats(0, weight.rows)
        if len(weight.shape) == 2 and weight.columns % GROUP == 0:
            codes = random.integers(-8, 8, weight.shape).astype(np.int8)
            width = random.uniform(0.001, 0.01, (weight.rows, weight.columns // GROUP))
            found[f"{weight.source}_packed"] = packed(codes)
            found[f"{weight.source}_scale"] = width.astype(dtype)
        else:
            found[weight.source] = values.reshape(weight.shape)
    return found


def write_packed(source: Path, directory: Path, tensors: Mapping[str, Array], shards: int = 1) -> Path:
    """A checkpoint of these tensors, with the files beside the weights of the one in ``source``."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    if shards == 1:
        write_tensors(directory / "model.safetensors", tensors)
    else:
        names = list(tensors)
        parts = {
            f"model-{part}.safetensors": {name: tensors[name] for name in names[part::shards]}
            for part in range(shards)
        }
        write_shards(directory, parts)
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": METHOD, "symmetric": True}
    (directory / "config.json").write_text(json.dumps(config))
    return directory
