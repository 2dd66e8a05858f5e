"""Write checkpoints of random weights: every architecture, every lattice, tiny or of a chosen size.

    PYTHONPATH=.:tests python -m checkpoints.generate --variant e2b --scheme max7 OUT

The files have the Hub's form (or that of a re-save by transformers), the demonstration model's tokenizer, and
weights whose logits are neither flat nor certain. Rows are made and written in ranges by several threads, so
that a checkpoint of several gigabytes needs little memory; the same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from checkpoints import towers
from checkpoints.schemes import SCHEMES, Floats, Scheme, random_rows
from checkpoints.variants import E2B_FULL_SIZE, VARIANTS, Variant
from converter.checkpoint.architecture import Architecture, read_architecture
from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.demo import DEMO
from converter.system.processors import processors

LAYOUTS = ("hub", "transformers")
#: Bytes a value takes in the file, by the name of its type in the safetensors header.
STORED = {"BF16": 2, "F16": 2, "F32": 4}
#: What a checkpoint holds of the keys and values of layers that share those of others: nothing, all but the
#: norms, or all. Real exports differ in it.
SHARED = ("none", "projections", "all")
#: Values made at a time by each thread.
RANGE = 1 << 20


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file: its name there, its shape, and how its values are drawn.

    ``std`` is the values' standard deviation around ``mean``; ``scheme`` rounds a matrix to a lattice.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float
    scheme: Scheme | None

    @property
    def columns(self) -> int:
        """Length of the last dimension (1 for a scalar)."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Product of the other dimensions."""
        return math.prod(self.shape[:-1])


def write_checkpoint(
    directory: Path,
    variant: str,
    scheme: str = "max7",
    *,
    seed: int = 0,
    layout: str = "hub",
    shards: int = 1,
    stored: str = "BF16",
    scale: float | None = None,
    text: Mapping[str, object] | None = None,
    tied: bool = True,
    shared: str = "none",
    threads: int | None = None,
) -> Path:
    """Write a checkpoint into ``directory`` (made if absent) and return it.

    ``variant`` is a key of ``VARIANTS``, ``scheme`` of ``SCHEMES``; ``layout`` is ``"hub"`` or
    ``"transformers"``; ``shards`` is the number of safetensors files; ``stored`` the type in them, whose
    values are bfloat16's whatever it is. ``scale`` (``e2b`` and ``text`` only) makes a model in E2B's full
    proportions, every width multiplied by it: 0.42 gives 1.5 GB of bfloat16, 0.6 gives 3.4 GB.
    ``text`` overrides keys of the text configuration; ``tied`` false adds an ``lm_head.weight``.
    ``shared``, of ``SHARED``, is what layers hold that share the keys and values of others: values that a
    model that used them would end with, far from those of other layers; all else is the same. Raises
    ``ValueError`` for an unknown name and ``CheckpointError`` for overrides that make no model.
    """
    for value, known in (
        (variant, VARIANTS),
        (scheme, SCHEMES),
        (layout, LAYOUTS),
        (stored, STORED),
        (shared, SHARED),
    ):
        if value not in known:
            raise ValueError(f"unknown {value!r}; known: {', '.join(known)}")
    if scale is not None and variant not in ("e2b", "text"):
        raise ValueError(f"scale is for E2B's proportions, not for {variant}")
    chosen = VARIANTS[variant]
    config = configuration(chosen, layout, scale, {**(text or {}), "tie_word_embeddings": tied})
    architecture = read_architecture(config)
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory, architecture.vocabulary - chosen.extra_vocabulary)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = planned_tensors(chosen, architecture, SCHEMES[scheme])
    tensors += _unused_tensors(chosen, architecture, SCHEMES[scheme], shared)
    _write_shards(directory, tensors, seed, shards, stored, threads or processors())
    return directory


def configuration(
    variant: Variant, layout: str, scale: float | None = None, overrides: Mapping[str, object] | None = None
) -> dict[str, object]:
    """``config.json`` of a variant: nested for a multimodal ``model_type``, flat for a text-only one."""
    text = {**variant.text, **(scaled(scale) if scale is not None else {}), **(overrides or {})}
    text.setdefault("vocab_size", _demo_tokens() + variant.extra_vocabulary)
    if text.get("hidden_size_per_layer_input") is not None:
        text.setdefault("vocab_size_per_layer_input", text["vocab_size"])
    count = towers.size(text, "num_hidden_layers")
    text.setdefault(
        "layer_types",
        ["sliding_attention" if (index + 1) % variant.period else "full_attention" for index in range(count)],
    )
    if layout == "transformers":
        text = resaved(text)
    names = {
        "gemma4": "Gemma4ForConditionalGeneration",
        "gemma4_text": "Gemma4ForCausalLM",
        "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
        "gemma3": "Gemma3ForConditionalGeneration",
        "gemma3_text": "Gemma3ForCausalLM",
    }
    if variant.model_type == text["model_type"]:
        return {"architectures": [names[variant.model_type]], **text}
    ids = _token_ids()
    return {
        "architectures": [names[variant.model_type]],
        "audio_config": variant.audio,
        "dtype": "bfloat16",
        "eos_token_id": [ids["<eos>"], ids["<turn|>"]],
        "initializer_range": 0.02,
        **({"mm_tokens_per_image": 4} if variant.model_type == "gemma3" else {}),
        "model_type": variant.model_type,
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "vision_config": variant.vision,
        **{key: ids[token] for key, token in variant.ids.items()},
    }


