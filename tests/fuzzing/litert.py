"""Bundles for LiteRT-LM: header, sections, and the TFLite flatbuffer in one."""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converter.checkpoint.excerpt import Excerpt
from converter.checkpoint.weight import EXACT, Lattice, LatticeRows, Weight
from fuzzing import Damage, Files, Format, damages
from support.litert_graph import graph
from targets.litert.bundle import Section, read_section, read_sections, write_bundle
from targets.litert.filling import fill
from targets.litert.reading import describe, open_models
from targets.litert.sections import MODEL, PREFILL_DECODE
from targets.litert.widening import widened_bytes

_FILE = "m.litertlm"
_BUFFERS = 4096
_MATRIX, _TABLE, _NORM = "layers.0.mlp.down_proj.weight", "embed_tokens.weight", "norm.weight"
_NAMES = (
    *(f"layers.{layer}.self_attn.q_proj.weight" for layer in range(3)),
    *(f"kv_cache_k_{layer}" for layer in (0, 1, 99)),
    "logits",
    "lm_head.weight",
)
_SHAPE = (32, 64)
_EXCERPT = Excerpt((0,), 2, 2, ("full", "full"))
_LARGEST = 1 << 20


def _codes(start: int, stop: int) -> LatticeRows:
    rows = np.arange(start, stop)[:, None] + np.arange(_SHAPE[1])[None]
    scales = np.full((stop - start, 2), 0.5, np.float32)
    return LatticeRows(((rows % 16) - 8).astype(np.int8), scales, np.full(scales.shape, EXACT, np.uint8))


def _floats(start: int, stop: int) -> Any:
    return _codes(start, stop).codes * np.float32(0.5)


_NUMBERS = (np.arange(24, dtype=np.float32) - 11) / 16
_WEIGHTS = {
    **{
        name: Weight(name, name, _SHAPE, "BF16", _floats, Lattice(4, 32), _codes)
        for name in (_MATRIX, _TABLE)
    },
    _NORM: Weight(_NORM, _NORM, (24,), "F32", lambda start, stop: _NUMBERS[None][start:stop]),
}
_CHECKPOINT: Any = SimpleNamespace(weights=_WEIGHTS, architecture=SimpleNamespace(offset_of=lambda name: 0.0))


def _build(function: Any) -> None:
    function.multiply(_MATRIX, *_SHAPE, 4)
    function.look_up(_TABLE, *_SHAPE, 4)
    function.scale("norm", 24, _NUMBERS)


def write(directory: Path) -> None:
    """A bundle with one small model."""
    directory.mkdir(parents=True, exist_ok=True)
    sections = [
        Section("LlmMetadataProto", b"\x0a\x00"),
        Section("HF_Tokenizer_Zlib", b"tokens"),
        Section(
            MODEL,
            lambda stream: fill(graph(_build), _WEIGHTS, {_MATRIX: "INT4", _TABLE: "INT4"}, stream),
            PREFILL_DECODE,
        ),
    ]
    write_bundle(directory / _FILE, sections)


@lru_cache(1)
def _model_begin(path: Path) -> int:
    return next(section.offset for section in read_sections(path) if section.kind == MODEL)


@lru_cache(1)
def _begin(data: bytes) -> int:
    return data.index(b"TFL3") - 4


def damage(files: Files, random: Random) -> Damage:
    """The bundle with another header or model."""
    data = files[_FILE]
    begin = _begin(data)
    header = struct.unpack_from("<Q", data, 24)[0]
    kind = random.randrange(8)
    if kind == 0:
        return {_FILE: damages.with_bytes(data, random)}
    if kind == 1:
        return {_FILE: damages.with_number(data, random.choice((8, 12, 16, 20, 24)), "<I", random)}
    if kind <= 3:
        return {_FILE: _numbers(data, 24, header, random)}
    if kind <= 5:
        return {_FILE: _numbers(data, begin, begin + _BUFFERS, random)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data[begin : begin + _BUFFERS], 0))
    for _ in range(random.choice((1, 1, 2, 4))):
        _change(model, random)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    head = bytes(builder.Output())
    return {_FILE: data[:begin] + head.ljust(_BUFFERS, b"\0") + data[begin + _BUFFERS :]}


def _numbers(data: bytes, start: int, stop: int, random: Random) -> bytes:
    """Other numbers of a flatbuffer, which begin at multiples of their size."""
    for _ in range(random.choice((1, 1, 2, 4))):
        format = random.choice(("<H", "<I", "<I", "<Q"))
        size = struct.calcsize(format)
        data = damages.with_number(
            data, start + size * random.randrange((stop - start) // size), format, random
        )
    return data


def _change(model: Any, random: Random) -> None:
    """Another tensor, buffer or operator."""
    subgraph = random.choice(model.subgraphs)
    tensor, operator = random.choice(subgraph.tensors), random.choice(subgraph.operators)
    quantized = [one for one in subgraph.tensors if one.quantization and one.quantization.details]
    kind = random.randrange(10)
    if kind >= 8 and model.signatureDefs:
        _sign(random.choice(model.signatureDefs), random)
    elif kind == 0:
        tensor.shape = random.choice(
            ([], [0], [-1, 32], [1 << 30] * 8, [32] * 9, [24], list(tensor.shape) * 2)
        )
    elif kind == 1:
        tensor.type = random.choice((0, 1, 2, 9, 17, 99))
    elif kind == 2:
        tensor.buffer = random.choice((0, 1, 2, len(model.buffers), (1 << 32) - 1))
    elif kind == 3:
        buffer = random.choice(model.buffers)
        setattr(buffer, random.choice(("offset", "size")), damages.integer(random))
    elif kind == 4:
        tensor.name = random.choice(
            (*damages.TEXTS, *_NAMES, _MATRIX, _TABLE, random.choice(subgraph.tensors).name)
        )
    elif kind == 5:
        operator.inputs = [
            random.choice((-1, 0, 1, 5, 1 << 30, -(1 << 31))) for _ in range(random.choice((0, 2, 9)))
        ]
    elif kind == 6:
        operator.opcodeIndex = random.choice((0, 1, 99, (1 << 32) - 1))
    elif quantized:
        details = random.choice(quantized).quantization.details
        number = random.choice((-1, 0, 1, 3, 64, 1 << 30, -(1 << 31)))
        setattr(details, random.choice(("scales", "zeroPoints", "blockSize")), number)


def _sign(signature: Any, random: Random) -> None:
    """Another function, or another input or output of it."""
    if random.randrange(3) == 0:
        signature.subgraphIndex = random.choice((0, 1, (1 << 32) - 1))
        return
    entry = random.choice([*signature.inputs, *signature.outputs])
    if random.randrange(2):
        entry.name = random.choice(_NAMES)
    else:
        entry.tensorIndex = random.choice((0, 1, 1 << 30, (1 << 32) - 1))


def read(directory: Path) -> None:
    """Every section that has a reader, every weight, and the graph as floats, whole and cut."""
    path = directory / _FILE
    for section in read_sections(path):
        if section.kind != MODEL:
            read_section(path, section, _LARGEST)
    for stored in describe(path, _CHECKPOINT).values():
        stored.floats(0, math.prod(stored.shape[:-1]))
    for model in open_models(path):
        for excerpt in (None, _EXCERPT):
            widened_bytes(model, excerpt)


FORMAT = Format("litert", write, damage, read)
