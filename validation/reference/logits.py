"""Reference logits: ``transformers`` on the original checkpoint, computed once and cached.

An entry of the cache is the .npy file of logits and a JSON file beside it with what the entry was made from
and the checksum of the logits. It is found by a digest of everything that the logits depend on: identity of
the checkpoint, token ids, dtype and library versions. A damaged entry is computed anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from converter.errors import UsageError, ValidationError
from converter.system.child import Worker
from converter.system.progress import StageProgress, no_progress
from converter.system.replacing import UNFINISHED, replacing, write_whole
from validation.logits import checksum, map_logits

_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")
DTYPES = ("float32", "bfloat16", "float16")
#: Entries kept in the cache; one takes 0.5 GB for Gemma 4's vocabulary and 512 positions.
_KEPT = 8
#: How directories for weights on the disk begin, and the lock in each that tells a run that goes on.
_OFFLOAD = "offload-"
_LOCK = "lock"
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Model:
    """A safetensors checkpoint as ``transformers`` sees it."""

    #: Where it lies.
    directory: Path
    #: Names of tensors in it that are no text weights.
    left_out: tuple[str, ...]
    #: The number of tokens in its vocabulary.
    vocabulary: int
    #: Makes the checkpoint in ``directory`` where it lies in none, each time that it is used.
    write: Callable[[Path], None] | None = None

    @contextmanager
    def files(self) -> Iterator[Path]:
        """The directory, while it is used. Raises what ``write`` raises."""
        if self.write is None:
            yield self.directory
            return
        self.directory.mkdir()
        try:
            self.write(self.directory)
            yield self.directory
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


def default_cache() -> Path:
    """``$QATCONVERT_HOME/reference``, or ``reference`` below the user's cache directory."""
    if home := os.environ.get("QATCONVERT_HOME"):
        return Path(home) / "reference"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qatconvert" / "reference"


def is_writable(cache: Path | None) -> bool:
    """Whether logits can be kept in a directory, which is made if need be."""
    return _writable(cache) is not None


def check_dtype(dtype: str) -> None:
    """Raise ``UsageError`` for a type that the reference is not computed in."""
    if dtype not in DTYPES:
        raise UsageError(f"unknown reference dtype {dtype!r}; known: {', '.join(DTYPES)}")


def reference_logits(
    model: Model,
    sequences: Sequence[Sequence[int]],
    *,
    source: Mapping[str, object],
    scratch: Path,
    worker: Worker,
    firsts: Sequence[int] | None = None,
    dtype: str = "float32",
    cache: Path | None = None,
    max_memory: int | None = None,
    batch_bytes: int | None = None,
    unchanged: Callable[[], object] = lambda: None,
    progress: StageProgress = no_progress,
) -> NDArray[np.float32]:
    """Logits of ``model`` for ``sequences``: a float32 map ``[positions, vocabulary]``.

    The positions are all of each sequence, or those from its index in ``firsts`` on. ``source`` identifies
    the checkpoint by the digests of its files. ``cache`` is the directory of the cache, ``None`` for none.
    ``scratch`` holds what is not cached and must outlive the result. ``worker`` is a ``reference_worker``,
    which is not asked for what is cached.

    ``max_memory`` in bytes limits the weights kept in memory, and the rest stays on disk. ``batch_bytes``
    then limits the logits of one pass (default: 1 GiB). ``unchanged`` raises if the checkpoint is not what
    ``source`` says any more: such logits are not kept. Raises ``UsageError`` for an unknown ``dtype`` and
    ``ValidationError`` when the checkpoint cannot be loaded exactly or does not run.
    """
    check_dtype(dtype)
    starts = list(firsts or [0] * len(sequences))
    made_from = _ingredients(sequences, starts, source, dtype)
    positions = sum(map(len, sequences)) - sum(starts)
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:40]
    if cache is not None and (found := _lookup(cache, key, positions, model.vocabulary)) is not None:
        _LOG.info("reference logits of %d positions are in %s", positions, cache)
        return found
    kept = _writable(cache)
    _LOG.info("reference logits of %d positions in %s are computed for %s", positions, dtype, kept or scratch)
    output = (kept or scratch) / f"{key}.npy"
    options = {"dtype": dtype, "max_memory": max_memory, "batch_bytes": batch_bytes}
    with replacing(output) as fresh:
        _compute(model, sequences, starts, fresh, worker, options, progress)
        unchanged()
        entry = {**made_from, "crc32": checksum(fresh)} if kept else {}
    if kept:
        write_whole(kept / f"{key}.json", json.dumps(entry, indent=1, sort_keys=True))
        _prune(kept)
    return map_logits(output, positions)


@dataclass(frozen=True, slots=True)
class OwnLogits:
    """Logits of an artifact's own weights in transformers."""

    #: Float32 ``[positions, vocabulary]``.
    logits: NDArray[np.float32]
    #: The mean divergence that comes of a rounding of the runtime's that the logits have too
    #: (``own_logits``), as it shows in this model.
    noise: float = 0.0


