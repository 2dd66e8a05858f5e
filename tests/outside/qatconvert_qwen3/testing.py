"""A small Qwen3 whose matrices lie on a lattice of 4 bits; the tokenizer is learned of
the passages that models are judged on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from qatconvert_qwen3.tokenizer import EXPRESSION
from support.raw_safetensors import write_tensors
from validation.text import read_passages

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


#: Of a vocabulary, beside 256 bytes and what is learned.
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
#: Added and shown.
TAGS: Final = ("<think>", "</think>")
#: Rows of the embedding beyond the tokens, as published models have.
_FURTHER: Final = 8
#: ChatML, with the beginning of the answer.
TEMPLATE: Final = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write_qwen3(directory: Path, **config: object) -> Path:
    """Write a checkpoint with random weights; ``config`` changes ``config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = learn_tokenizer(660)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
    _write_json(
        directory / "tokenizer_config.json",
        {
            **special,
            "add_bos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "Qwen2Tokenizer",
        },
    )
    (directory / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    end, turn_end = (tokenizer.token_to_id(text) for text in ("<|endoftext|>", "<|im_end|>"))
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": end, "eos_token_id": [turn_end, end], "pad_token_id": end},
    )
    ids = {"bos_token_id": end, "eos_token_id": turn_end, "pad_token_id": end}
    values = {**CONFIG, **ids, "vocab_size": tokenizer.get_vocab_size() + _FURTHER, **config}
    _write_json(directory / "config.json", values)
    write_tensors(directory / "model.safetensors", _tensors(values))
    return directory


def learn_tokenizer(size: int) -> Tokenizer:
    """A byte-level BPE of ``size`` tokens and the added ones, cut as Qwen's, of the shipped passages."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(EXPRESSION), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((passage.text for passage in read_passages()), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in TAGS])
    return tokenizer


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values), "utf-8")


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
