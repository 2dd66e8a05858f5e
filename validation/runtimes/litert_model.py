"""Child process of ``litert``: a bundle's logits, behind a prefill and token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import ValidationError
from converter.system.child import peak_bytes, serve
from converter.system.progress import StageProgress
from validation.decoding import DECODED, compare_decoding
from validation.logits import LogitRows
from validation.runners import CPU
from validation.runtimes.litert_session import Decoder, open_decoder


def write_logits(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Write float32 logits of ``sequences``, each from its index in ``firsts`` on, for ``artifact`` to
    ``output`` (.npy)."""
    sequences: list[list[int]] = request["sequences"]
    vocabulary: int = request["vocabulary"]
    firsts: list[int] = request["firsts"]
    if outside := [token for ids in sequences for token in ids if not 0 <= token < vocabulary]:
        raise ValidationError(f"token {outside[0]} is outside the vocabulary of {vocabulary}")
    decoder = open_decoder(Path(request["artifact"]), Path(request["scratch"]))
    _check(decoder, sequences, vocabulary)
    counts = [len(ids) - first for ids, first in zip(sequences, firsts, strict=True)]
    whole = [index for index, first in enumerate(firsts) if not first]
    longest = max(whole, key=lambda index: len(sequences[index]), default=0)
    decoded = sequences[longest][:DECODED] if whole else []
    positions, before = sum(counts), sum(counts[:longest])
    total = positions + len(decoded)
    decode = None
    with LogitRows(Path(request["output"]), positions, vocabulary) as rows:
        for done, row in enumerate(_behind_prefill(decoder, sequences, firsts), 1):
            rows.write(row)
            progress(done, total)
        if decoded:
            decode = compare_decoding(
                _decode(decoder, decoded),
                lambda index: rows.read(before + index),
                lambda step: progress(positions + step, total),
            )
    return {
        "version": version("ai-edge-litert"),
        "settings": {
            "provider": CPU,
            "signatures": list(decoder.signatures),
            "context_length": decoder.context,
            "rounded_activations": decoder.rounded,
            "threads": decoder.threads,
            "peak_bytes": peak_bytes(),
            **({} if decode is None else {"decode": decode}),
        },
    }


def _check(decoder: Decoder, sequences: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Refuse what belongs to another model, and what is longer than the caches."""
    if decoder.vocabulary != vocabulary:
        raise ValidationError(
            f"gives logits of {decoder.vocabulary} tokens where the checkpoint has {vocabulary}"
        )
    longest = max(map(len, sequences))
    if longest > decoder.context:
        raise ValidationError(
            f"a sequence of {longest} positions does not fit its context of {decoder.context};"
            " validate fewer positions, or convert with a longer context"
        )


def _behind_prefill(
    decoder: Decoder, sequences: Sequence[Sequence[int]], firsts: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """Logits ``[vocabulary]`` of each sequence's positions from its first on.

    A token is decoded over the keys and values that the prefill of its whole sequence made of the tokens
    before it.
    """
    for ids, first in zip(sequences, firsts, strict=True):
        cache = decoder.prefill(ids)
        for position in range(first, len(ids)):
            yield decoder.step(ids[position], position, cache)[0]


def _decode(decoder: Decoder, tokens: Sequence[int]) -> Iterator[tuple[NDArray[np.float32], float]]:
    """Logits of ``tokens``, one at a time from an empty cache, and the seconds that each step took. The
    interpreter copies the caches in and out, which is part of these seconds."""
    cache = decoder.empty_cache()
    for position, token in enumerate(tokens):
        begin = time.perf_counter()
        logits, cache = decoder.step(token, position, cache)
        yield logits, time.perf_counter() - begin


if __name__ == "__main__":
    serve(write_logits)
