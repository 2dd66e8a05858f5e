"""Bundles that are not what the converter makes: the graph, the metadata or single bytes changed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from support.litert_repacking import repack
from targets.litert.sections import MODEL

#: Where the graph of a small model ends at most; weights begin at multiples of a page.
_PAGE = 4096


def edit_graph(bundle: Path, destination: Path, change: Callable[[Any], object]) -> Path:
    """Write ``bundle`` with its decoder's graph after ``change(model)``, all data behind it moved as a
    whole."""

    def edited(content: bytes) -> bytes:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        begin = min(buffer.offset for buffer in model.buffers if buffer.offset > 1)
        change(model)
        room = begin + (1 << 20)
        for buffer in model.buffers:
            if buffer.offset > 1:
                buffer.offset += room - begin
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        head = bytes(builder.Output())
        assert len(head) <= room
        return head.ljust(room, b"\0") + content[begin:]

    return repack(bundle, destination, MODEL, edited)


def operators(model: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Every operator of a kind, and its function."""
    kind = getattr(schema.BuiltinOperator, name)
    for function in model.subgraphs:
        for one in function.operators:
            code = model.operatorCodes[one.opcodeIndex]
            if max(code.builtinCode, code.deprecatedBuiltinCode) == kind:
                yield function, one


def add_operator(model: Any) -> None:
    """A backdoor: the logits go through one more operator."""
    function, last = next((f, f.operators[-1]) for f in model.subgraphs if f.name == b"decode")
    tensor = function.tensors[last.outputs[0]]
    made = schema.TensorT.InitFromObj(tensor) if hasattr(tensor, "Name") else schema.TensorT()
    made.name, made.shape, made.type, made.hasRank = b"between", tensor.shape, tensor.type, True
    function.tensors.append(made)
    between = len(function.tensors) - 1
    (_, copied), *_ = operators(model, "TANH")
    added = schema.OperatorT()
    added.opcodeIndex = copied.opcodeIndex
    added.inputs, added.outputs = np.array([between], np.int32), last.outputs
    last.outputs = np.array([between], np.int32)
    function.operators.append(added)


def swap_outputs(model: Any) -> None:
    """Two outputs of a signature lead to each other's tensor."""
    first, second = model.signatureDefs[0].outputs[:2]
    first.tensorIndex, second.tensorIndex = second.tensorIndex, first.tensorIndex


def swap_inputs(model: Any) -> None:
    """An operator takes its inputs the other way round."""
    _, one = next(operators(model, "SUB"))
    one.inputs = one.inputs[::-1].copy()


def change_axis(model: Any) -> None:
    """An option of an operator."""
    _, one = next(operators(model, "MEAN"))
    one.builtinOptions.keepDims = not one.builtinOptions.keepDims


def change_activation(model: Any) -> None:
    """An operator clips what it gives."""
    _, one = next(operators(model, "FULLY_CONNECTED"))
    one.builtinOptions.fusedActivationFunction = 1


def change_constant(model: Any, old: float, new: float) -> None:
    """Every float32 constant of one number that is ``old`` becomes ``new``; there must be one."""
    found = 0
    for buffer in model.buffers:
        if buffer.data is not None and bytes(buffer.data) == np.float32(old).tobytes():
            buffer.data = np.frombuffer(np.float32(new).tobytes(), np.uint8)
            found += 1
    assert found


def change_window(model: Any) -> None:
    """What positions are compared with to tell those within the sliding window: one more."""
    for function, one in operators(model, "LESS"):
        for index in one.inputs:
            buffer = model.buffers[function.tensors[index].buffer]
            if buffer.data is not None:
                values = np.frombuffer(bytes(buffer.data), "<i4") + 1
                buffer.data = np.frombuffer(values.astype("<i4").tobytes(), np.uint8)
                return
    raise AssertionError("no constant is compared with")


def add_metadata(model: Any) -> None:
    """Metadata by which a runtime may compute in half precision."""
    one, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = np.frombuffer(b"fp16", np.uint8)
    model.buffers.append(buffer)
    one.name, one.buffer = b"reduced_precision_support", len(model.buffers) - 1
    model.metadata.append(one)


def describe_otherwise(model: Any) -> None:
    """Another tool's name and names of tensors, and buffers in another order: nothing that decides."""
    model.description = b"another version"
    model.subgraphs[0].tensors[-1].name = b"another name"
    last = len(model.buffers)
    model.buffers += [copy.copy(buffer) for buffer in model.buffers[1:]]
    for function in model.subgraphs:
        for tensor in function.tensors:
            tensor.buffer = tensor.buffer and tensor.buffer + last - 1


def single_bytes(content: bytes, count: int, seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """``count`` copies of a file with one random byte changed, and where."""
    dice = random.Random(seed)
    for _ in range(count):
        place = dice.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= dice.randrange(1, 256)
        yield place, bytes(changed)
