"""Small ONNX graphs around the data that the ``onnx`` target writes, one node or two for each weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.weight import Weight
from targets.onnx.layout import Layout, Place, lay_out
from targets.onnx.storage import (
    Storage,
    expert_name,
    scales_name,
    stored_name,
)
from targets.onnx.writing import write_data
from targets.storing import Coded
from targets.target import PlannedTensor
from targets.writing import Written

DATA = "model.onnx.data"
FLOAT32 = Storage()


@dataclass(frozen=True)
class Artifact:
    """A written data file and a graph beside it."""

    path: Path
    layout: Layout
    written: Written
    storage: Storage


def planned(weight: Weight, storage: Storage) -> PlannedTensor:
    """The plan's line for one weight."""
    held = storage.held
    format = held.type_of(weight)
    size, exact = weight.rows * held.row_bytes(format, weight.columns), held.is_exact(weight, format)
    return PlannedTensor(weight.name, stored_name(weight.name), weight.shape, format, size, exact)


def write(checkpoint: Checkpoint, directory: Path, storage: Storage = FLOAT32, level: int = 0) -> Artifact:
    """``model.onnx`` and its data file in ``directory``."""
    layout = lay_out([planned(weight, storage) for weight in checkpoint.weights.values()], storage)
    directory.mkdir(parents=True, exist_ok=True)
    written = write_data(directory / DATA, layout, checkpoint.weights, storage, lambda count: None)
    path = directory / "model.onnx"
    onnx.save(graph_of(layout, storage, checkpoint.architecture.tied_head, level), path)
    return Artifact(path, layout, written, storage)


