"""Write checkpoints in Gemma's mobile form (``quant_method: gemma``), with the widths of the published E2B.

    PYTHONPATH=.:tests python -m checkpoints.mobile SOURCE OUT

The numbers of an unquantised checkpoint are rounded to codes: attention to 4 bits, the MLP to 4 bits in the
layers with keys and values of their own and to 2 behind them, the head and the embedding to 2, the per-layer
embeddings to 4, all projections of per-layer inputs to 8. transformers loads what is written
(``tests/converter/checkpoint/stored/test_gemma_mobile.py``).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from checkpoints.schemes import Floats
from converter.checkpoint.architecture import Architecture
from converter.checkpoint.canonical_names import EMBEDDING
from converter.checkpoint.lattice import bf16_bits
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.weight import Weight
from converter.filenames import EVALUATION_TEXT
from support.raw_safetensors import write_shards, write_tensors

Tensors = dict[str, NDArray[Any]]
Rules = Mapping[str, Mapping[str, int]]

#: What the head is: one of its own; of the embedding's codes, not tied to it or tied; the embedding, which is
#: not packed. transformers 5.23 loads no packed embedding that a head is tied to.
HEADS: Final = ("own", "copied", "tied", "numbers")
#: Steps of the activations that are calibrated: of what a norm gives, which is about 1 in size, and others.
_INPUT_STEP, _OUTPUT_STEP, _CACHE_STEP = 0.0625, 0.09, 0.03
_EMBEDDINGS: Final = ("embed_tokens", "embed_tokens_per_layer")
#: Modules that are not converted, as expressions for the beginning of their names.
KEPT: Final = (r"model\.vision_tower\.patch_embedder", r"model\.embed_(vision|audio)")


def write_mobile(
    source: Path,
    directory: Path,
    *,
    head: str = "own",
    blocks: int = 1,
    activations: bool = True,
    extremes: bool = False,
    half: bool = False,
    shards: int = 1,
    rules: Rules | None = None,
) -> Path:
    """Write the unquantised checkpoint in ``source`` to ``directory`` in the mobile form and return that.

    ``head`` is one of ``HEADS``; ``"numbers"`` is for text-only checkpoints. ``blocks`` are the scales in a
    row of the per-layer embeddings. With ``activations``, half of the modules have static scales of
    activations, and the others zeros. With ``extremes``, some scales are out of float16's
    range: whole heads of queries, whose norm takes that back, and rows that hardly count. ``half`` gives
    scales that float16 holds. ``rules`` replace the bits of the published scheme.
    """
    tensors, config = mobile_tensors(
        source, head=head, blocks=blocks, activations=activations, extremes=extremes, half=half, rules=rules
    )
    return write_packed(source, directory, tensors, config, shards)


def write_packed(
    source: Path, directory: Path, tensors: Tensors, config: Mapping[str, Any], shards: int = 1
) -> Path:
    """A checkpoint of ``tensors`` and ``config``, with the other files of the one in ``source``. The limits
    of its own text are left out: they were measured for other weights."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
    if (own := directory / EVALUATION_TEXT).exists():
        text = {name: value for name, value in json.loads(own.read_bytes()).items() if name != "gates"}
        own.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if shards == 1:
        write_tensors(directory / "model.safetensors", tensors)
    else:
        names = list(tensors)
        parts = {f"model-{part}.safetensors": names[part::shards] for part in range(shards)}
        write_shards(directory, {file: {name: tensors[name] for name in own} for file, own in parts.items()})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return directory


