"""Child process of ``validation.onnxruntime``: an ONNX model's logits, by sequences and token by token."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from converter.errors import ValidationError
from targets.onnx.accuracy import accuracy_levels
from validation.logits import create_logits
from validation.metrics import divergence
from validation.onnxruntime import short_name
from validation.onnxruntime_session import Decoder, open_decoder, read_model
from validation.worker import Progress, serve

#: Most tokens of one run: their logits lie in memory together (128 x 262144 x 4 bytes = 0.13 GB), and once
#: more where onnxruntime computes them.
_CHUNK: Final = 128
#: Positions that are decoded one by one and compared with the prefill.
DECODED: Final = 128
#: The level at which MatMulNBits rounds activations to int8.
_ROUNDS: Final = 4
#: Steps whose time does not count: the first ones allocate.
_WARM_UP: Final = 8


def write_logits(request: dict[str, Any], progress: Progress) -> Mapping[str, object]:
    """Write float32 logits of every position of ``sequences`` for ``artifact`` to ``output`` (.npy)."""
    import onnxruntime

    path, level = Path(request["artifact"]), request["accuracy_level"]
    sequences: list[list[int]] = request["sequences"]
    vocabulary: int = request["vocabulary"]
    if outside := [token for ids in sequences for token in ids if not 0 <= token < vocabulary]:
        raise ValidationError(f"token {outside[0]} is outside the vocabulary of {vocabulary}")
    model = read_model(path)
    levels = accuracy_levels(model)
    if level is not None and levels:
        levels = (level,)
    decoder = open_decoder(path, model, request["provider"], level)
    del model
    longest = max(range(len(sequences)), key=lambda index: len(sequences[index]))
    before, decoded = sum(map(len, sequences[:longest])), sequences[longest][:DECODED]
    positions = sum(map(len, sequences))
    total = positions + len(decoded)
    with _Rows(Path(request["output"]), positions, vocabulary) as rows:
        done = 0
        for chunk in _prefill(decoder, sequences, vocabulary):
            rows.write(chunk)
            done += len(chunk)
            del chunk  # or it would lie beside the next
            progress(done, total)
        decode = _decode(decoder, decoded, rows, before, lambda step: progress(positions + step, total))
    return {
        "version": onnxruntime.__version__,
        "settings": {
            "provider": short_name(request["provider"]),
            "accuracy_level": list(levels) if len(levels) > 1 else levels[0] if levels else None,
            "rounded_activations": _ROUNDS in levels,
            "threads": decoder.threads,
            "peak_bytes": _peak_bytes(),
            "decode": decode,
        },
    }


class _Rows:
    """A file of logits that is written and read back by rows, without a map: its pages would count as
    memory of this process."""

    def __init__(self, path: Path, positions: int, vocabulary: int) -> None:
        logits: Any = create_logits(path, positions, vocabulary)
        self._vocabulary = vocabulary
        self._offset: int = logits.offset
        del logits
        self._file: IO[bytes] = path.open("r+b", buffering=0)
        self._file.seek(self._offset)

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: NDArray[np.float32]) -> None:
        """Add rows to those that were written."""
        view = np.ascontiguousarray(rows).data.cast("B")
        while view:  # an unbuffered file may take a part
            view = view[self._file.write(view) :]

    def read(self, index: int) -> NDArray[np.float32]:
        """One row ``[vocabulary]``."""
        self._file.seek(self._offset + 4 * index * self._vocabulary)
        row: NDArray[np.float32] = np.fromfile(self._file, np.float32, self._vocabulary)
        return row


def _prefill(
    decoder: Decoder, sequences: Sequence[Sequence[int]], vocabulary: int
) -> Iterator[NDArray[np.float32]]:
    """Logits of all positions in turn, each sequence from an empty cache, in runs of ``_CHUNK`` tokens."""
    for ids in sequences:
        cache = decoder.empty_cache()
        for start in range(0, len(ids), _CHUNK):
            tokens = ids[start : start + _CHUNK]
            logits, cache = decoder.run(decoder.feed(tokens, start, cache))
            if logits.shape != (len(tokens), vocabulary):
                raise ValidationError(
                    f"gives logits {list(logits.shape)} where the checkpoint has {[len(tokens), vocabulary]}"
                )
            yield logits.astype(np.float32, copy=False)
            del logits


def _decode(
    decoder: Decoder, tokens: Sequence[int], rows: _Rows, first: int, progress: Callable[[int], None]
) -> dict[str, object]:
    """Decode ``tokens`` one at a time from an empty cache; ``rows`` from ``first`` on are the prefill's.

    Speed is one over the median time of a step after the first ones, a step being one run of the model.
    """
    cache = decoder.empty_cache()
    klds, largest, seconds = [], [], []
    for index, token in enumerate(tokens):
        feed = decoder.feed([token], index, cache)
        begin = time.perf_counter()
        logits, cache = decoder.run(feed)
        seconds.append(time.perf_counter() - begin)
        whole, single = (row.astype(np.float64) for row in (rows.read(first + index), logits[0]))
        finite = bool(np.isfinite(whole).all() and np.isfinite(single).all())
        klds.append(divergence(whole, single) if finite else math.nan)
        largest.append(float(np.abs(whole - single).max()) if finite else math.nan)
        progress(index + 1)
    timed = seconds[min(_WARM_UP, len(seconds) // 2) :]
    sound = not any(map(math.isnan, klds))
    return {
        "positions": len(tokens),
        "mean_kld": statistics.fmean(klds) if sound else None,
        "max_kld": max(klds) if sound else None,
        "max_abs": max(largest) if sound else None,
        "tokens_per_second": 1 / statistics.median(timed),
        "fastest_tokens_per_second": 1 / min(timed),
    }


def _peak_bytes() -> int:
    """The most memory that this process had in RAM at once. The usage that the system keeps for a process
    begins with its parent's on Linux, so the figure of its own address space is taken there."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) << 10
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage << 10


if __name__ == "__main__":
    serve(write_logits)
