"""Child process of ``onnxruntime``: an ONNX model's logits, by sequences and token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from converter.errors import ValidationError
from converter.system.child import peak_bytes, serve
from converter.system.progress import StageProgress
from targets.onnx.accuracy import accuracy_levels
from targets.onnx.grids import has_grids, without_grids
from validation.decoding import DECODED, compare_decoding
from validation.logits import LogitRows
from validation.runtimes.onnxruntime import short_name
from validation.runtimes.onnxruntime_session import Decoder, open_decoder, read_model

#: Most tokens of one run: their logits lie in memory together (128 x 262144 x 4 bytes = 0.13 GB), and once
#: more where onnxruntime computes them.
_CHUNK: Final = 128
#: The level at which MatMulNBits rounds activations to int8.
_ROUNDS: Final = 4


def write_logits(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Write float32 logits of ``sequences``, of each from its index in ``firsts`` on, for ``artifact`` to
    ``output`` (.npy)."""
    import onnxruntime

    path, level = Path(request["artifact"]), request["accuracy_level"]
    sequences: list[list[int]] = request["sequences"]
    firsts: list[int] = request["firsts"]
    vocabulary: int = request["vocabulary"]
    if outside := [token for ids in sequences for token in ids if not 0 <= token < vocabulary]:
        raise ValidationError(f"token {outside[0]} is outside the vocabulary of {vocabulary}")
    model = read_model(path)
    if not request["static_activations"]:
        model = without_grids(model)
    levels, gridded = accuracy_levels(model), has_grids(model)
    if level is not None and levels:
        levels = (level,)
    decoder = open_decoder(path, model, request["provider"], level)
    del model
    counts = [len(ids) - first for ids, first in zip(sequences, firsts, strict=True)]
    whole = [index for index, first in enumerate(firsts) if not first]
    longest = max(whole, key=lambda index: len(sequences[index]), default=None)
    decoded = [] if longest is None or not request["decode"] else sequences[longest][:DECODED]
    before = sum(counts[:longest])
    positions = sum(map(len, sequences))
    total = positions + len(decoded)
    with LogitRows(Path(request["output"]), sum(counts), vocabulary) as rows:
        done = 0
        for chunk, skipped in _prefill(decoder, sequences, firsts, vocabulary):
            if skipped < len(chunk):
                rows.write(chunk[skipped:])
            done += len(chunk)
            del chunk  # or it would lie beside the next
            progress(done, total)
        decode = decoded and compare_decoding(
            _decode(decoder, decoded),
            lambda index: rows.read(before + index),
            lambda step: progress(positions + step, total),
        )
    return {
        "version": onnxruntime.__version__,
        "settings": {
            "provider": short_name(request["provider"]),
            "accuracy_level": list(levels) if len(levels) > 1 else levels[0] if levels else None,
            "rounded_activations": _ROUNDS in levels or gridded,
            "threads": decoder.threads,
            "peak_bytes": peak_bytes(),
            "decode": decode or None,
        },
    }


def _prefill(
    decoder: Decoder, sequences: Sequence[Sequence[int]], firsts: Sequence[int], vocabulary: int
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Logits of all positions in turn, each sequence from an empty cache, in runs of ``_CHUNK`` tokens, and
    how many positions of a run lie before its sequence's first."""
    for ids, first in zip(sequences, firsts, strict=True):
        cache = decoder.empty_cache()
        for start in range(0, len(ids), _CHUNK):
            tokens = ids[start : start + _CHUNK]
            logits, cache = decoder.run(decoder.feed(tokens, start, cache))
            if logits.shape != (len(tokens), vocabulary):
                raise ValidationError(
                    f"gives logits {list(logits.shape)} where the checkpoint has {[len(tokens), vocabulary]}"
                )
            yield logits.astype(np.float32, copy=False), min(max(first - start, 0), len(tokens))
            del logits


def _decode(decoder: Decoder, tokens: Sequence[int]) -> Iterator[tuple[NDArray[np.float32], float]]:
    """Logits of ``tokens``, one at a time from an empty cache, and the seconds that each run took."""
    cache = decoder.empty_cache()
    for index, token in enumerate(tokens):
        feed = decoder.feed([token], index, cache)
        begin = time.perf_counter()
        logits, cache = decoder.run(feed)
        yield logits[0], time.perf_counter() - begin


if __name__ == "__main__":
    serve(write_logits)