def scaled(scale: float) -> dict[str, object]:
    """E2B's text settings, widths and vocabulary multiplied by ``scale`` and rounded to 64 or 32."""
    text = dict(E2B_FULL_SIZE)
    steps = {
        "global_head_dim": 64,
        "head_dim": 32,
        "hidden_size": 64,
        "hidden_size_per_layer_input": 32,
        "intermediate_size": 64,
        "vocab_size": 64,
    }
    for key, step in steps.items():
        text[key] = step * max(1, round(towers.size(E2B_FULL_SIZE, key) * scale / step))
    text["vocab_size"] = max(_demo_tokens(), towers.size(text, "vocab_size"))
    return text


def resaved(text: Mapping[str, object]) -> dict[str, object]:
    """Text settings as transformers 5.23 saves them again.

    Gemma 4's two ``global`` keys become ``per_layer_config``, which lists the full-attention layers;
    Gemma 3's three RoPE keys become ``rope_parameters``.
    """
    saved = dict(text)
    if "rope_theta" in saved:
        linear = saved.pop("rope_scaling") or {"rope_type": "default"}
        saved["rope_parameters"] = {
            "full_attention": {"rope_theta": saved.pop("rope_theta"), **dict(linear)},  # type: ignore[call-overload]
            "sliding_attention": {"rope_theta": saved.pop("rope_local_base_freq"), "rope_type": "default"},
        }
        return saved
    override = {"head_dim": saved.pop("global_head_dim")}
    kv_heads = saved.pop("num_global_key_value_heads")
    if kv_heads is not None and saved["attention_k_eq_v"]:
        override["num_key_value_heads"] = kv_heads
    kinds = saved["layer_types"]
    assert isinstance(kinds, list)
    saved["per_layer_config"] = {
        str(index): override for index, kind in enumerate(kinds) if kind == "full_attention"
    }
    return saved


def planned_tensors(
    variant: Variant, architecture: Architecture, scheme: Scheme | None
) -> list[PlannedTensor]:
    """Every tensor of the checkpoint in file order, text first.

    Matrices keep the size of what they are given, since norms precede them; embeddings give logits of a
    standard deviation near 2, and key norms play the part of ``1 / sqrt(head_dim)``.
    """
    planned = []
    for name, shape in architecture.tensors.items():
        prefix = "" if name.startswith("lm_head") else variant.prefix
        mean, std = _distribution(name, shape, architecture)
        planned.append(PlannedTensor(prefix + name, shape, mean, std, scheme if len(shape) > 1 else None))
    for name, shape in variant.towers.items():
        bound = {"min": -8.0, "max": 8.0}.get(name.rpartition("_")[2], 0.0) if shape == () else 0.0
        planned.append(PlannedTensor(name, shape, bound, 0.0 if shape == () else 0.05, None))
    return planned


def _unused_tensors(
    variant: Variant, architecture: Architecture, scheme: Scheme | None, shared: str
) -> list[PlannedTensor]:
    """What a checkpoint holds of layers that share keys and values, behind all else in the file."""
    kinds = {"none": (), "projections": ("k_proj", "v_proj"), "all": ("k_proj", "v_proj", "k_norm")}[shared]
    planned = []
    for layer in architecture.layers:
        for kind in kinds if layer.kv_source is not None else ():
            name = f"{variant.prefix}layers.{layer.index}.self_attn.{kind}.weight"
            if kind == "k_norm":
                planned.append(PlannedTensor(name, (layer.head_dim,), 100.0, 10.0, None))
            else:
                shape = (layer.kv_heads * layer.head_dim, architecture.hidden)
                planned.append(PlannedTensor(name, shape, 0.0, 10.0, scheme))
    return planned