def external(
    name: str, dtype: str, shape: Sequence[int], offset: int, length: int, location: str = DATA
) -> TensorProto:
    """An initializer whose data lies in the data file."""
    tensor = TensorProto(name=name, data_type=TensorProto.DataType.Value(dtype), dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def graph_of(layout: Layout, storage: Storage, tied: bool, level: int = 0) -> onnx.ModelProto:
    """A model with an output for every weight, named as the initializer: ``x.COLUMNS`` (float32
    ``[n, COLUMNS]``) times a matrix, rows ``ids`` of an embedding, numbers as they are. A tied head is a
    second user of the embedding's codes, ``model.lm_head.weight``."""
    made = _Made(storage, level)
    for name, place in layout.places.items():
        shape = place.tensor.shape
        if len(shape) == 3:
            rows = math.prod(shape[1:-1])
            for expert in range(shape[0]):
                made.matrix(expert_name(name, expert), place, expert * rows, rows)
        elif name.startswith("embed_tokens"):
            made.embedding(name, place)
            if tied and name == "embed_tokens.weight" and place.scales_offset is not None:
                made.matrix("lm_head.weight", place, 0, place.rows, scales=scales_name(name))
        elif len(shape) == 2:
            made.matrix(name, place, 0, place.rows)
        else:
            made.vector(name, place)
    return made.model()


class _Made:
    def __init__(self, storage: Storage, level: int) -> None:
        self.storage, self.level = storage, level
        self.initializers: dict[str, TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.outputs: list[onnx.ValueInfoProto] = []

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "weights", list(self.inputs.values()), self.outputs, list(self.initializers.values())
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def matrix(self, name: str, place: Place, start: int, rows: int, scales: str | None = None) -> None:
        columns, format = place.tensor.shape[-1], place.tensor.type
        stored, output = stored_name(name), f"out.{stored_name(name)}"
        x = self._input(f"x.{columns}", TensorProto.FLOAT, ["n", columns])
        coded = self.storage.held.find(format)
        if coded is None:
            self._stretch(stored, format, place, start, [rows, columns])
            turned = self._node(
                "Transpose", [self._as_float(stored, format)], f"{stored}.turned", perm=[1, 0]
            )
            self._output(self._node("MatMul", [x, turned], output))
            return
        blocks, (size, *_) = columns // coded.block, coded.row_parts(coded.block)
        self._stretch(stored, "UINT8", place, start, [rows, blocks, size])
        if scales is None:
            scales = scales_name(name)
            self._scales(scales, place, start, rows)
        node = {"K": columns, "N": rows, "accuracy_level": self.level, **_attributes(coded)}
        taken = [x, stored, self._as_float(scales, self.storage.scales)]
        self._output(self._node("MatMulNBits", taken, output, "com.microsoft", **node))

    def embedding(self, name: str, place: Place) -> None:
        shape, format = place.tensor.shape, place.tensor.type
        stored, output = stored_name(name), f"out.{stored_name(name)}"
        ids = self._input("ids", TensorProto.INT64, ["n"])
        coded = self.storage.held.find(format)
        if coded is None:
            self._stretch(stored, format, place, 0, shape)
            rows = self._node("Gather", [stored, ids], f"{stored}.rows")
            self._output(self._node("Cast", [rows], output, to=TensorProto.FLOAT))
            return
        self._stretch(stored, "UINT8", place, 0, [shape[0], place.row_bytes])
        self._scales(scales_name(name), place, 0, shape[0])
        node = {"gather_axis": 0, "quantize_axis": 1, **_attributes(coded)}
        taken = [stored, ids, self._as_float(scales_name(name), self.storage.scales)]
        self._output(self._node("GatherBlockQuantized", taken, output, "com.microsoft", **node))

    def vector(self, name: str, place: Place) -> None:
        stored = stored_name(name)
        self._stretch(stored, place.tensor.type, place, 0, place.tensor.shape)
        self._output(self._node("Neg", [self._as_float(stored, place.tensor.type)], f"out.{stored}"))

    def _as_float(self, name: str, format: str) -> str:
        if format == "FLOAT":
            return name
        if not any(node.output[0] == f"{name}.float" for node in self.nodes):
            self._node("Cast", [name], f"{name}.float", to=TensorProto.FLOAT)
        return f"{name}.float"

    def _scales(self, name: str, place: Place, start: int, rows: int) -> None:
        assert place.scales_offset is not None
        offset = place.scales_offset + start * place.scales_row_bytes
        coded = self.storage.held.find(place.tensor.type)
        assert coded is not None
        shape = [rows, place.tensor.shape[-1] // coded.block]
        self.initializers[name] = external(
            name, self.storage.scales, shape, offset, rows * place.scales_row_bytes
        )

    def _stretch(self, name: str, dtype: str, place: Place, start: int, shape: Sequence[int]) -> None:
        rows = shape[0] if len(shape) > 1 else 1
        offset = place.offset + start * place.row_bytes
        self.initializers[name] = external(name, dtype, shape, offset, rows * place.row_bytes)

    def _input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self.inputs[name] = helper.make_tensor_value_info(name, dtype, shape)
        return name

    def _node(
        self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: object
    ) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    def _output(self, name: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _attributes(coded: Coded) -> dict[str, int]:
    """What both operators are told of codes and scales."""
    return {"bits": coded.bits, "block_size": coded.block}


def computed(path: Path, ids: int, folder: Path | None = None) -> dict[str, np.ndarray]:
    """What onnxruntime makes of every weight, by initializer: the rows of matrices (identity matrices times
    the weight, transposed), all ``ids`` rows of embeddings, vectors. ``folder`` has the data file if
    it is not the graph's."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    model: Path | bytes = path
    if folder is not None:
        model = path.read_bytes()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {
        one.name: np.arange(ids) if one.name == "ids" else np.eye(one.shape[1], dtype=np.float32)
        for one in session.get_inputs()
    }
    names = [one.name for one in session.get_outputs()]
    return dict(_readable(names, session.run(names, feeds), path))


def _readable(names: list[str], values: list[np.ndarray], path: Path) -> Iterator[tuple[str, np.ndarray]]:
    nodes = {node.output[0]: node for node in onnx.load(path, load_external_data=False).graph.node}
    for name, value in zip(names, values, strict=True):
        operator = nodes[name].op_type
        turned = {"MatMul": value.T, "MatMulNBits": value.T, "Neg": -value}.get(operator, value)
        yield name.removeprefix("out."), turned
