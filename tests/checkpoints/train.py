"""Train ``gemma4-demo``: a real, very small Gemma 4, first in bfloat16, then on a 4-bit lattice.

    PYTHONPATH=.:tests python -m checkpoints.train

writes ``gemma4-demo-base`` beside this file and ``gemma4-demo`` where it ships from, and prints what they are
worth on topics that were not trained on. Needs torch and transformers, no network, and about a
quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import AutoTokenizer, Gemma4ForCausalLM, PreTrainedTokenizerBase

from checkpoints import DEMO_BASE
from checkpoints.evaluation import write_evaluation_text
from checkpoints.measure import comparison
from checkpoints.model import VOCABULARY, new_model, save_checkpoint, save_tokenizer
from checkpoints.quantisation import is_matrix, on_lattice, straight_through
from checkpoints.text import conversations, other_scripts, training_documents
from checkpoints.vocabulary import SPECIAL_TOKENS, train_tokenizer
from converter.demo import DEMO

WINDOW = 256
BATCH = 8
#: How often a text is cut between two characters before it is tokenised.
CUTS = 0.03
#: Lines in each of several other scripts that every pass contains.
SCRIPT_LINES = 6


#: ``rounded(name, weight)`` is a weight as a forward pass has it.
Rounded = Callable[[str, torch.Tensor], torch.Tensor]


def on_the_lattice(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Every matrix on the lattice; gradients pass unchanged."""
    return straight_through(weight) if is_matrix(name, weight) else weight


@dataclass(frozen=True)
class Stage:
    """One stage of training: passes over the text, peak learning rate, dropout, and how weights are rounded,
    ``None`` for not at all."""

    name: str
    epochs: int
    rate: float
    dropout: float
    rounded: Rounded | None = None


BASE_STAGE = Stage("base", epochs=10, rate=4e-3, dropout=0.15)
QAT_STAGE = Stage("qat", epochs=3, rate=8e-4, dropout=0.15, rounded=on_the_lattice)


def training_stream(tokenizer: PreTrainedTokenizerBase, chooser: random.Random) -> torch.Tensor:
    """Every training topic and chat in random order, each closed by ``<eos>``: ids, int64 ``[tokens]``."""
    documents = training_documents()
    begin = tokenizer.bos_token
    texts = [begin + text for text in documents.values()]
    for turns in conversations(documents, chooser):
        texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    for _ in range(SCRIPT_LINES):
        texts += [begin + line for line in other_scripts(chooser)]
    chooser.shuffle(texts)
    ids = [varied_ids(tokenizer, text, chooser) for text in texts]
    return torch.tensor([token for row in ids for token in [*row, tokenizer.eos_token_id]])


def varied_ids(tokenizer: PreTrainedTokenizerBase, text: str, chooser: random.Random) -> list[int]:
    """Token ids of ``text`` after random cuts, so that a word is met in other pieces at every pass.

    The effect is that of BPE dropout (Provilkov et al., 2020), whose own random numbers cannot be seeded.
    """
    marks = "|".join(re.escape(token) for token in SPECIAL_TOKENS)
    pieces = []
    for part in re.split(f"({marks})", text):
        cuts = [] if part in SPECIAL_TOKENS else [at for at in range(1, len(part)) if chooser.random() < CUTS]
        ends = [*cuts, len(part)]
        pieces += [part[start:end] for start, end in zip([0, *cuts], ends, strict=True) if start < end]
    encoded = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    return [token for row in encoded for token in row]


def batches(stream: torch.Tensor, chooser: random.Random) -> Iterator[torch.Tensor]:
    """One pass over ``stream`` in random order: int64 ``[BATCH, WINDOW + 1]``."""
    starts = list(range(chooser.randrange(WINDOW), len(stream) - WINDOW - 1, WINDOW))
    chooser.shuffle(starts)
    for first in range(0, len(starts) - BATCH + 1, BATCH):
        yield torch.stack([stream[start : start + WINDOW + 1] for start in starts[first : first + BATCH]])


