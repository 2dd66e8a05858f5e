"""Train ``gemma4-demo-mobile``: the demonstration model in Gemma's mobile form (``quant_method: gemma``).

    PYTHONPATH=.:tests python -m checkpoints.train_mobile

starts from ``gemma4-demo-base`` with a wider MLP, trains with every matrix rounded as the form holds it, then
calibrates static 8-bit grids for what goes into and comes out of every linear module and trains with them
too. Writes the checkpoint to where it ships from, and prints what it is worth on topics that were not trained
on. Needs torch and transformers, no network, and about a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Gemma4ForCausalLM

from checkpoints import DEMO_BASE
from checkpoints.evaluation import MOBILE_LIMITS, write_evaluation_text
from checkpoints.measure import held_out_windows, load, log_probabilities, mean_kld, perplexity
from checkpoints.mobile import KEPT, bits_of, packed, published_rules
from checkpoints.model import new_model, save_configuration
from checkpoints.quantisation import is_matrix
from checkpoints.train import Stage, batches, train, training_stream
from converter.checkpoint.architecture import read_architecture
from converter.demo import DEMO_MOBILE
from support.raw_safetensors import write_tensors

#: Others than the demonstration model's. Down projections behind shared keys and values have rows of 768
#: values, three blocks of GGUF's type for 2 bits; the head has codes of its own.
SETTINGS: Final[Mapping[str, Any]] = {"intermediate_size": 384, "tie_word_embeddings": False}
#: Of new rows of the wider MLP; new columns are zeros, so that the model computes what it did.
_STD: Final = 0.03
#: What a scale of 2-bit codes is of a row's mean magnitude.
_TWO_BITS: Final = 1.2
#: Passes of a batch that grids are calibrated on.
_CALIBRATION: Final = 12
#: Keeps the scales of rows that training left empty from being 0.
_SMALLEST_SCALE: Final = 2.0**-13

WEIGHTS_EPOCHS: Final = 6
GRIDS_EPOCHS: Final = 3


def widened(base: Path, seed: int) -> Gemma4ForCausalLM:
    """The model in ``base`` with the settings of this one, in float32: it computes the same."""
    model = new_model(seed, **SETTINGS)
    torch.manual_seed(seed)
    stored = {
        name.replace("language_model.", "", 1): tensor.float()
        for name, tensor in load_file(base / "model.safetensors").items()
    }
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            old = stored.pop(name)
            if name.endswith("down_proj.weight"):
                weight.zero_()
            elif weight.shape != old.shape:
                weight.normal_(std=_STD)
            weight[tuple(slice(size) for size in old.shape)] = old
    if stored:
        raise ValueError(f"the base model has {', '.join(stored)}, which this one has not")
    return model


class Rules:
    """Bits of every matrix, by the rules of the published checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.rules = published_rules(read_architecture(config))

    def bits(self, name: str) -> int:
        """Of the weight of a name, which may be canonical or the model's."""
        return bits_of(name.removesuffix(".weight"), self.rules)

    def codes(self, name: str, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Integer codes, float32 of the shape of ``weight`` (float32 ``[rows, columns]``), and a float32
        scale for each row, ``[rows, 1]``."""
        bits, weight = self.bits(name), weight.detach()
        largest = 2 ** (bits - 1) - 1
        size = weight.abs()
        scale = _TWO_BITS * size.mean(1, keepdim=True) if bits == 2 else size.amax(1, keepdim=True) / largest
        scale = scale.clamp_min(_SMALLEST_SCALE)
        return (weight / scale).round().clamp(-largest - 1, largest), scale

    def rounded(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A matrix as the form holds it, and what is none in bfloat16; gradients pass unchanged."""
        if is_matrix(name, weight):
            codes, scale = self.codes(name, weight)
            held = codes * scale
        else:
            held = weight.to(torch.bfloat16).float()
        return weight + (held - weight).detach()


@dataclass
class Grids:
    """Static grids of 8 bits for the inputs and outputs of the linear modules of a model."""

    #: The step of a grid by the name of its tensor, once it is calibrated.
    steps: dict[str, float] = field(default_factory=dict)
    #: The largest magnitudes seen by the same names; ``None`` where nothing is being calibrated.
    seen: dict[str, float] | None = None

    def apply(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """``values`` on the grid of ``name``; gradients pass where they are within its range."""
        if self.seen is not None:
            self.seen[name] = max(self.seen.get(name, 0.0), float(values.detach().abs().max()))
        step = self.steps.get(name)
        if step is None:
            return values
        bounded = values.clamp(-128 * step, 127 * step)
        on_grid = (values / step).round().clamp(-128, 127) * step
        return bounded + (on_grid - bounded).detach()

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Take the largest magnitudes of what is computed meanwhile for the ends of the grids."""
        self.seen = {}
        yield
        # as float32 holds the step, so that what is saved is what is trained
        self.steps = {name: float(np.float32(size / 127)) for name, size in self.seen.items() if size}
        self.seen = None

    def attach(self, model: Gemma4ForCausalLM) -> None:
        """Put the grids around every linear module. The logits stay as they are, and so do what keys and
        values become in the caches, whose grids are only recorded."""
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.forward = self._around(name, module)

    def _around(self, name: str, module: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(values: torch.Tensor) -> torch.Tensor:
            taken = self.apply(f"{name}.input_activation_scale", values)
            given = torch.nn.functional.linear(taken, module.weight, module.bias)
            return given if name == "lm_head" else self.apply(f"{name}.output_activation_scale", given)

        return forward


def calibrate(model: Gemma4ForCausalLM, grids: Grids, rules: Rules, tokens: list[torch.Tensor]) -> None:
    """Calibrate ``grids`` on batches of token ids, int64 ``[batch, length]``, with rounded weights."""
    weights = {name: rules.rounded(name, weight) for name, weight in model.named_parameters()}
    with torch.no_grad(), grids.calibrating():
        for batch in tokens:
            arguments = {"input_ids": batch[:, :-1], "use_cache": False}
            torch.func.functional_call(model.eval(), weights, kwargs=arguments)


def saved_tensors(model: Gemma4ForCausalLM, grids: Grids, rules: Rules) -> dict[str, NDArray[Any]]:
    """What the checkpoint stores, by its names."""
    found: dict[str, NDArray[Any]] = {}
    for own, weight in model.named_parameters():
        name = own.replace("model.", "model.language_model.", 1)
        if not is_matrix(own, weight):
            found[name] = _bfloat16(weight)
            continue
        codes, scale = rules.codes(own, weight)
        table = re.search(r"embed_tokens(_per_layer)?\.weight$", own) is not None
        kinds = ("embedding_quantized", "embedding_scale") if table else ("weight", "weight_scale")
        module = name.removesuffix(".weight")
        found[f"{module}.{kinds[0]}"] = packed(codes.to(torch.int8).numpy(), rules.bits(own))
        found[f"{module}.{kinds[1]}"] = scale.numpy()
        if table:
            continue
        for kind in ("input_activation_scale", "output_activation_scale"):
            step = grids.steps.get(f"{own.removesuffix('.weight')}.{kind}", 0.0)
            found[f"{module}.{kind}"] = np.full((), step, np.float32)
        attention, _, projection = module.rpartition(".")
        if projection in ("k_proj", "v_proj"):
            of_output = found[f"{module}.output_activation_scale"]
            found[f"{attention}.{projection[0]}_cache_scale"] = np.array(of_output)
    return found


def _bfloat16(weight: torch.Tensor) -> NDArray[np.uint16]:
    rounded: NDArray[np.int16] = (weight.detach() + 0.0).to(torch.bfloat16).view(torch.int16).numpy()
    return rounded.view(np.uint16)


def save(model: Gemma4ForCausalLM, grids: Grids, rules: Rules, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the checkpoint as the Hub has such ones."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / "model.safetensors", saved_tensors(model, grids, rules))
    section = {
        "module_quant_configs": dict(rules.rules),
        "modules_to_not_convert": list(KEPT),
        "num_bits": 4,
        "quant_method": "gemma",
        "quantize_embeddings": True,
    }
    save_configuration(tokenizer, directory, {"quantization_config": section}, **SETTINGS)


def rounded_alone(base: Path, rules: Rules, seed: int) -> Gemma4ForCausalLM:
    """The model in ``base`` rounded to the scheme, without training and grids."""
    model = widened(base, seed).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(rules.rounded(name, weight))
    return model


def worth(base: Path, mobile: Path, rules: Rules, seed: int) -> str:
    """Perplexities of the base, of the base rounded to the scheme, and of the checkpoint with its grids and
    without them, and how far apart the last two are, as lines of text."""
    windows = held_out_windows(mobile)
    found = {
        "base": log_probabilities(load(base), windows),
        "base, rounded": log_probabilities(rounded_alone(base, rules, seed), windows),
    }
    model = load(mobile)
    found["mobile, with its grids"] = log_probabilities(model, windows)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_activation_scale"):
                parameter.zero_()
    found["mobile, without its grids"] = log_probabilities(model, windows)
    lines = [f"perplexity, {name:28s} {perplexity(one, windows):8.4f}" for name, one in found.items()]
    without, within = found["mobile, without its grids"], found["mobile, with its grids"]
    same = (without.argmax(-1) == within.argmax(-1)).double().mean().item()
    lines.append(f"mean KLD of the grids {mean_kld(without, within):.4f}, same top token {same:.4f}")
    return "\n".join(lines)


def main() -> None:
    """Train the checkpoint, save it and print what it is worth."""
    parser = argparse.ArgumentParser(description="Train the demonstration checkpoint in the mobile form.")
    parser.add_argument("--out", type=Path, default=DEMO_MOBILE)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="more pay on an idle machine only")
    parser.add_argument("--epochs", type=int, nargs=2, default=[WEIGHTS_EPOCHS, GRIDS_EPOCHS])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vocabulary = Tokenizer.from_file(str(DEMO_BASE / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(DEMO_BASE)
    model = widened(DEMO_BASE, options.seed)
    save_configuration(vocabulary, options.out, **SETTINGS)
    rules, grids = Rules(json.loads((options.out / "config.json").read_text("utf-8"))), Grids()
    grids.attach(model)
    report = partial(print, flush=True)
    report(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")
    stage = Stage("weights", options.epochs[0], rate=2.5e-3, dropout=0.1, rounded=rules.rounded)
    train(model, tokenizer, stage, options.seed, report)
    chooser = random.Random(options.seed)
    stream = batches(training_stream(tokenizer, chooser), chooser)
    calibrate(model, grids, rules, [next(stream) for _ in range(_CALIBRATION)])
    stage = replace(stage, name="grids", epochs=options.epochs[1], rate=6e-4)
    train(model, tokenizer, stage, options.seed, report)
    save(model, grids, rules, vocabulary, options.out)
    write_evaluation_text(options.out, MOBILE_LIMITS)
    print(worth(DEMO_BASE, options.out, rules, options.seed))


if __name__ == "__main__":
    main()
