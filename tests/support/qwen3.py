"""A small Qwen3 whose matrices lie on a lattice of 4 bits; the tokenizer is the demonstration model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.demo import DEMO
from support.raw_safetensors import write_tensors

#: Values that share a scale.
BLOCK = 32
CONFIG: Mapping[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "dtype": "bfloat16",
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}


def write_qwen3(directory: Path, **config: object) -> Path:
    """Write a checkpoint with random weights; ``config`` changes ``config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (directory / name).write_bytes((DEMO / name).read_bytes())
    vocabulary = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": len(vocabulary)}
    values = {**CONFIG, **ids, **config}
    (directory / "config.json").write_text(json.dumps(values))
    write_tensors(directory / "model.safetensors", _tensors(values))
    return directory


def _tensors(config: Mapping[str, object]) -> dict[str, NDArray[np.uint16]]:
    sizes = {name: value for name, value in config.items() if isinstance(value, int)}
    hidden, wide = sizes["hidden_size"], sizes["intermediate_size"]
    queries = sizes["num_attention_heads"] * sizes["head_dim"]
    keys = sizes["num_key_value_heads"] * sizes["head_dim"]
    generator = np.random.default_rng(7)
    tensors = {"model.embed_tokens.weight": _matrix(generator, sizes["vocab_size"], hidden, 1.0)}
    for layer in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", queries, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ):
            tensors[f"{prefix}{name}.weight"] = _matrix(generator, rows, columns, columns**-0.5)
        for name, size in (
            ("input_layernorm", hidden),
            ("post_attention_layernorm", hidden),
            ("self_attn.q_norm", sizes["head_dim"]),
            ("self_attn.k_norm", sizes["head_dim"]),
        ):
            tensors[f"{prefix}{name}.weight"] = _bits(generator.normal(1.0, 0.1, size))
    tensors["model.norm.weight"] = _bits(generator.normal(0.3, 0.02, hidden))
    return tensors


def _matrix(generator: np.random.Generator, rows: int, columns: int, size: float) -> NDArray[np.uint16]:
    """Codes from -7 to 7, times scales whose products with them bfloat16 holds."""
    codes = generator.integers(-7, 8, (rows, columns // BLOCK, BLOCK))
    codes[..., 0] = 7  # so that the scale can be read off the largest value
    scales = generator.choice([1.0, 1.25, 1.5, 1.75], (rows, columns // BLOCK, 1))
    scales *= 2.0 ** np.round(np.log2(size / 6))
    return _bits((codes * scales).reshape(rows, columns))


def _bits(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """bfloat16's bit patterns, rounded down."""
    bits: NDArray[np.uint32] = values.astype(np.float32).view(np.uint32) >> 16
    return bits.astype(np.uint16)
