"""Gemma 4: E2B, E4B, 12B (unified), 26B-A4B, 31B, and their text-only re-saves.

Keys, defaults and shapes are those of transformers 5.23 (``Gemma4TextConfig``, ``Gemma4TextModel``,
``Gemma4UnifiedTextConfig``), which the tests compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from converter.checkpoint.architecture import gemma, keys
from converter.checkpoint.architecture.layers import FULL, Architecture, Experts, Family, Layer, PerLayerInput
from converter.checkpoint.canonical_names import EMBEDDING, FINAL_NORM, HEAD, PER_LAYER_EMBEDDING
from converter.checkpoint.parts import AUDIO, VISION, Part
from converter.checkpoint.special_tokens import BOS_ID, PAD_ID
from converter.system.untrusted import Settings, shown

_TEXT_TYPES: Final = {"gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text"}
_PARTS: Final = (
    Part(
        VISION,
        {
            "model.vision_tower.": "vision encoder",
            "model.embed_vision.": "vision projection",
            "model.vision_embedder.": "vision embedder",
            "vision_tower.": "vision encoder",
            "embed_vision.": "vision projection",
            "vision_embedder.": "vision embedder",
        },
    ),
    Part(
        AUDIO,
        {
            "model.audio_tower.": "audio encoder",
            "model.embed_audio.": "audio projection",
            "audio_tower.": "audio encoder",
            "embed_audio.": "audio projection",
        },
    ),
)
_ROPE_DEFAULTS: Final[dict[str, object]] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
_SHARED_KV: Final = "keys and values of this layer come from an earlier layer"
_KEY_IS_VALUE: Final = "values of this layer come from its key projection"


@dataclass(frozen=True, slots=True)
class _Heads:
    """KV heads and head size of one layer."""

    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class _Rope:
    theta: float
    fraction: float
    factor: float


def read(config: Settings, model_type: str) -> Architecture:
    """The architecture of a Gemma 4 ``config.json``, in either layout; raises ``CheckpointError``."""
    text = keys.text_settings(config, model_type, _TEXT_TYPES)
    unified = model_type.startswith("gemma4_unified")
    activation = gemma.mlp_activation(text)
    text.require("attention_bias", (False,), False)
    text.require("use_bidirectional_attention", (None, "vision"), "vision" if unified else None)
    vocabulary = text.integer("vocab_size", 262_144, high=keys.LARGEST_VOCABULARY)
    hidden = text.integer("hidden_size", 2304, high=keys.WIDEST)
    layers = _layers(text)
    experts = None if unified else _experts(text)
    per_layer_input = None if unified else _per_layer_input(text)
    tied = config.flag("tie_word_embeddings", True)
    tensors = _tensors(vocabulary, hidden, layers, experts, per_layer_input, tied)
    return Architecture(
        family="gemma4",
        model_type=model_type,
        text_type=_TEXT_TYPES.get(model_type, model_type),
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        norm_eps=text.number("rms_norm_eps", 1e-6),
        context=text.integer("max_position_embeddings", 262_144 if unified else 131_072),
        sliding_window=text.integer("sliding_window", 1024 if unified else 512),
        activation=activation,
        embedding_scale=hidden**0.5,
        attention_scale=1.0,
        norm_offset=0.0,
        tied_head=tied,
        bos=keys.token(text, BOS_ID, 2, vocabulary),
        eos=keys.end_tokens(config, text, 1, vocabulary),
        pad=keys.token(text, PAD_ID, 0, vocabulary),
        end_of_turn=gemma.END_OF_TURN,
        sampling=gemma.SAMPLING,
        values_normed=True,
        final_softcap=text.optional_number("final_logit_softcapping"),
        experts=experts,
        per_layer_input=per_layer_input,
        tensors=tensors,
        norms=gemma.norms(tensors),
        routers=tuple(_router(f"layers.{layer.index}.") for layer in layers) if experts else (),
        unused=_unused(layers),
        prefixes=keys.PREFIXES,
        parts=_PARTS,
    )


def _layers(text: Settings) -> tuple[Layer, ...]:
    count = text.integer("num_hidden_layers", 30, high=keys.MOST_LAYERS)
    attention = keys.attention_types(text, count, 6)
    attention[-1] = FULL  # transformers forces it, whatever the file says
    query_heads = text.integer("num_attention_heads", 8, high=keys.WIDEST)
    feed_forward = text.integer("intermediate_size", 9216, high=keys.WIDEST)
    double_wide = text.flag("use_double_wide_mlp", False)
    key_is_value = text.flag("attention_k_eq_v", False)
    per_layer = _heads(text, attention, query_heads)
    sources = _kv_sources(text, attention)
    ropes = {kind: _rope(text, f"{kind}_attention") for kind in sorted(set(attention))}
    layers = []
    for index, kind in enumerate(attention):
        source = sources[index]
        if source is not None and per_layer[index] != per_layer[source]:
            raise text.error(
                "per_layer_config", f"gives layer {index} other heads than layer {source}, whose KV it uses"
            )
        layers.append(
            Layer(
                index=index,
                attention=kind,
                heads=query_heads,
                kv_heads=per_layer[index].kv_heads,
                head_dim=per_layer[index].head_dim,
                feed_forward=feed_forward * (2 if double_wide and source is not None else 1),
                kv_source=source,
                key_is_value=key_is_value and kind == FULL,
                rope_theta=ropes[kind].theta,
                rotary_fraction=ropes[kind].fraction,
                rope_scaling_factor=ropes[kind].factor,
            )
        )
    return tuple(layers)


def _heads(text: Settings, attention: list[str], query_heads: int) -> list[_Heads]:
    """Heads per layer, from ``per_layer_config`` where it is there, else from the global keys."""
    base = _Heads(keys.heads(text, query_heads, 4), text.integer("head_dim", 256, high=keys.WIDEST))
    overrides = text.section("per_layer_config")
    if overrides is not None:
        return _overridden(overrides, base, len(attention), query_heads)
    # as in transformers, the global number of KV heads counts only where K serves as V
    kv_heads = text.optional_integer("num_global_key_value_heads", low=1, high=query_heads)
    if kv_heads is None or not text.flag("attention_k_eq_v", False):
        kv_heads = base.kv_heads
    if query_heads % kv_heads:
        raise text.error(
            "num_global_key_value_heads", f"is {kv_heads}, which does not divide {query_heads} heads"
        )
    full = _Heads(kv_heads, text.integer("global_head_dim", 512, high=keys.WIDEST))
    return [full if kind == FULL else base for kind in attention]


def _overridden(overrides: Settings, base: _Heads, layers: int, query_heads: int) -> list[_Heads]:
    result = [base] * layers
    for key in overrides.values:
        if not (key.isascii() and key.isdigit() and len(key) <= 6 and int(key) < layers):
            raise overrides.error(key, f"is no index of the {layers} layers")
        layer = overrides.section(key)
        if layer is None:
            raise overrides.error(key, "is null, expected an object")
        unknown = sorted(layer.values.keys() - {"head_dim", "num_key_value_heads", "skip"})
        if unknown or layer.values.get("skip"):
            raise layer.error((unknown or ["skip"])[0], "is not supported per layer")
        result[int(key)] = _Heads(
            keys.heads(layer, query_heads, base.kv_heads),
            layer.integer("head_dim", base.head_dim, high=keys.WIDEST),
        )
    return result


def _kv_sources(text: Settings, attention: list[str]) -> list[int | None]:
    """For each layer the one whose KV it uses: the last of its kind before the sharing layers."""
    shared = text.integer("num_kv_shared_layers", 0, low=0, high=len(attention) - 1)
    first = len(attention) - shared
    own = attention[:first]
    last = {kind: index for index, kind in enumerate(own)}
    for kind in attention[first:]:
        if kind not in last:
            raise text.error("num_kv_shared_layers", f"is {shared}, which leaves no {kind} layer with own KV")
    return [None if index < first else last[kind] for index, kind in enumerate(attention)]


def _rope(text: Settings, kind: str) -> _Rope:
    if text.values.get("rope_parameters") is None:
        every: Settings | None = Settings(_ROPE_DEFAULTS, f"{text.where} default rope")
    else:
        every = text.section("rope_parameters")
    rope = every.section(kind) if every else None
    if rope is None:
        raise text.error("rope_parameters", f"lacks {kind}")
    kinds = ("default", "proportional")
    name = rope.values.get("rope_type", rope.values.get("type", "default"))
    if name not in kinds:
        raise rope.error(
            "rope_type", f"is {shown(name)}, which is not supported (expected {' or '.join(kinds)})"
        )
    theta = rope.number("rope_theta")
    if name == "default":
        return _Rope(theta, 1.0, 1.0)
    fraction = rope.number("partial_rotary_factor", 1.0, positive=False)
    if not 0 <= fraction <= 1:
        raise rope.error("partial_rotary_factor", f"is {fraction}, outside 0..1")
    return _Rope(theta, fraction, rope.number("factor", 1.0))


def _experts(text: Settings) -> Experts | None:
    if not text.flag("enable_moe_block", False):
        return None
    count = text.integer("num_experts", high=1 << 16)
    active = text.integer("top_k_experts", high=count)
    return Experts(count, active, text.integer("moe_intermediate_size", high=keys.WIDEST))


def _per_layer_input(text: Settings) -> PerLayerInput | None:
    size = text.optional_integer("hidden_size_per_layer_input", 256, high=keys.WIDEST)
    if not size:
        return None
    rows = text.integer("vocab_size_per_layer_input", 262_144, high=keys.LARGEST_VOCABULARY)
    return PerLayerInput(size, rows)


def _tensors(
    vocabulary: int,
    hidden: int,
    layers: tuple[Layer, ...],
    experts: Experts | None,
    per_layer_input: PerLayerInput | None,
    tied: bool,
) -> keys.Shapes:
    shapes: keys.Shapes = {EMBEDDING: (vocabulary, hidden)}
    if per_layer_input:
        columns = len(layers) * per_layer_input.size
        shapes[PER_LAYER_EMBEDDING] = (per_layer_input.vocabulary, columns)
        shapes["per_layer_model_projection.weight"] = (columns, hidden)
        shapes["per_layer_projection_norm.weight"] = (per_layer_input.size,)
    for layer in layers:
        prefix = f"layers.{layer.index}."
        shapes |= _attention(prefix, hidden, layer)
        shapes |= keys.mlp(prefix, hidden, layer.feed_forward)
        shapes |= keys.norms(prefix, hidden, gemma.LAYER_NORMS)
        shapes[f"{prefix}layer_scalar"] = (1,)
        if per_layer_input:
            shapes[f"{prefix}per_layer_input_gate.weight"] = (per_layer_input.size, hidden)
            shapes[f"{prefix}per_layer_projection.weight"] = (hidden, per_layer_input.size)
            shapes[f"{prefix}post_per_layer_input_norm.weight"] = (hidden,)
        if experts:
            shapes |= _mixture(prefix, hidden, experts)
    shapes[FINAL_NORM] = (hidden,)
    if not tied:
        shapes[HEAD] = (vocabulary, hidden)
    return shapes


def _attention(prefix: str, hidden: int, layer: Layer) -> keys.Shapes:
    queries = layer.heads * layer.head_dim
    key_rows = layer.kv_heads * layer.head_dim
    shapes: keys.Shapes = {
        f"{prefix}self_attn.q_proj.weight": (queries, hidden),
        f"{prefix}self_attn.q_norm.weight": (layer.head_dim,),
    }
    if layer.kv_source is None:
        shapes[f"{prefix}self_attn.k_proj.weight"] = (key_rows, hidden)
        shapes[f"{prefix}self_attn.k_norm.weight"] = (layer.head_dim,)
        if not layer.key_is_value:
            shapes[f"{prefix}self_attn.v_proj.weight"] = (key_rows, hidden)
    shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, queries)
    return shapes


def _router(prefix: str) -> str:
    """Name of a layer's router."""
    return f"{prefix}router.proj.weight"


def _mixture(prefix: str, hidden: int, experts: Experts) -> keys.Shapes:
    names = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
    return {
        _router(prefix): (experts.count, hidden),
        f"{prefix}router.scale": (hidden,),
        f"{prefix}router.per_expert_scale": (experts.count,),
        f"{prefix}experts.gate_up_proj": (experts.count, 2 * experts.feed_forward, hidden),
        f"{prefix}experts.down_proj": (experts.count, hidden, experts.feed_forward),
        **keys.norms(prefix, hidden, names),
    }


def _unused(layers: tuple[Layer, ...]) -> dict[str, str]:
    """Tensors without a place in the model: K and V of layers that share others, V where K serves as V."""
    unused = {}
    for layer in layers:
        prefix = f"layers.{layer.index}.self_attn."
        if layer.kv_source is not None:
            names = ("k_proj", "v_proj", "k_norm", "v_norm")
            unused.update({f"{prefix}{name}.weight": _SHARED_KV for name in names})
        elif layer.key_is_value:
            unused[f"{prefix}v_proj.weight"] = _KEY_IS_VALUE
    return unused


FAMILY: Final = Family(
    ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
    read,
    drafters=("gemma4_assistant", "gemma4_unified_assistant"),
)
