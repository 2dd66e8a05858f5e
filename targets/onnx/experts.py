"""The mixture of experts from quantised projections, one pair per expert.

onnxruntime's ``QMoE`` cannot serve: its CPU kernel has no gated tanh GELU (``geglu`` is for CUDA alone), and
mobius puts a SwiGLU there, which is another function. Here every token's rows are sorted by expert, split
into one (mostly empty) piece per expert. Each piece meets the codes of its own expert in ``MatMulNBits``,
which returns at once for no rows. So a token pays for the experts that it uses; each of the others costs two
calls of a kernel that has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from converter.checkpoint.architecture import Experts as Sizes
from targets.onnx.modules import as_type

#: Makes one expert's projection from the expert's index and the projection's name (``gate_up_proj``).
ExpertProjection = Callable[[int, str], nn.Module]


class Experts(nn.Module):
    """All experts of a layer; the rows of ``gate_up_proj`` are the gate's, then the other half's."""

    def __init__(self, sizes: Sizes, projection: ExpertProjection) -> None:
        super().__init__()
        self._sizes = sizes
        self._gate_up = [projection(index, "gate_up_proj") for index in range(sizes.count)]
        self._down = [projection(index, "down_proj") for index in range(sizes.count)]

    def forward(self, op: OpBuilder, x: ir.Value, probabilities: ir.Value, scale: ir.Value) -> ir.Value:
        """``x`` float ``[tokens, hidden]``, ``probabilities`` ``[tokens, experts]``, ``scale`` ``[experts]``
        to ``[tokens, hidden]``: the active experts' outputs, each times its share of their probability and
        times its scale."""
        active = self._sizes.active
        top, chosen = op.TopK(probabilities, op.Constant(value_ints=[active]), axis=-1, _outputs=2)
        share = op.Div(top, op.ReduceSum(top, op.Constant(value_ints=[1]), keepdims=1))
        share = op.Mul(share, as_type(op, op.Gather(scale, chosen), share.dtype))
        flat = op.Reshape(chosen, op.Constant(value_ints=[-1]))
        order, counts = self._order(op, flat)
        rows = op.Gather(x, op.Div(order, op.Constant(value_int=active)))
        gate_up = self._each(op, rows, counts, self._gate_up)
        gate, up = op.Split(gate_up, axis=-1, num_outputs=2, _outputs=2)
        down = self._each(op, op.Mul(op.Gelu(gate, approximate="tanh"), up), counts, self._down)
        _, back = op.TopK(order, op.Shape(order), largest=0, _outputs=2)
        apart = op.Reshape(
            op.Gather(down, back),
            op.Concat(op.Shape(chosen), op.Constant(value_ints=[-1]), axis=0),
        )
        share = op.Unsqueeze(as_type(op, share, x.dtype), op.Constant(value_ints=[2]))
        return op.ReduceSum(op.Mul(apart, share), op.Constant(value_ints=[1]), keepdims=0)

    def _order(self, op: OpBuilder, flat: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The order that sorts ``flat`` (expert of every token and slot), and the rows of each expert."""
        _, order = op.TopK(flat, op.Shape(flat), largest=0, _outputs=2)
        every = op.Constant(value_ints=list(range(self._sizes.count)))
        same = op.Equal(op.Unsqueeze(flat, op.Constant(value_ints=[1])), every)
        counts = op.ReduceSum(op.Cast(same, to=ir.DataType.INT64), op.Constant(value_ints=[0]), keepdims=0)
        return order, counts

    def _each(
        self, op: OpBuilder, rows: ir.Value, counts: ir.Value, projections: list[nn.Module]
    ) -> ir.Value:
        if len(projections) == 1:
            return projections[0](op, rows)
        pieces = op.Split(rows, counts, axis=0, _outputs=len(projections))
        for piece in pieces:
            piece.dtype = rows.dtype
        return op.Concat(*(each(op, piece) for each, piece in zip(projections, pieces, strict=True)), axis=0)