def own_logits(
    model: Model,
    sequences: Sequence[Sequence[int]],
    *,
    output: Path,
    worker: Worker,
    firsts: Sequence[int],
    max_memory: int | None = None,
    float16_gelu: bool = False,
    dense: bool = True,
    progress: StageProgress = no_progress,
) -> OwnLogits:
    """Logits of ``model``, a checkpoint of an artifact's own weights, in the file ``output``.

    ``float16_gelu`` has GELU go through float16, as llama.cpp's does. What it costs is measured for ``dense``
    models alone. The other arguments and what it raises are as for ``reference_logits``.
    """
    options = {
        "dtype": "float32",
        "max_memory": max_memory,
        "float16_gelu": float16_gelu,
        "gelu_noise": float16_gelu and dense,
    }
    answer = _compute(model, sequences, firsts, output, worker, options, progress)
    logits = map_logits(output, sum(map(len, sequences)) - sum(firsts))
    return OwnLogits(logits, float(answer.get("gelu_kld", 0.0)))


def _ingredients(
    sequences: Sequence[Sequence[int]], firsts: Sequence[int], source: Mapping[str, object], dtype: str
) -> dict[str, object]:
    """All that the logits depend on; what is equal has one entry in the cache."""
    return {
        "schema": 2,
        "source": dict(source),
        "sequences": hashlib.sha256(
            json.dumps([list(firsts), [list(ids) for ids in sequences]]).encode()
        ).hexdigest(),
        "dtype": dtype,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _compute(
    model: Model,
    sequences: Sequence[Sequence[int]],
    firsts: Sequence[int],
    output: Path,
    worker: Worker,
    options: Mapping[str, object],
    progress: StageProgress,
) -> Mapping[str, Any]:
    """Have the child process write the logits, and give its answer. Leaves no file behind when it fails."""
    progress(0, 0)
    _clear_offload(output.parent)
    with _offload(output.parent) as offload, model.files() as directory:
        request: Mapping[str, object] = {
            "task": "logits",
            "model": str(directory.resolve()),
            "left_out": list(model.left_out),
            "sequences": [list(ids) for ids in sequences],
            "firsts": list(firsts),
            "output": str(output),
            "scratch": offload,
            **options,
        }
        try:
            result = worker.call(request, progress, what="reference")
        except BaseException:
            output.unlink(missing_ok=True)
            raise
    if result["vocabulary"] != model.vocabulary:
        output.unlink(missing_ok=True)
        raise ValidationError(
            f"reference: transformers has {result['vocabulary']} logits,"
            f" the vocabulary {model.vocabulary} tokens"
        )
    return result


@contextmanager
def _offload(parent: Path) -> Iterator[str]:
    """A directory for weights that do not fit in memory, gone at the end. Its lock goes with this process, so
    that what a killed run left is known by it."""
    with (
        tempfile.TemporaryDirectory(prefix=_OFFLOAD, dir=parent) as name,
        Path(name, _LOCK).open("xb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield name


def _clear_offload(parent: Path) -> None:
    """Remove what killed runs left for weights in ``parent``: gigabytes for a large model. A directory in use
    is locked; one without a lock is new, or a day old and abandoned."""
    for directory in parent.glob(f"{_OFFLOAD}*"):
        with suppress(OSError):
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            try:
                handle = os.open(directory / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                if found.st_mtime < time.time() - _DAY:
                    shutil.rmtree(directory, ignore_errors=True)
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError while it is in use
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(handle)


def _lookup(cache: Path, key: str, positions: int, vocabulary: int) -> NDArray[np.float32] | None:
    """The cached logits, or ``None`` when there are none or what is there is damaged."""
    path = cache / f"{key}.npy"
    try:
        entry = json.loads((cache / f"{key}.json").read_text("utf-8"))
        if checksum(path) != entry["crc32"]:
            return None
        logits = map_logits(path, positions)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
    if logits.shape[1] != vocabulary:
        return None
    os.utime(path)  # the least recently used entries go first
    return logits


def _writable(cache: Path | None) -> Path | None:
    """The cache's directory, made if need be. ``None`` where nothing can be written."""
    if cache is None:
        return None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError:
        return None


def _prune(cache: Path) -> None:
    """Drop all but the newest entries, and what interrupted runs left more than a day ago."""
    entries = sorted(cache.glob("*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
    finished = [path for path in entries if path.with_suffix(".json").exists()]
    unfinished = [path for path in entries if path not in finished]
    abandoned = filter(_is_abandoned, (*unfinished, *cache.glob(UNFINISHED)))
    for old in (*finished[_KEPT:], *abandoned):
        old.unlink(missing_ok=True)
        old.with_suffix(".json").unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    try:
        return path.stat().st_mtime < time.time() - _DAY
    except FileNotFoundError:  # another run has finished it
        return False
