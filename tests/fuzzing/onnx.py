"""ONNX: initialisers, data in other files, nodes, attributes, and the wire format around them."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from onnx import ModelProto, TensorProto

from converter.checkpoint.opened import Checkpoint, open_checkpoint
from fuzzing import Damage, Files, Format, damages
from fuzzing.safetensors import write_small
from targets.target import find_target

_MODEL = "model/onnx/model.onnx"
_DATA = f"{_MODEL}.data"
_LOCATIONS = (
    "../model.onnx",
    "/etc/passwd",
    "",
    ".",
    "model.onnx",
    "genai_config.json",
    "a\nb",
    "missing",
    "a/../b",
)
_OPERATORS = (
    "MatMulNBits",
    "GatherBlockQuantized",
    "Cast",
    "Identity",
    "Transpose",
    "Gemm",
    "MatMul",
    "Loop",
    "x\ny",
)


def damage(files: Files, random: Random) -> Damage:
    """The graph with other parts, or other bytes; sometimes the data file is shorter or gone."""
    data = files[_MODEL]
    if random.random() < 0.03:
        return {_DATA: random.choice((None, b"", files[_DATA][:-1], files[_DATA][: len(files[_DATA]) // 2]))}
    if random.random() < 0.25:
        return {_MODEL: damages.with_bytes(data, random)}
    model = ModelProto.FromString(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        changed = _tensor if random.random() < 0.5 else _node
        changed(model.graph, random)
    return {_MODEL: model.SerializeToString()}


def _signed(random: Random) -> int:
    return damages.integer(random) - (1 << 63)


def _text(random: Random) -> str:
    return random.choice(damages.TEXTS)


def _tensor(graph: Any, random: Random) -> None:
    """Another initialiser."""
    tensor = random.choice(graph.initializer)
    other = random.choice(graph.initializer)
    kind = random.randrange(9)
    if kind == 0 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(
            (_signed(random), damages.integer(random, 31))
        )
    elif kind == 1:
        tensor.dims.extend([random.choice((0, 1, 2, 1 << 40))] * random.choice((1, 9)))
    elif kind == 2:
        tensor.data_type = random.choice((*TensorProto.DataType.values(), 99, -1))
    elif kind == 3:
        tensor.name = random.choice((other.name, _text(random)))
    elif kind == 4:
        tensor.data_location = random.choice((TensorProto.DEFAULT, TensorProto.EXTERNAL))
    elif kind == 5:
        tensor.raw_data = random.randbytes(random.choice((0, 1, 64)))
    elif kind == 6:
        tensor.CopyFrom(other)
    elif tensor.external_data:
        entry = random.choice(tensor.external_data)
        number = random.choice((str(damages.integer(random)), "-1", "1e3", "٣", "9" * 30, _text(random)))
        entry.value = random.choice(_LOCATIONS) if entry.key == "location" else number
    else:
        graph.initializer.remove(tensor)


def _node(graph: Any, random: Random) -> None:
    """Another node."""
    node, other = random.choice(graph.node), random.choice(graph.node)
    kind = random.randrange(9)
    if kind == 0:
        node.op_type = random.choice((*_OPERATORS, other.op_type))
    elif kind == 1:
        node.domain = random.choice(("", "ai.onnx", "com.microsoft", _text(random)))
    elif kind == 2 and node.input:
        node.input[random.randrange(len(node.input))] = random.choice(
            (*other.output, *other.input, "", _text(random))
        )
    elif kind == 3 and node.output:
        node.output[random.randrange(len(node.output))] = random.choice(
            (*other.output, *node.input, _text(random))
        )
    elif kind == 4:
        graph.node.remove(node)
    elif kind == 5:
        graph.node.add().CopyFrom(node)
    elif kind == 6:
        node.input.extend([_text(random)] * random.choice((1, 1000)))
    elif node.attribute:
        _attribute(random.choice(node.attribute), graph, random)


def _attribute(attribute: Any, graph: Any, random: Random) -> None:
    kind = random.randrange(5)
    if kind == 0:
        attribute.type = random.choice((0, 1, 2, 5, 7))
    elif kind == 1:
        attribute.name = random.choice(
            ("K", "N", "bits", "block_size", "perm", "to", "transB", _text(random))
        )
    elif kind == 2:
        attribute.ints.extend([_signed(random)] * random.choice((1, 9)))
    elif kind == 3:
        attribute.g.initializer.add().CopyFrom(random.choice(graph.initializer))
    else:
        attribute.i = random.choice((_signed(random), damages.integer(random, 31)))


@lru_cache(1)
def _checkpoint(directory: Path) -> Checkpoint:
    return open_checkpoint(directory)


def write(directory: Path) -> None:
    """A small checkpoint and its ONNX model."""
    write_small(directory / "checkpoint")
    checkpoint, target = open_checkpoint(directory / "checkpoint"), find_target("onnx")
    target.write(checkpoint, target.plan(checkpoint, "model", {}), directory / "model")


def read(directory: Path) -> None:
    """Every file of the model, and every weight."""
    target = find_target("onnx")
    target.files(directory / _MODEL)
    for stored in target.describe(directory / _MODEL, _checkpoint(directory / "checkpoint")).values():
        stored.floats(0, math.prod(stored.shape[:-1]))


FORMAT = Format("onnx", write, damage, read)
