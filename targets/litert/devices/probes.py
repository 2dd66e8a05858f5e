"""A small model with a function for each way in which a plan's operators read weights.

The functions are made as those of a bundle are: a graph of float32, whose weights the writer fills in the
types of the plan. So what a compiler says of them it says of the bundle's operators too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from targets.accelerators import Cell
from targets.litert.activations import Grid
from targets.litert.filling import fill
from targets.litert.storage import CODED
from targets.storing import held_as

#: What products on static grids are told as.
STATIC: Final = "static int8"
#: Rows that fill blocks and bytes of every type.
_ROWS: Final = 64
_COLUMNS: Final = 128
_GRID: Final = Grid(0.0625, 0.5)
_FLOAT: Final = schema.TensorType.FLOAT32
_INT: Final = schema.TensorType.INT32


def write_probes(cells: Sequence[Cell], path: Path) -> None:
    """Write the model with a function for each of ``cells``, in their order. Raises as ``fill`` does."""
    names = [f"probe.{number}" for number in range(len(cells))]
    weights = {
        name: held_as(name, CODED.get(cell.type), _ROWS, _COLUMNS)
        for name, cell in zip(names, cells, strict=True)
    }
    types = {name: cell.type for name, cell in zip(names, cells, strict=True)}
    grids = {name: _GRID for name, cell in zip(names, cells, strict=True) if cell.input == STATIC}
    with path.open("wb") as output:
        fill(_graph(cells, names), weights, types, output, grids=grids)


def _graph(cells: Sequence[Cell], names: Sequence[str]) -> bytes:
    """A flatbuffer with a function for each cell, which takes its weight as an argument."""
    model = schema.ModelT()
    model.version, model.description = 3, b""
    model.buffers, model.operatorCodes, model.subgraphs = [schema.BufferT()], [], []
    model.signatureDefs = []
    for number, (cell, name) in enumerate(zip(cells, names, strict=True)):
        _add_function(model, number, cell, name)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _add_function(model: Any, number: int, cell: Cell, name: str) -> None:
    product = cell.operator == "FULLY_CONNECTED"
    given = ("x", (1, _COLUMNS), _FLOAT) if product else ("i", (_ROWS,), _INT)
    out = (1, _ROWS) if product else (_ROWS, _COLUMNS)
    made = (given, (name, (_ROWS, _COLUMNS), _FLOAT), ("y", out, _FLOAT))
    graph = schema.SubGraphT()
    graph.name = f"function_{number}".encode()
    graph.tensors = [_tensor(*one) for one in made]
    graph.inputs, graph.outputs = np.array([0, 1], np.int32), np.array([2], np.int32)
    graph.operators = [_operator(model, cell.operator)]
    model.subgraphs.append(graph)
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = graph.name, number
    signature.inputs = [_entry(made[index][0], index) for index in (0, 1)]
    signature.outputs = [_entry(made[2][0], 2)]
    model.signatureDefs.append(signature)


def _tensor(name: str, shape: tuple[int, ...], type: int) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type = name.encode(), np.array(shape, np.int32), type
    tensor.buffer, tensor.hasRank = 0, True
    return tensor


def _operator(model: Any, name: str) -> Any:
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = 5 if name == "FULLY_CONNECTED" else 1
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    product = name == "FULLY_CONNECTED"
    operator.inputs = np.array([0, 1, -1] if product else [0, 1], np.int32)
    operator.outputs = np.array([2], np.int32)
    if product:
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    return operator


def _entry(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry
