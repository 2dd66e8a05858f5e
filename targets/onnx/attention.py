"""Self-attention as one ``GroupQueryAttention`` per layer.

The rotations are computed in the graph from ``position_ids``, once for every kind of layer. mobius would
store them as tables for the whole context. At 131,072 positions and head sizes of 256 and 512 these take
400 MB, more than the layers of a small model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from mobius.components import OffsetRMSNorm, RMSNorm
from numpy.typing import NDArray
from onnxscript import OpBuilder, nn

from converter.checkpoint.architecture import SLIDING, Architecture, Layer
from targets.onnx.modules import MICROSOFT

#: Keys and values of a layer, ``[batch, heads, positions, head_dim]``.
KeysValues = tuple[ir.Value, ir.Value]
#: Makes the projection of a canonical weight name.
Projections = Callable[[str], nn.Module]


class Positions:
    """What every layer derives from ``attention_mask`` and ``position_ids``, computed once per graph."""

    def __init__(self) -> None:
        self._lengths: tuple[ir.Value, ir.Value] | None = None
        self._rotations: dict[tuple[object, ...], tuple[ir.Value, ir.Value]] = {}

    def lengths(self, op: OpBuilder) -> tuple[ir.Value, ir.Value]:
        """The index of each row's last token, int32 ``[batch]``, and the longest row, int32 scalar."""
        if self._lengths is None:
            mask = _graph_input(op, "attention_mask")
            last = op.Sub(op.ReduceSum(mask, [1], keepdims=0), op.Constant(value_int=1))
            longest = op.Gather(op.Shape(mask), 1)
            self._lengths = (op.Cast(last, to=ir.DataType.INT32), op.Cast(longest, to=ir.DataType.INT32))
        return self._lengths

    def rotations(self, op: OpBuilder, layer: Layer, dtype: ir.DataType | None) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines ``[batch, sequence, head_dim / 2]``, in float32 up to the last step."""
        key = (layer.rope_theta, layer.head_dim, layer.rotated_pairs, layer.rope_scaling_factor)
        if key not in self._rotations:
            positions = op.Cast(_graph_input(op, "position_ids"), to=ir.DataType.FLOAT)
            frequencies = op.Constant(value=ir.tensor(frequencies_of(layer)))
            angles = op.Mul(op.Unsqueeze(positions, [2]), frequencies)
            self._rotations[key] = (
                op.Cast(op.Cos(angles), to=dtype or ir.DataType.FLOAT),
                op.Cast(op.Sin(angles), to=dtype or ir.DataType.FLOAT),
            )
        return self._rotations[key]


def frequencies_of(layer: Layer) -> NDArray[np.float32]:
    """Angular frequencies, float32 ``[head_dim / 2]``: ``theta ** (-2 i / head_dim)`` for the pairs that
    rotate, spread over the whole head, and 0 for the others (as in transformers' proportional RoPE)."""
    exponents = np.arange(0, layer.head_dim, 2, dtype=np.float32) / np.float32(layer.head_dim)
    frequencies: NDArray[np.float32] = 1 / np.power(np.float32(layer.rope_theta), exponents, dtype=np.float32)
    frequencies[layer.rotated_pairs :] = 0.0
    frequencies /= np.float32(layer.rope_scaling_factor)
    return frequencies


def _graph_input(op: OpBuilder, name: str) -> ir.Value:
    (value,) = (value for value in op.builder.graph.inputs if value.name == name)
    return value


class Attention(nn.Module):
    """Attention of one layer: norms per head, RoPE, ``GroupQueryAttention`` with the KV cache.

    A layer with shared KV reads the keys and values that its source layer has just put out and adds none.
    """

    def __init__(
        self, architecture: Architecture, layer: Layer, positions: Positions, projection: Projections
    ) -> None:
        super().__init__()
        self._layer, self._positions = layer, positions
        self._scale = architecture.attention_scale
        self._window = architecture.sliding_window if layer.attention == SLIDING else -1
        self._values_normed = architecture.values_normed
        self._epsilon = architecture.norm_eps
        #: mobius's text model asks for it
        self.is_kv_shared_layer = layer.kv_source is not None
        norm = OffsetRMSNorm if architecture.norm_offset else RMSNorm
        prefix = f"layers.{layer.index}.self_attn."
        self.q_proj = projection(f"{prefix}q_proj.weight")
        self.q_norm = norm(layer.head_dim, eps=architecture.norm_eps)
        if not self.is_kv_shared_layer:
            self.k_proj = projection(f"{prefix}k_proj.weight")
            self.k_norm = norm(layer.head_dim, eps=architecture.norm_eps)
            if not layer.key_is_value:
                self.v_proj = projection(f"{prefix}v_proj.weight")
        self.o_proj = projection(f"{prefix}o_proj.weight")

    def forward(
        self,
        op: OpBuilder,
        hidden_states: ir.Value,
        past_key_value: KeysValues | None = None,
        shared_kv_states: dict[int, KeysValues] | None = None,
        **_: object,
    ) -> tuple[ir.Value, KeysValues]:
        """Hidden states ``[batch, sequence, hidden]`` to the same shape, and the keys and values of all
        positions."""
        layer = self._layer
        query = self._rotated(op, self._heads(op, self.q_proj(op, hidden_states), layer.heads, self.q_norm))
        if layer.kv_source is not None:
            assert shared_kv_states is not None
            past = shared_kv_states[layer.kv_source]
            key = value = self._nothing(op, query)
        else:
            assert past_key_value is not None
            past = past_key_value
            raw = self.k_proj(op, hidden_states)
            key = self._rotated(op, self._heads(op, raw, layer.kv_heads, self.k_norm))
            value = raw if layer.key_is_value else self.v_proj(op, hidden_states)
            if self._values_normed:
                value = self._heads(op, value, layer.kv_heads, self._unit_norm)
        output, present = self._attend(op, query, key, value, past)
        if shared_kv_states is not None and layer.kv_source is None:
            shared_kv_states[layer.index] = present
        return self.o_proj(op, output), present

    def _heads(self, op: OpBuilder, x: ir.Value, heads: int, norm: Any) -> ir.Value:
        """Norm each head of ``[batch, sequence, heads * head_dim]``."""
        apart = op.Reshape(x, op.Constant(value_ints=[0, 0, heads, self._layer.head_dim]))
        return op.Reshape(norm(op, apart), op.Constant(value_ints=[0, 0, heads * self._layer.head_dim]))

    def _unit_norm(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        ones = op.CastLike(op.Constant(value_floats=[1.0] * self._layer.head_dim), x)
        return op.RMSNormalization(x, ones, axis=-1, epsilon=self._epsilon)

    def _rotated(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        cosines, sines = self._positions.rotations(op, self._layer, x.dtype)
        assert x.shape is not None
        heads = int(x.shape[2]) // self._layer.head_dim
        return op.RotaryEmbedding(x, cosines, sines, num_heads=heads)

    def _nothing(self, op: OpBuilder, query: ir.Value) -> ir.Value:
        """Keys (or values) of no position, ``[batch, 0, kv_heads * head_dim]``."""
        width = self._layer.kv_heads * self._layer.head_dim
        batch = op.Shape(query, start=0, end=1)
        shape = op.Concat(batch, op.Constant(value_ints=[0, width]), axis=0)
        return op.CastLike(op.ConstantOfShape(shape), query)

    def _attend(
        self, op: OpBuilder, query: ir.Value, key: ir.Value, value: ir.Value, past: KeysValues
    ) -> tuple[ir.Value, KeysValues]:
        """A layer with shared KV asks for no keys and values: the kernel would copy the whole cache for them,
        which is most of its time at long contexts."""
        layer, shared = self._layer, self.is_kv_shared_layer
        last, longest = self._positions.lengths(op)
        outputs = op.GroupQueryAttention(
            query,
            key,
            value,
            *past,
            last,
            longest,
            num_heads=layer.heads,
            kv_num_heads=layer.kv_heads,
            scale=self._scale,
            do_rotary=0,
            local_window_size=self._window,
            _domain=MICROSOFT,
            _outputs=1 if shared else 3,
        )
        # no inference knows the shapes of this operator's outputs
        output, present = (outputs, past) if shared else (outputs[0], (outputs[1], outputs[2]))
        output.dtype, output.shape = query.dtype, query.shape
        for one in () if shared else present:
            one.dtype = query.dtype
            one.shape = ir.Shape(["batch", layer.kv_heads, "total_sequence", layer.head_dim])
        return output, present


class NoRotations(nn.Module):
    """Stands where mobius's RoPE tables were; nothing reads it."""

    cos_cache: Final = None
    sin_cache: Final = None

    def forward(self, op: OpBuilder, position_ids: ir.Value) -> None:
        """Adds nothing to the graph."""
