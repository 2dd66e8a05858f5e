"""Leaf modules of the graph: projections, embeddings and the head, for each form that a plan gives a weight.

The layouts are onnxruntime's. ``MatMulNBits`` takes codes ``[rows, blocks, bytes]`` and scales
``[rows, blocks]``. A value is ``(code - middle) * scale``, the middle code 8 or 128 where no zero point is
given. ``GatherBlockQuantized`` takes the same bytes as ``[rows, bytes of a row]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import OpBuilder, nn

from converter.checkpoint.weight import Scales
from targets.storing import Coded

MICROSOFT: Final = "com.microsoft"
#: Code of 0 on a static grid, of 0 to 255.
_MIDDLE: Final = 128


class Projection(nn.Module):
    """``x @ W.T`` for a weight of ``shape`` (rows, columns) held as ``coded``, with scales of ``scales``
    type.

    ``level`` is ``MatMulNBits``' ``accuracy_level``.
    """

    def __init__(
        self, shape: Sequence[int], coded: Coded, scales: str, level: int, name: str | None = None
    ) -> None:
        super().__init__(name)
        rows, columns = shape
        self._coded, self._level = coded, level
        blocks = columns // coded.block
        self.weight = nn.Parameter([rows, blocks, _bytes_of_block(coded)], dtype=ir.DataType.UINT8)
        self.scales = nn.Parameter([rows, blocks], dtype=ir.DataType[scales])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """``x`` float ``[..., columns]`` to ``[..., rows]``."""
        return matmul_nbits(op, x, self.weight, self.scales, self._coded, self._level)


def matmul_nbits(
    op: OpBuilder, x: ir.Value, codes: ir.Value, scales: ir.Value, coded: Coded, level: int
) -> ir.Value:
    """One ``MatMulNBits`` node; scales of another type than ``x`` are cast, which onnxruntime folds."""
    assert codes.shape is not None
    rows, blocks = int(codes.shape[0]), int(codes.shape[1])
    result = op.MatMulNBits(
        x,
        codes,
        as_type(op, scales, x.dtype),
        K=blocks * coded.block,
        N=rows,
        bits=coded.bits,
        block_size=coded.block,
        accuracy_level=level,
        _domain=MICROSOFT,
    )
    result.dtype = x.dtype
    if x.shape is not None:
        result.shape = ir.Shape([*x.shape[:-1], rows])
    return result


def _bytes_of_block(coded: Coded) -> int:
    """Bytes that the codes of a block take."""
    return coded.row_parts(coded.block)[0]


class Gridded(nn.Module):
    """A product that rounds what it takes and gives to static grids (``targets.onnx.grids``): its parameters
    keep their names, and ``input_scale`` and ``output_scale`` stand beside them in the graph itself."""

    def __init__(self, product: nn.Module, scales: Scales) -> None:
        super().__init__()
        product._set_name("")  # its parameters are named after this module
        self.product = product
        self.input_scale, self.output_scale = _scale(scales.input), _scale(scales.output)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """``x`` float ``[..., columns]`` to ``[..., rows]``."""
        return _to_grid(op, self.product(op, _to_grid(op, x, self.input_scale)), self.output_scale)


def _scale(values: NDArray[np.float32] | None) -> nn.Parameter | None:
    """A scalar, or a scale for each channel."""
    if values is None:
        return None
    data = ir.tensor(values.reshape(()) if values.size == 1 else values)
    parameter = nn.Parameter(data.shape.numpy(), data=data)
    parameter._keep_float32 = True  # where the model computes in float16
    return parameter


def _to_grid(op: OpBuilder, x: ir.Value, scale: nn.Parameter | None) -> ir.Value:
    """``x`` rounded to multiples of ``scale`` in float32, ``x`` itself without one."""
    if scale is None:
        return x
    assert scale.shape is not None
    axis = {} if not scale.shape else {"axis": -1}
    # not int8, of which onnxruntime (1.32) makes uint8: it fails then at a grid that a Reshape follows
    zero = op.Constant(value=ir.tensor(np.full(scale.shape.numpy(), _MIDDLE, np.uint8)))
    codes = op.QuantizeLinear(as_type(op, x, ir.DataType.FLOAT), scale, zero, **axis)
    codes.dtype, codes.shape = ir.DataType.UINT8, x.shape
    rounded = op.DequantizeLinear(codes, scale, zero, **axis)
    rounded.dtype, rounded.shape = ir.DataType.FLOAT, x.shape
    return as_type(op, rounded, x.dtype)


def as_type(op: OpBuilder, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    """``value`` in ``dtype``, through a Cast only if it has another type."""
    return value if dtype is None or value.dtype == dtype else op.Cast(value, to=dtype)


def kept_parameter(shape: Sequence[int], stored: str) -> nn.Parameter:
    """A parameter that keeps its type when mobius turns a module's float32 into float16."""
    parameter = nn.Parameter(list(shape), dtype=ir.DataType[stored])
    parameter._keep_float32 = True
    return parameter


