"""The vision and audio parts of the generated checkpoints: tiny configurations, and their tensors by name.

A text converter has to list these tensors and leave them out, so they carry the real names, clip bounds
included. Names and shapes are those of transformers 5.23, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Mapping

Shapes = dict[str, tuple[int, ...]]

_WIDTH = 32
_WIDE = 64
_CLIPS = ("input_min", "input_max", "output_min", "output_max")
VISION: Mapping[str, object] = {
    "dtype": "bfloat16",
    "head_dim": 16,
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDE,
    "model_type": "gemma4_vision",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 16,
    "standardize": False,
    "use_clipped_linears": True,
}
AUDIO: Mapping[str, object] = {
    "conv_kernel_size": 5,
    "dtype": "bfloat16",
    "hidden_size": _WIDTH,
    "model_type": "gemma4_audio",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "output_proj_dims": _WIDTH,
    "subsampling_conv_channels": [8, 4],
    "use_clipped_linears": True,
}
UNIFIED_AUDIO: Mapping[str, object] = {"audio_embed_dim": _WIDTH, "model_type": "gemma4_unified_audio"}
SIGLIP: Mapping[str, object] = {
    "hidden_size": _WIDTH,
    "image_size": 16,
    "intermediate_size": _WIDE,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 4,
    "vision_use_head": False,
}


def size(settings: Mapping[str, object], key: str) -> int:
    """An integer setting; raises ``TypeError`` for any other value."""
    value = settings[key]
    if not isinstance(value, int):
        raise TypeError(f"{key} is {value!r}, expected an integer")
    return value


def unified_vision_config(hidden: int) -> dict[str, object]:
    """Configuration of the unified models' patch embedder, which works in the text model's width."""
    return {
        "mm_embed_dim": hidden,
        "mm_posemb_size": 16,
        "model_type": "gemma4_unified_vision",
        "output_proj_dims": hidden,
        "patch_size": 4,
        "pooling_kernel_size": 2,
    }


def vision(hidden: int) -> Shapes:
    """Tensors of ``VISION`` beside a text model of width ``hidden``."""
    tower, layer = "model.vision_tower.", "model.vision_tower.encoder.layers.0."
    shapes: Shapes = {
        f"{tower}patch_embedder.position_embedding_table": (2, 16, _WIDTH),
        f"{tower}patch_embedder.input_proj.weight": (_WIDTH, 3 * 4 * 4),
    }
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        shapes |= _clipped(f"{layer}self_attn.{name}", _WIDTH, _WIDTH)
    shapes |= {f"{layer}self_attn.{name}.weight": (16,) for name in ("q_norm", "k_norm")}
    for name in ("gate_proj", "up_proj"):
        shapes |= _clipped(f"{layer}mlp.{name}", _WIDE, _WIDTH)
    shapes |= _clipped(f"{layer}mlp.down_proj", _WIDTH, _WIDE)
    for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        shapes[f"{layer}{name}_layernorm.weight"] = (_WIDTH,)
    return shapes | {"model.embed_vision.embedding_projection.weight": (hidden, _WIDTH)}


def audio(hidden: int) -> Shapes:
    """Tensors of ``AUDIO`` beside a text model of width ``hidden``."""
    tower, layer = "model.audio_tower.", "model.audio_tower.layers.0."
    sampling = f"{tower}subsample_conv_projection."
    shapes: Shapes = {
        f"{sampling}layer0.conv.weight": (8, 1, 3, 3),
        f"{sampling}layer0.norm.weight": (8,),
        f"{sampling}layer1.conv.weight": (4, 8, 3, 3),
        f"{sampling}layer1.norm.weight": (4,),
        f"{sampling}input_proj_linear.weight": (_WIDTH, 8),
    }
    for block in ("feed_forward1", "feed_forward2"):
        shapes |= _clipped(f"{layer}{block}.ffw_layer_1", 4 * _WIDTH, _WIDTH)
        shapes |= _clipped(f"{layer}{block}.ffw_layer_2", _WIDTH, 4 * _WIDTH)
        shapes |= {f"{layer}{block}.{name}_layer_norm.weight": (_WIDTH,) for name in ("pre", "post")}
    shapes[f"{layer}self_attn.per_dim_scale"] = (16,)
    for name in ("q_proj", "k_proj", "v_proj", "post"):
        shapes |= _clipped(f"{layer}self_attn.{name}", _WIDTH, _WIDTH)
    shapes[f"{layer}self_attn.relative_k_proj.weight"] = (_WIDTH, _WIDTH)
    shapes |= _clipped(f"{layer}lconv1d.linear_start", 2 * _WIDTH, _WIDTH)
    shapes |= _clipped(f"{layer}lconv1d.linear_end", _WIDTH, _WIDTH)
    shapes[f"{layer}lconv1d.depthwise_conv1d.weight"] = (_WIDTH, 1, 5)
    norms = ("lconv1d.pre_layer_norm", "lconv1d.conv_norm", "norm_pre_attn", "norm_post_attn", "norm_out")
    shapes |= {f"{layer}{name}.weight": (_WIDTH,) for name in norms}
    shapes |= {f"{tower}output_proj.weight": (_WIDTH, _WIDTH), f"{tower}output_proj.bias": (_WIDTH,)}
    return shapes | {"model.embed_audio.embedding_projection.weight": (hidden, _WIDTH)}


def unified(hidden: int) -> Shapes:
    """Tensors of the unified models' encoder-free vision and audio parts."""
    embedder, patch = "model.vision_embedder.", 3 * 8 * 8
    shapes: Shapes = {f"{embedder}pos_embedding": (16, 2, hidden)}
    for name, width in (("patch_ln1", patch), ("patch_ln2", hidden), ("pos_norm", hidden)):
        shapes |= {f"{embedder}{name}.{part}": (width,) for part in ("weight", "bias")}
    shapes |= {f"{embedder}patch_dense.weight": (hidden, patch), f"{embedder}patch_dense.bias": (hidden,)}
    shapes["model.embed_vision.embedding_projection.weight"] = (hidden, hidden)
    shapes["model.embed_audio.embedding_projection.weight"] = (hidden, _WIDTH)
    return shapes


def siglip(hidden: int) -> Shapes:
    """Tensors of Gemma 3's vision tower ``SIGLIP`` and of its projection."""
    tower = "vision_tower.vision_model."
    layer = f"{tower}encoder.layers.0."
    shapes: Shapes = {
        f"{tower}embeddings.patch_embedding.weight": (_WIDTH, 3, 4, 4),
        f"{tower}embeddings.patch_embedding.bias": (_WIDTH,),
        f"{tower}embeddings.position_embedding.weight": (16, _WIDTH),
    }
    for name in (f"{layer}layer_norm1", f"{layer}layer_norm2", f"{tower}post_layernorm"):
        shapes |= {f"{name}.{part}": (_WIDTH,) for part in ("weight", "bias")}
    linears = {f"self_attn.{name}": (_WIDTH, _WIDTH) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    linears |= {"mlp.fc1": (_WIDE, _WIDTH), "mlp.fc2": (_WIDTH, _WIDE)}
    for name, shape in linears.items():
        shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    shapes["multi_modal_projector.mm_input_projection_weight"] = (_WIDTH, hidden)
    shapes["multi_modal_projector.mm_soft_emb_norm.weight"] = (_WIDTH,)
    return shapes


def _clipped(name: str, rows: int, columns: int) -> Shapes:
    """A clippable linear layer: its matrix, and four scalar bounds beside it."""
    shapes: Shapes = {f"{name}.{bound}": () for bound in _CLIPS}
    return shapes | {f"{name}.linear.weight": (rows, columns)}
