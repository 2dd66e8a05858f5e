"""Checkpoints in the form, for tests; see ``support.outside.PackedForm``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.opened import open_checkpoint
from qatconvert_int4.form import GROUP, METHOD, packed, unpacked
from support.raw_safetensors import write_shards, write_tensors

__all__ = ["GROUP", "METHOD", "packed", "tensors_of", "unpacked", "write_packed"]

Array = NDArray[np.generic]


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