class FloatProjection(nn.Module):
    """``x @ W.T`` for a weight kept as numbers of type ``stored``."""

    def __init__(self, shape: Sequence[int], stored: str, name: str | None = None) -> None:
        super().__init__(name)
        self.weight = kept_parameter(shape, stored)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """``x`` float ``[..., columns]`` to ``[..., rows]``."""
        return op.MatMul(x, op.Transpose(as_type(op, self.weight, x.dtype), perm=[1, 0]))


class Embedding(nn.Module):
    """Rows of a table held as codes and scales, times ``factor``."""

    def __init__(self, shape: Sequence[int], coded: Coded, scales: str, factor: float, dtype: str) -> None:
        super().__init__()
        rows, self._columns = shape
        self._factor, self._dtype = factor, ir.DataType[dtype]
        self.coded, blocks = coded, self._columns // coded.block
        self.weight = nn.Parameter([rows, blocks * _bytes_of_block(coded)], dtype=ir.DataType.UINT8)
        self.scales = nn.Parameter([rows, blocks], dtype=ir.DataType[scales])

    def forward(self, op: OpBuilder, input_ids: ir.Value) -> ir.Value:
        """``input_ids`` int64 ``[batch, sequence]`` to float ``[batch, sequence, columns]``."""
        # cast before, not after: the operator computes in the type of its scales
        scales = as_type(op, self.scales, self._dtype)
        rows = op.GatherBlockQuantized(
            self.weight,
            input_ids,
            scales,
            bits=self.coded.bits,
            block_size=self.coded.block,
            gather_axis=0,
            quantize_axis=1,
            _domain=MICROSOFT,
        )
        rows.dtype = self._dtype
        assert input_ids.shape is not None
        rows.shape = ir.Shape([*input_ids.shape, self._columns])
        return op.Mul(rows, self._factor)


class FloatEmbedding(nn.Module):
    """Rows of a table kept as numbers of type ``stored``, times ``factor``."""

    def __init__(self, shape: Sequence[int], stored: str, factor: float, dtype: str) -> None:
        super().__init__()
        self._factor, self._dtype = factor, ir.DataType[dtype]
        self.weight = kept_parameter(shape, stored)

    def forward(self, op: OpBuilder, input_ids: ir.Value) -> ir.Value:
        """``input_ids`` int64 ``[batch, sequence]`` to float ``[batch, sequence, columns]``."""
        return op.Mul(as_type(op, op.Gather(self.weight, input_ids), self._dtype), self._factor)


class Head(nn.Module):
    """Logits of the vocabulary with the final soft-capping, ``cap * tanh(x / cap)``."""

    def __init__(self, projection: nn.Module, softcap: float | None) -> None:
        super().__init__()
        projection._set_name("")  # its parameters are named after the head
        self.projection = projection
        self._softcap = softcap

    def forward(self, op: OpBuilder, hidden_states: ir.Value) -> ir.Value:
        """Hidden states ``[batch, sequence, hidden]`` to logits ``[batch, sequence, vocabulary]``."""
        logits = self.projection(op, hidden_states)
        if not self._softcap:
            return logits
        return op.Mul(op.Tanh(op.Div(logits, self._softcap)), self._softcap)


class TiedProjection(nn.Module):
    """The head that uses the embedding's table. Of codes it has an initializer of its own, in the shape that
    ``MatMulNBits`` wants: both name the same bytes of the data file."""

    def __init__(self, embedding: Embedding | FloatEmbedding, level: int) -> None:
        super().__init__()
        self._embedding, self._level = [embedding], level  # a list: no child of this module
        if isinstance(embedding, Embedding):
            assert embedding.weight.shape is not None
            rows, row_bytes = (int(size) for size in embedding.weight.shape)
            width = _bytes_of_block(embedding.coded)
            self.weight = nn.Parameter([rows, row_bytes // width, width], dtype=ir.DataType.UINT8)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """``x`` float ``[..., hidden]`` to ``[..., vocabulary]``."""
        table = self._embedding[0]
        if isinstance(table, Embedding):
            return matmul_nbits(op, x, self.weight, table.scales, table.coded, self._level)
        return op.MatMul(x, op.Transpose(as_type(op, table.weight, x.dtype), perm=[1, 0]))


class Router(nn.Module):
    """Gemma 4's router: probabilities of the experts. It stays float32: rounding its activations would change
    which experts a token reaches. The factor ``hidden ** -0.5`` is in the graph, so ``scale`` is the
    checkpoint's own."""

    def __init__(self, experts: int, hidden: int, epsilon: float) -> None:
        super().__init__()
        self._hidden, self._epsilon = hidden, epsilon
        self.scale = nn.Parameter([hidden])
        self.proj = FloatProjection([experts, hidden], "FLOAT")
        self.per_expert_scale = nn.Parameter([experts])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """``x`` ``[tokens, hidden]`` to float32 probabilities ``[tokens, experts]``."""
        x = as_type(op, x, ir.DataType.FLOAT)
        ones = op.Constant(value_floats=[1.0] * self._hidden)
        normed = op.RMSNormalization(x, ones, epsilon=self._epsilon, axis=-1)
        scaled = op.Mul(normed, as_type(op, self.scale, ir.DataType.FLOAT))
        return op.Softmax(self.proj(op, op.Mul(scaled, self._hidden**-0.5)), axis=-1)
