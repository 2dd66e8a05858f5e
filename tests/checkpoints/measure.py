"""What the demonstration checkpoints are worth: held-out perplexity and KL divergence in transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from checkpoints.quantisation import naive_q4_0
from checkpoints.text import held_out_documents

LENGTH = 512


def held_out_windows(directory: Path, limit: int | None = None) -> torch.Tensor:
    """The held-out topics as int64 ``[windows, LENGTH]``, each window opened by ``<bos>``."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [
        token
        for text in held_out_documents()
        for token in [
            *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
    ]
    count = len(ids) // (LENGTH - 1)
    rows = torch.tensor(ids[: count * (LENGTH - 1)]).reshape(count, LENGTH - 1)
    opening = torch.full((count, 1), tokenizer.bos_token_id)
    return torch.cat([opening, rows], dim=1)[:limit]


def load(directory: Path) -> PreTrainedModel:
    """The checkpoint as transformers loads it, in float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def with_naive_q4_0(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` itself, every matrix replaced by what a naive Q4_0 conversion keeps of it."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in naive_q4_0(weights).items():
            weights[name].copy_(weight)
    return model


def log_probabilities(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """float32 ``[windows, LENGTH - 1, vocabulary]`` for the positions that have a next token."""
    with torch.no_grad():
        return torch.cat([F.log_softmax(model(input_ids=row[None, :-1]).logits, dim=-1) for row in windows])


def perplexity(log_probs: torch.Tensor, windows: torch.Tensor) -> float:
    """``exp`` of the mean negative log-likelihood of every next token."""
    chosen = log_probs.gather(-1, windows[:, 1:, None])
    return math.exp(-chosen.double().mean().item())


def mean_kld(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """Mean over positions of KL(reference || candidate), in nats, of two sets of log-probabilities."""
    return float((reference.exp() * (reference - candidate)).sum(-1).double().mean())


def measure(base: Path, demo: Path) -> Mapping[str, float]:
    """The figures of the model card, by name."""
    windows = held_out_windows(demo)
    figures: dict[str, float] = {}
    for name, directory in (("base", base), ("QAT", demo)):
        exact = log_probabilities(load(directory), windows)
        naive = log_probabilities(with_naive_q4_0(load(directory)), windows)
        figures[f"perplexity, {name}"] = perplexity(exact, windows)
        figures[f"perplexity, naive Q4_0 of {name}"] = perplexity(naive, windows)
        figures[f"mean KLD, naive Q4_0 of {name}"] = mean_kld(exact, naive)
        figures[f"same top token, naive Q4_0 of {name}"] = (
            (exact.argmax(-1) == naive.argmax(-1)).double().mean().item()
        )
    return figures


def comparison(base: Path, demo: Path) -> str:
    """The figures as lines of text; ends with whether QAT beats naive Q4_0 of the base model."""
    figures = measure(base, demo)
    lines = [f"{name:38s} {value:8.4f}" for name, value in figures.items()]
    better = figures["perplexity, QAT"] < figures["perplexity, naive Q4_0 of base"]
    lines.append(f"QAT {'beats' if better else 'does NOT beat'} naive Q4_0 of the base model")
    return "\n".join(lines)