def mobile_tensors(
    source: Path,
    *,
    head: str = "own",
    blocks: int = 1,
    activations: bool = True,
    extremes: bool = False,
    half: bool = False,
    rules: Rules | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and ``config.json`` of ``write_mobile``; raises ``ValueError`` for another ``head``."""
    if head not in HEADS:
        raise ValueError(f"unknown {head!r}; known: {', '.join(HEADS)}")
    tied = head in ("tied", "numbers")
    checkpoint = open_checkpoint(source)
    architecture = checkpoint.architecture
    chosen = published_rules(architecture) if rules is None else rules
    found: Tensors = {}
    for weight in checkpoint.weights.values():
        if head == "numbers" and weight.name == EMBEDDING:
            found[weight.source] = bf16_bits(weight.floats(0, weight.rows))
        else:
            found |= _stored(weight, chosen, blocks, extremes, half)
    for own in checkpoint.parts.values():
        for weight in own.values():
            found |= _stored_part(weight)
    table = checkpoint.weights[EMBEDDING].source.removesuffix(".weight")
    if head != "numbers":
        step = -1 if head == "own" else 1
        found["lm_head.weight"] = found[f"{table}.embedding_quantized"][::step].copy()
        found["lm_head.weight_scale"] = found[f"{table}.embedding_scale"][::step].copy()
    found |= _activations(list(found), activations, extremes)
    config = json.loads((source / "config.json").read_text())
    config["tie_word_embeddings"] = tied
    if "text_config" in config:
        config["text_config"]["tie_word_embeddings"] = tied
    if head == "numbers":
        chosen = {name: rule for name, rule in chosen.items() if name not in ("lm_head", "embed_tokens$")}
    config["quantization_config"] = {
        "module_quant_configs": dict(chosen),
        "modules_to_not_convert": None if head == "numbers" else list(KEPT),
        "num_bits": 4,
        "quant_method": "gemma",
        "quantize_embeddings": True,
    }
    return found, config


def published_rules(architecture: Architecture) -> Rules:
    """Bits of modules as the published E2B has them, as expressions in the order of their search."""
    sharing = [str(layer.index) for layer in architecture.layers if layer.kv_source is not None]
    rules: dict[str, Mapping[str, int]] = {
        "lm_head": {"num_bits": 2},
        "embed_tokens$": {"num_bits": 2},
        "embed_tokens_per_layer": {"num_bits": 4},
        r"per_layer_(input_gate|projection|model_projection)$": {"num_bits": 8},
    }
    if sharing:
        rules[rf"layers\.(?:{'|'.join(sharing)})\.mlp\."] = {"num_bits": 2}
    return rules


def bits_of(module: str, rules: Rules) -> int:
    """By the rules for these names, in each of which one rule at most is found."""
    found = [one["num_bits"] for pattern, one in rules.items() if re.search(pattern, module)]
    return found[0] if found else 4


def _stored(weight: Weight, rules: Rules, blocks: int, extremes: bool, half: bool) -> Tensors:
    values = weight.floats(0, weight.rows)
    module, _, last = weight.source.rpartition(".")
    if len(weight.shape) != 2 or last != "weight":
        return {weight.source: bf16_bits(values).reshape(weight.shape)}
    bits = bits_of(module, rules)
    table = module.endswith(_EMBEDDINGS)
    count = blocks if module.endswith("per_layer") else 1
    codes, scales = quantised(values, bits, count, half=half)
    if extremes:
        _stretch(module, scales)
    names = ("embedding_quantized", "embedding_scale") if table else ("weight", "weight_scale")
    return {f"{module}.{names[0]}": packed(codes, bits), f"{module}.{names[1]}": scales}


def _stored_part(weight: Weight) -> Tensors:
    """Linear modules of the encoders have 4 bits; what is no linear module, or is not converted, stays."""
    values = weight.floats(0, weight.rows)
    module, _, last = weight.source.rpartition(".")
    if len(weight.shape) != 2 or last != "weight" or any(re.match(one, module) for one in KEPT):
        return {weight.source: bf16_bits(values).reshape(weight.shape)}
    codes, scales = quantised(values, 4, 1)
    return {f"{module}.weight": packed(codes, 4), f"{module}.weight_scale": scales}


def quantised(
    values: Floats, bits: int, blocks: int, *, half: bool = False
) -> tuple[NDArray[np.int8], Floats]:
    """Codes, int8 of the shape of ``values``, and float32 scales ``[rows, blocks]``. Codes of 2 bits come of
    twice the mean magnitude, others of the largest one."""
    rows, columns = values.shape
    grouped = values.reshape(rows, blocks, columns // blocks)
    if bits == 2:
        scales: Floats = np.float32(1.2) * np.abs(grouped).mean(axis=2)
    else:
        scales = np.abs(grouped).max(axis=2) / np.float32(2 ** (bits - 1) - 1)
    if half:
        scales = scales.astype(np.float16).astype(np.float32)
    divided = np.rint(grouped / np.where(scales, scales, 1)[:, :, None])
    codes = np.clip(divided, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int8)
    return codes.reshape(rows, columns), scales


def _stretch(module: str, scales: Floats) -> None:
    """Give some rows scales that float16 does not hold, in place."""
    if module.endswith("layers.0.self_attn.q_proj"):
        scales[: len(scales) // 4] *= np.float32(1e8)
    if module.endswith(("layers.0.mlp.up_proj", "layers.5.mlp.down_proj", "per_layer_model_projection")):
        scales[0] = 3e-8
        scales[1] = 1e-40
        scales[2] = 0


def packed(codes: NDArray[np.int8], bits: int) -> NDArray[Any]:
    """Codes ``[rows, columns]`` as stored."""
    if bits == 8:
        return codes
    each = 8 // bits
    missing = -codes.shape[1] % each
    unsigned = (codes + 2 ** (bits - 1)).astype(np.uint8)
    unsigned = np.pad(unsigned, ((0, 0), (0, missing)))
    unsigned = unsigned.reshape(len(codes), unsigned.shape[1] // each, each)
    shifted = unsigned << (bits * np.arange(each, dtype=np.uint8))
    joined: NDArray[np.uint8] = np.bitwise_or.reduce(shifted, axis=2)
    return joined


def _activations(names: Sequence[str], calibrated: bool, extremes: bool) -> Tensors:
    """Static scales of every other linear module, and of every cache; zeros of the rest."""
    found: Tensors = {}
    modules = [name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")]
    for index, module in enumerate(modules):
        on = calibrated and index % 2 == 0
        stretched = extremes and module.endswith("layers.0.self_attn.q_proj")
        found[f"{module}.input_activation_scale"] = _scalar(_INPUT_STEP if on else 0)
        found[f"{module}.output_activation_scale"] = _scalar(_OUTPUT_STEP if on and not stretched else 0)
        attention, _, projection = module.rpartition(".")
        if projection == "k_proj":
            for name in ("k_cache_scale", "v_cache_scale"):
                found[f"{attention}.{name}"] = _scalar(_CACHE_STEP if calibrated else 0)
    return found


def _scalar(value: float) -> NDArray[np.float32]:
    return np.full((), value, np.float32)


def main() -> None:
    """The command line of the generator."""
    parser = argparse.ArgumentParser(prog="python -m checkpoints.mobile", description="Pack a checkpoint.")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--head", choices=HEADS, default="own")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--extremes", action="store_true")
    options = parser.parse_args()
    write_mobile(
        options.source, options.out, head=options.head, blocks=options.blocks, extremes=options.extremes
    )


if __name__ == "__main__":
    main()
