"""The demonstration model itself: its configuration, and how it is saved in the Hub's layout.

The Hub nests the text settings of Gemma 4 under ``text_config``, with ``global_head_dim`` for the
full-attention layers, and names the text tensors ``model.language_model.*``; transformers' own
``save_pretrained`` writes another layout, so the files are written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from checkpoints.vocabulary import write_tokenizer

VOCABULARY = 1280
CONTEXT = 2048
#: Six layers with keys and values of their own, the last two sliding and full; three that share those.
LAYER_TYPES = ("sliding_attention", "sliding_attention", "full_attention") * 3


def text_config(**settings: object) -> dict[str, object]:
    """The text settings as the Hub writes them; ``settings`` are others than the demonstration model's."""
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_k_eq_v": False,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "enable_moe_block": False,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 64,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 128,
        "hidden_size_per_layer_input": 32,
        "initializer_range": 0.02,
        "intermediate_size": 320,
        "layer_types": list(LAYER_TYPES),
        "max_position_embeddings": CONTEXT,
        "model_type": "gemma4_text",
        "moe_intermediate_size": None,
        "num_attention_heads": 4,
        "num_experts": None,
        "num_global_key_value_heads": None,
        "num_hidden_layers": len(LAYER_TYPES),
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 3,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 64,
        "tie_word_embeddings": True,
        "top_k_experts": None,
        "use_bidirectional_attention": None,
        "use_cache": True,
        "use_double_wide_mlp": True,
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
    } | settings


def new_model(seed: int, **settings: object) -> Gemma4ForCausalLM:
    """An untrained model in float32 whose layer scalars can be trained; ``settings`` as for ``text_config``.

    Gemma 4 scales attention by 1 and leaves the temperature to the norms of queries and keys, so the
    key norms start at ``head_dim ** -0.5``.
    """
    torch.manual_seed(seed)
    model = Gemma4ForCausalLM(Gemma4TextConfig(**text_config(**settings)))
    for layer in model.model.layers:
        scalar = layer.layer_scalar
        del layer.layer_scalar
        layer.layer_scalar = torch.nn.Parameter(scalar)
        if not layer.self_attn.is_kv_shared_layer:
            torch.nn.init.constant_(layer.self_attn.k_norm.weight, layer.self_attn.head_dim**-0.5)
    return model.float()


def save_checkpoint(weights: Mapping[str, torch.Tensor], tokenizer: Tokenizer, directory: Path) -> None:
    """Write ``weights`` (float32, by the text model's names ``model.*``) as a bfloat16 checkpoint.

    Tied weights are left out, as on the Hub; negative zeros become zeros.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name.replace("model.", "model.language_model.", 1): (weight.detach() + 0.0).to(torch.bfloat16)
        for name, weight in weights.items()
        if name != "lm_head.weight"
    }
    tensors = {name: torch.where(tensor == 0, 0.0, tensor).contiguous() for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    save_configuration(tokenizer, directory)


def save_configuration(
    tokenizer: Tokenizer, directory: Path, more: Mapping[str, object] | None = None, **settings: object
) -> None:
    """Write the files beside the weights; ``settings`` as for ``text_config``, and ``more`` entries of
    ``config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    token = tokenizer.token_to_id
    text = text_config(**settings)
    config = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": None,
        "audio_token_id": token("<|audio|>"),
        "boa_token_id": token("<|audio>"),
        "boi_token_id": token("<|image>"),
        "dtype": "bfloat16",
        "eoa_token_index": token("<audio|>"),
        "eoi_token_id": token("<image|>"),
        "eos_token_id": [token("<eos>"), token("<turn|>")],
        "image_token_id": token("<|image|>"),
        "initializer_range": 0.02,
        "model_type": "gemma4",
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "video_token_id": token("<|video|>"),
        "vision_config": None,
    } | dict(more or {})
    generation = {
        "bos_token_id": token("<bos>"),
        "do_sample": True,
        "eos_token_id": [token("<eos>"), token("<turn|>")],
        "pad_token_id": token("<pad>"),
        "temperature": 1.0,
        "top_k": 64,
        "top_p": 0.95,
    }
    for file, content in (("config.json", config), ("generation_config.json", generation)):
        (directory / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, directory)


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the tokenizer's files and the chat template for this model's context."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, directory, CONTEXT)