def add_dropout(model: Gemma4ForCausalLM, share: float) -> None:
    """Drop ``share`` of what every attention, feed-forward and embedding layer puts out."""

    def drop(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, share, training=module.training)

    text = model.model
    modules = [text.embed_tokens, text.embed_tokens_per_layer]
    for layer in text.layers:
        modules += [layer.self_attn.o_proj, layer.mlp.down_proj, layer.per_layer_projection]
    for module in modules:
        module._forward_hooks.clear()
        module.register_forward_hook(drop)


def learning_rate(stage: Stage, step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then a cosine to a hundredth of the peak."""
    warm = max(1, steps // 20)
    if step < warm:
        return stage.rate * (step + 1) / warm
    return stage.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def optimiser_for(model: Gemma4ForCausalLM, rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms and scalars alone."""
    matrices = [weight for name, weight in model.named_parameters() if is_matrix(name, weight)]
    others = [weight for name, weight in model.named_parameters() if not is_matrix(name, weight)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8)


def train(
    model: Gemma4ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage,
    seed: int,
    report: Callable[[str], None],
    score: Callable[[Gemma4ForCausalLM], float] | None = None,
) -> None:
    """Run one stage on ``model`` in place; every step sees the weights that the stage rounds."""
    chooser = random.Random(seed)
    torch.manual_seed(seed)
    add_dropout(model, stage.dropout)
    optimiser = optimiser_for(model, stage.rate)
    steps = stage.epochs * (len(training_stream(tokenizer, random.Random(seed))) // (WINDOW * BATCH) - 1)
    began, step = time.monotonic(), 0
    while step < steps:
        losses = []
        for tokens in batches(training_stream(tokenizer, chooser), chooser):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(stage, step, steps)
            loss = next_token_loss(model.train(), tokens, stage.rounded)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
            step += 1
            if step == steps:
                break
        held_out = f", held out {score(model.eval()):.3f}" if score else ""
        report(
            f"{stage.name}: step {step}/{steps}, loss {sum(losses) / len(losses):.3f}{held_out}, "
            f"{time.monotonic() - began:.0f} s"
        )


def next_token_loss(
    model: Gemma4ForCausalLM, tokens: torch.Tensor, rounded: Rounded | None = None
) -> torch.Tensor:
    """Mean cross-entropy of ``tokens[:, 1:]``, int64 ``[batch, length]``, with ``rounded`` weights."""
    weights = dict(model.named_parameters())
    if rounded is not None:
        weights = {name: rounded(name, weight) for name, weight in weights.items()}
    arguments = {"input_ids": tokens[:, :-1], "use_cache": False}
    logits = functional_call(model, weights, kwargs=arguments, tie_weights=True).logits
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))


def finished_weights(model: Gemma4ForCausalLM, quantised: bool) -> Mapping[str, torch.Tensor]:
    """The weights to save, float32 by name: every matrix on the lattice if ``quantised``."""
    return {
        name: on_lattice(weight) if quantised and is_matrix(name, weight) else weight.detach()
        for name, weight in model.named_parameters()
    }


def main() -> None:
    """Train both checkpoints, save them and print the comparison."""
    parser = argparse.ArgumentParser(description="Train the demonstration checkpoints.")
    parser.add_argument("--out", type=Path, help="where both checkpoints go, instead of their places here")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="more pay on an idle machine only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base, demo = DEMO_BASE, DEMO
    if options.out is not None:
        base, demo = options.out / base.name, options.out / demo.name
    vocabulary = train_tokenizer(list(training_documents().values()), VOCABULARY)
    for directory in (base, demo):
        save_tokenizer(vocabulary, directory)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = new_model(options.seed)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters", flush=True)
    for stage, directory in ((BASE_STAGE, base), (QAT_STAGE, demo)):
        train(model, tokenizer, stage, options.seed, lambda line: print(line, flush=True))
        save_checkpoint(finished_weights(model, stage is QAT_STAGE), vocabulary, directory)
    write_evaluation_text(demo)
    print(comparison(base, demo))


if __name__ == "__main__":
    main()
