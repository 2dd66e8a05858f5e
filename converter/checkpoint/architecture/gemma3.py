"""Gemma 3: 1B (text-only) and the multimodal 4B, 12B, 27B.

Keys, defaults and shapes are those of transformers 5.23 (``Gemma3TextConfig``, ``Gemma3TextModel``),
which the tests compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from converter.checkpoint.architecture import gemma, keys
from converter.checkpoint.architecture.layers import FULL, SLIDING, Architecture, Family, Layer
from converter.checkpoint.canonical_names import EMBEDDING, FINAL_NORM, HEAD
from converter.checkpoint.parts import VISION, Part
from converter.checkpoint.special_tokens import BOS_ID, PAD_ID
from converter.system.untrusted import Settings, shown

_TEXT_TYPES: Final = {"gemma3": "gemma3_text"}
_PARTS: Final = (
    Part(
        VISION,
        {
            "model.vision_tower.": "vision encoder",
            "model.multi_modal_projector.": "vision projection",
            "vision_tower.": "vision encoder",
            "multi_modal_projector.": "vision projection",
        },
    ),
)


@dataclass(frozen=True, slots=True)
class _Rope:
    theta: float
    factor: float


def read(config: Settings, model_type: str) -> Architecture:
    """The architecture of a Gemma 3 ``config.json``; raises ``CheckpointError``."""
    text = keys.text_settings(config, model_type, _TEXT_TYPES)
    activation = gemma.mlp_activation(text)
    text.require("attention_bias", (False,), False)
    text.require("attn_logit_softcapping", (None,), None)
    text.require("use_bidirectional_attention", (False, None), False)
    vocabulary = text.integer("vocab_size", 262_208, high=keys.LARGEST_VOCABULARY)
    hidden = text.integer("hidden_size", 2304, high=keys.WIDEST)
    layers = _layers(text)
    scalar = text.number("query_pre_attn_scalar", 256)
    tied = config.flag("tie_word_embeddings", True)
    tensors = _tensors(vocabulary, hidden, layers, tied)
    return Architecture(
        family="gemma3",
        model_type=model_type,
        text_type=_TEXT_TYPES.get(model_type, model_type),
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        norm_eps=text.number("rms_norm_eps", 1e-6),
        context=text.integer("max_position_embeddings", 131_072),
        sliding_window=text.integer("sliding_window", 4096),
        activation=activation,
        embedding_scale=hidden**0.5,
        attention_scale=scalar**-0.5,
        norm_offset=1.0,
        tied_head=tied,
        bos=keys.token(text, BOS_ID, 2, vocabulary),
        eos=keys.end_tokens(config, text, 1, vocabulary),
        pad=keys.token(text, PAD_ID, 0, vocabulary),
        end_of_turn=gemma.END_OF_TURN,
        sampling=gemma.SAMPLING,
        final_softcap=text.optional_number("final_logit_softcapping"),
        query_pre_attn_scalar=scalar,
        tensors=tensors,
        norms=gemma.norms(tensors),
        prefixes=keys.PREFIXES,
        parts=_PARTS,
    )


def _layers(text: Settings) -> tuple[Layer, ...]:
    count = text.integer("num_hidden_layers", 26, high=keys.MOST_LAYERS)
    attention = keys.attention_types(text, count, text.integer("sliding_window_pattern", 6))
    query_heads = text.integer("num_attention_heads", 8, high=keys.WIDEST)
    kv_heads = keys.heads(text, query_heads, 4)
    head_dim = text.integer("head_dim", 256, high=keys.WIDEST)
    feed_forward = text.integer("intermediate_size", 9216, high=keys.WIDEST)
    ropes = {SLIDING: _rope(text, SLIDING), FULL: _rope(text, FULL)}
    return tuple(
        Layer(
            index=index,
            attention=kind,
            heads=query_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            feed_forward=feed_forward,
            rope_theta=ropes[kind].theta,
            rope_scaling_factor=ropes[kind].factor,
        )
        for index, kind in enumerate(attention)
    )


def _rope(text: Settings, kind: str) -> _Rope:
    """RoPE of one kind of layer: ``rope_parameters`` per kind, or the older three keys.

    As in transformers, ``rope_scaling`` is for the full layers only and wins over ``rope_parameters``.
    """
    nested = text.section("rope_parameters") or Settings({}, text.where)
    unknown = sorted(nested.values.keys() - {"full_attention", "sliding_attention"})
    if unknown:
        raise nested.error(unknown[0], "is unknown (expected full_attention and sliding_attention)")
    older = text.section("rope_scaling") if kind == FULL else None
    given = nested.section(f"{kind}_attention") or Settings({}, f"{text.where} {kind} rope")
    rope = Settings({**given.values, **(older.values if older else {})}, given.where)
    kinds = ("default", "linear")
    name = rope.values.get("rope_type", rope.values.get("type", "default"))
    if name not in kinds:
        raise rope.error(
            "rope_type", f"is {shown(name)}, which is not supported (expected {' or '.join(kinds)})"
        )
    key, default = ("rope_theta", 1_000_000.0) if kind == FULL else ("rope_local_base_freq", 10_000.0)
    theta = rope.number("rope_theta", text.number(key, default))
    return _Rope(theta, rope.number("factor") if name == "linear" else 1.0)


def _tensors(vocabulary: int, hidden: int, layers: tuple[Layer, ...], tied: bool) -> keys.Shapes:
    shapes: keys.Shapes = {EMBEDDING: (vocabulary, hidden)}
    for layer in layers:
        prefix = f"layers.{layer.index}."
        queries, key_rows = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (queries, hidden),
            f"{prefix}self_attn.q_norm.weight": (layer.head_dim,),
            f"{prefix}self_attn.k_proj.weight": (key_rows, hidden),
            f"{prefix}self_attn.k_norm.weight": (layer.head_dim,),
            f"{prefix}self_attn.v_proj.weight": (key_rows, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, queries),
        }
        shapes |= keys.mlp(prefix, hidden, layer.feed_forward)
        shapes |= keys.norms(prefix, hidden, gemma.LAYER_NORMS)
    shapes[FINAL_NORM] = (hidden,)
    if not tied:
        shapes[HEAD] = (vocabulary, hidden)
    return shapes


FAMILY: Final = Family(("gemma3", "gemma3_text"), read)