def _distribution(name: str, shape: tuple[int, ...], architecture: Architecture) -> tuple[float, float]:
    """Mean and standard deviation of a text tensor's values."""
    part = name.rpartition(".weight")[0] or name
    if len(shape) > 1:
        return 0.0, 1.5 if part.endswith("router.proj") else shape[-1] ** -0.5
    mean = 1.0 - architecture.norm_offset
    if part.endswith("layer_scalar"):
        return 0.8, 0.05
    if part == "norm":
        return mean + 1.0, 0.1
    if part.endswith("k_norm") and architecture.attention_scale == 1:
        return 1.5 * shape[0] ** -0.5, 0.1 * shape[0] ** -0.5
    return mean, 0.1


def write_tokenizer(directory: Path, tokens: int) -> None:
    """Copy the demonstration model's tokenizer; further ids below ``tokens`` become ``<unusedN>``."""
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (directory / name).write_bytes((DEMO / name).read_bytes())
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for index in range(len(vocabulary), tokens):
        vocabulary[f"<unused{index}>"] = index
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _token_ids() -> dict[str, int]:
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    return {str(token): int(index) for token, index in tokenizer["model"]["vocab"].items()}


def _demo_tokens() -> int:
    return len(_token_ids())


def _write_shards(
    directory: Path, tensors: list[PlannedTensor], seed: int, shards: int, stored: str, threads: int
) -> None:
    """One ``model.safetensors``, or numbered files and their index; tensors fill the files in order."""
    sizes = [tensor.rows * tensor.columns * STORED[stored] for tensor in tensors]
    total, done = sum(sizes), 0
    files: dict[str, list[int]] = {}
    for index, size in enumerate(sizes):
        number = min(shards - 1, done * shards // total)
        name = "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        files.setdefault(name, []).append(index)
        done += size
    if len(files) != shards:
        raise ValueError(f"{len(tensors)} tensors do not fill {shards} shards")
    for name, indices in files.items():
        _write_file(directory / name, {index: tensors[index] for index in indices}, seed, stored, threads)
    if shards > 1:
        places = {tensors[index].name: name for name, indices in files.items() for index in indices}
        index_file = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        text = json.dumps(index_file, indent=2) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _write_file(
    path: Path, tensors: Mapping[int, PlannedTensor], seed: int, stored: str, threads: int
) -> None:
    """One safetensors file: header length, JSON header padded to eight bytes, then the tensors in order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors.values():
        end = offset + tensor.rows * tensor.columns * STORED[stored]
        header[tensor.name] = {"dtype": stored, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, ThreadPoolExecutor(threads) as pool:
        file.write(len(text).to_bytes(8, "little") + text)
        pieces = _pieces(tensors, seed)
        waiting = [pool.submit(_values, *piece, stored) for piece in islice(pieces, 2 * threads)]
        while waiting:
            file.write(waiting.pop(0).result().data)
            if piece := next(pieces, None):
                waiting.append(pool.submit(_values, *piece, stored))


def _pieces(
    tensors: Mapping[int, PlannedTensor], seed: int
) -> Iterator[tuple[PlannedTensor, int, tuple[int, ...]]]:
    """Row ranges of every tensor: the tensor, the number of rows, and the seed that is theirs alone."""
    for index, tensor in tensors.items():
        step = max(1, RANGE // tensor.columns)
        for start in range(0, tensor.rows, step):
            yield tensor, min(step, tensor.rows - start), (seed, index, start)


def _values(tensor: PlannedTensor, rows: int, seed: tuple[int, ...], stored: str) -> NDArray[np.generic]:
    """Some rows as they are stored; a buffer to be written."""
    values: Floats = random_rows(tensor.scheme, rows, tensor.columns, tensor.std, seed)
    if tensor.mean:
        values += np.float32(tensor.mean)
    bits = bf16_bits(values)
    if stored == "BF16":
        return bits
    return bf16_floats(bits).astype(np.float16 if stored == "F16" else np.float32)


def main() -> None:
    """The command line of the generator."""
    parser = argparse.ArgumentParser(
        prog="python -m checkpoints.generate", description="Write a checkpoint of random weights."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="e2b")
    parser.add_argument("--scheme", choices=sorted(SCHEMES), default="max7")
    parser.add_argument("--layout", choices=LAYOUTS, default="hub")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stored", choices=sorted(STORED), default="BF16")
    parser.add_argument(
        "--shared", choices=SHARED, default="none", help="K and V of layers that share others'"
    )
    parser.add_argument("--scale", type=float, help="E2B's full proportions times this")
    options = parser.parse_args()
    write_checkpoint(
        options.out,
        options.variant,
        options.scheme,
        seed=options.seed,
        layout=options.layout,
        shards=options.shards,
        stored=options.stored,
        shared=options.shared,
        scale=options.scale,
    )


if __name__ == "__main__":
    main()
