"""A small decoder as an ONNX file, made by hand, that can be given the faults of a bad export.

Embedding, two layers of attention with a cache each (other heads and sizes in each), head; every product is a
MatMulNBits of 4 bits in blocks of 32. Inputs and outputs are those of the ``onnx`` target.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 200
HIDDEN = 64
#: Heads and head size of each layer.
LAYERS = ((2, 32), (1, 64))
WINDOW = 12
#: A token for whose keys the fault ``"nan"`` has no finite value once it is decoded alone.
POISON = 13


class _Graph:
    def __init__(self, dtype: type[np.floating[Any]], scale: float, seed: int) -> None:
        self.dtype, self.scale = dtype, scale
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def __call__(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"v{len(self.nodes)}"
        domain = "com.microsoft" if operator == "MatMulNBits" else ""
        self.nodes.append(helper.make_node(operator, inputs, [name], name, domain=domain, **attributes))
        return name

    def constant(self, value: object, dtype: type = np.int64) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weight(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def product(self, x: str, columns: int, name: str, level: int | None) -> str:
        """``x [.., HIDDEN]`` times random codes ``[columns, HIDDEN]``."""
        codes = self._random.integers(0, 256, (columns, HIDDEN // 32, 16), np.uint8)
        scales = self._random.uniform(0.5, 1.5, (columns, HIDDEN // 32)) * self.scale / HIDDEN
        attributes: dict[str, object] = {"K": HIDDEN, "N": columns, "bits": 4, "block_size": 32}
        if level is not None:
            attributes["accuracy_level"] = level
        stored = self.weight(f"{name}.scales", scales.astype(self.dtype))
        return self("MatMulNBits", x, self.weight(f"{name}.weight", codes), stored, **attributes)

    def embedding(self, vocabulary: int) -> str:
        values = self._random.standard_normal((vocabulary, HIDDEN)).astype(self.dtype)
        return self("Gather", self.weight("embed.weight", values), "input_ids")


def write_decoder(
    directory: Path,
    *,
    fault: str = "",
    level: int | None = None,
    dtype: type[np.floating[Any]] = np.float32,
    scale: float = 1.0,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
) -> Path:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``directory``, which is made; returns the model.

    ``fault``: ``"cache"`` forgets all but the last token's keys and values, ``"window"`` looks back over half
    the window when it runs one token alone, ``"nan"`` has logits that
    are no numbers then, for tokens from ``POISON`` on. ``scale`` is that of the weights.
    """
    graph = _Graph(dtype, scale, seed)
    hidden = graph.embedding(vocabulary)
    mask = _mask(graph, fault)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "sequence"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", kind, ["batch", "sequence", vocabulary])]
    for index, (heads, size) in enumerate(LAYERS):
        hidden = _attention(graph, hidden, mask, index, fault, level)
        for part in ("key", "value"):
            shape = ["batch", heads, "past", size]
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{index}.{part}", kind, shape))
            shape = ["batch", heads, "total", size]
            outputs.append(helper.make_tensor_value_info(f"present.{index}.{part}", kind, shape))
    logits = graph.product(hidden, vocabulary, "head", level)
    if fault == "nan":
        bad = graph("Less", graph("Neg", "input_ids"), graph.constant(1 - POISON))
        bad = graph("And", graph("Unsqueeze", bad, graph.constant([2])), _alone(graph))
        logits = graph("Where", bad, graph.constant(np.nan, dtype), logits)
    graph("Identity", logits, output="logits")
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="model.onnx.data", size_threshold=256)
    return path


def _alone(graph: _Graph) -> str:
    """Whether one token is run alone."""
    return graph("Equal", graph("Size", "input_ids"), graph.constant(1))


def _mask(graph: _Graph, fault: str) -> str:
    """What keys ``[sequence, total]`` a query may not see, as numbers to add."""
    window = graph.constant(WINDOW)
    if fault == "window":
        window = graph("Where", _alone(graph), graph.constant(WINDOW // 2), window)
    total = graph("Squeeze", graph("Shape", "attention_mask", start=1))
    keys = graph("Range", graph.constant(0), total, graph.constant(1))
    queries = graph("Unsqueeze", graph("Squeeze", "position_ids", graph.constant([0])), graph.constant([1]))
    distance = graph("Sub", queries, keys)
    seen = graph("And", graph("GreaterOrEqual", distance, graph.constant(0)), graph("Less", distance, window))
    return graph("Where", seen, graph.constant(0, graph.dtype), graph.constant(-1e4, graph.dtype))


def _attention(graph: _Graph, x: str, mask: str, index: int, fault: str, level: int | None) -> str:
    heads, size = LAYERS[index]
    parts = {}
    for part in ("query", "key", "value"):
        y = graph.product(x, heads * size, f"layers.{index}.{part}", level)
        y = graph("Reshape", y, graph.constant([0, 0, heads, size]))
        parts[part] = graph("Transpose", y, perm=[0, 2, 1, 3])
    for part in ("key", "value"):
        y = graph("Concat", f"past_key_values.{index}.{part}", parts[part], axis=2)
        if fault == "cache":  # zeros in place of what was there
            past = graph("Mul", f"past_key_values.{index}.{part}", graph.constant(0, graph.dtype))
            y = graph("Concat", past, parts[part], axis=2)
        parts[part] = graph("Identity", y, output=f"present.{index}.{part}")
    scores = graph("MatMul", parts["query"], graph("Transpose", parts["key"], perm=[0, 1, 3, 2]))
    weights = graph("Softmax", graph("Add", scores, mask), axis=-1)
    y = graph("Transpose", graph("MatMul", weights, parts["value"]), perm=[0, 2, 1, 3])
    y = graph("Reshape", y, graph.constant([0, 0, HIDDEN]))
    return graph("Add", x, y)
