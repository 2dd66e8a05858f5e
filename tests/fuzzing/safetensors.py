"""Safetensors: header, offsets, shapes, dtypes and the index of a checkpoint of several files."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from checkpoints.generate import write_checkpoint
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.safetensors import DTYPE_BITS
from converter.filenames import INDEX
from fuzzing import Damage, Files, Format, damages

#: A checkpoint of 0.4 MB with sliding, full and sharing layers and per-layer inputs.
SMALL = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_hidden_layers": 3,
    "num_kv_shared_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 1,
    "global_head_dim": 32,
}


def write_small(directory: Path, shards: int = 2) -> None:
    """A small checkpoint."""
    write_checkpoint(directory, "text", text=SMALL, shards=shards)


def damage(files: Files, random: Random) -> Damage:
    """One shard with another header, or the index."""
    if random.random() < 0.2:
        return {INDEX: damages.with_json(files[INDEX], random)}
    name = random.choice([name for name in files if name.endswith(".safetensors")])
    data = files[name]
    end = 8 + int.from_bytes(data[:8], "little")
    kind = random.randrange(8)
    if kind == 0:
        return {name: damages.with_number(data, 0, "<Q", random)}
    if kind == 1:
        return {name: damages.with_bytes(data, random, end)}
    if kind == 2:
        return {name: damages.with_bytes(data, random)}
    if kind == 3:
        return {name: _whole(damages.with_json(data[8:end], random), data[end:])}
    header: dict[str, Any] = json.loads(data[8:end])
    for _ in range(random.choice((1, 1, 2))):
        _change(header, random)
    return {name: _whole(damages.encoded(header, random), data[end:])}


def _whole(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _change(header: dict[str, Any], random: Random) -> None:
    """Another description of a tensor."""
    names = [name for name, entry in header.items() if isinstance(entry, dict) and "shape" in entry]
    name, other = random.choice(names), random.choice(names)
    entry = header[name]
    kind = random.randrange(7)
    if kind == 0:
        entry["dtype"] = random.choice((*DTYPE_BITS, "bf16", "", None))
    elif kind == 1 and entry["shape"]:
        entry["shape"][random.randrange(len(entry["shape"]))] = random.choice(
            (damages.integer(random), damages.value(random))
        )
    elif kind == 2:
        entry["shape"] = entry["shape"] * random.choice((0, 2, 5)) + [1] * random.choice((0, 1))
    elif kind == 3:
        entry["data_offsets"][random.randrange(2)] = random.choice(
            (damages.integer(random), damages.value(random))
        )
    elif kind == 4:
        header[name], header[other] = header[other], entry
    elif kind == 5:
        header[random.choice((*damages.TEXTS, "lm_head.weight", "model.layers.9.mlp.up_proj.weight"))] = (
            header.pop(name)
        )
    else:
        entry["data_offsets"] = list(header[other]["data_offsets"])


def read(directory: Path) -> None:
    """Open the checkpoint, and read every weight as a conversion does."""
    for weight in open_checkpoint(directory).weights.values():
        for start, stop in weight.row_ranges():
            if weight.codes is not None:
                weight.codes(start, stop)
            weight.floats(start, stop)


FORMAT = Format("safetensors", write_small, damage, read)
