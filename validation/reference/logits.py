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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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
from validation.text import Tokens

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
    #: The head is to be a module of its own, though the configuration ties it.
    untied: bool = False
    #: Static scales of what modules take and give, by their names in it, one each or one for each channel, 0
    #: for none: what they round to that the checkpoint in ``directory`` does not say itself.
    scales: Mapping[str, tuple[list[float], list[float]]] = field(default_factory=dict)
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


def is_writable(cache: Path) -> bool:
    """Whether logits can be kept in a directory, which is made if need be."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return True
    except OSError:
        return False


def check_dtype(dtype: str) -> None:
    """Raise ``UsageError`` for a type that the reference is not computed in."""
    if dtype not in DTYPES:
        raise UsageError(f"unknown reference dtype {dtype!r}; known: {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True)
class Computation:
    """How ``transformers`` computes logits."""

    #: A ``reference_worker``.
    worker: Worker
    #: One of ``DTYPES``.
    dtype: str = "float32"
    #: Most bytes of weights in memory, the rest stays on disk. ``None`` for what the machine has.
    max_memory: int | None = None
    #: Bytes of logits of one pass where weights are read from disk. ``None`` for 1 GiB.
    batch_bytes: int | None = None
    #: GELU goes through float16, as llama.cpp's does.
    float16_gelu: bool = False
    #: Modules round what goes through them by the checkpoint's static scales.
    grids: bool = False


@dataclass(frozen=True, slots=True)
class Cache:
    """Where the logits of a checkpoint are kept, and how they are found."""

    #: Is made if need be. One that cannot be written is done without.
    directory: Path
    #: What tells the checkpoint from every other: the digests of its files.
    source: Mapping[str, object]
    #: Raises if the checkpoint is not what ``source`` says any more: such logits are not kept.
    unchanged: Callable[[], object] = lambda: None


def reference_logits(
    model: Model,
    tokens: Tokens,
    computation: Computation,
    scratch: Path,
    cache: Cache | None = None,
    progress: StageProgress = no_progress,
) -> NDArray[np.float32]:
    """Logits of ``model`` at the positions of ``tokens``: a float32 map ``[positions, vocabulary]``.

    The worker is not asked for what is in ``cache``. ``scratch`` holds what is not kept there and must
    outlive the result. Raises ``UsageError`` for an unknown dtype, ``ValidationError`` when the checkpoint
    cannot be loaded exactly or does not run, and what the cache's ``unchanged`` raises.
    """
    check_dtype(computation.dtype)
    if cache is None:
        output = scratch / f"reference-logits{'-with-grids' * computation.grids}.npy"
        with replacing(output) as fresh:
            _compute(model, tokens, computation, fresh, progress)
        return map_logits(output, tokens.positions)
    made_from = _ingredients(tokens, cache.source, computation)
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:40]
    if (found := _lookup(cache.directory, key, tokens.positions, model.vocabulary)) is not None:
        _LOG.info("reference logits of %d positions are in %s", tokens.positions, cache.directory)
        return found
    kept = is_writable(cache.directory)
    _LOG.info("reference logits of %d positions in %s are computed", tokens.positions, computation.dtype)
    output = (cache.directory if kept else scratch) / f"{key}.npy"
    with replacing(output) as fresh:
        _compute(model, tokens, computation, fresh, progress)
        cache.unchanged()
        entry = {**made_from, "crc32": checksum(fresh)} if kept else {}
    if kept:
        write_whole(output.with_suffix(".json"), json.dumps(entry, indent=1, sort_keys=True))
        _prune(cache.directory)
    return map_logits(output, tokens.positions)


@dataclass(frozen=True, slots=True)
class OwnLogits:
    """Logits of an artifact's own weights in transformers."""

    #: Float32 ``[positions, vocabulary]``.
    logits: NDArray[np.float32]
    #: The mean divergence that comes of ``float16_gelu``, as it shows in this model. 0 where it was not
    #: measured.
    noise: float = 0.0


def own_logits(
    model: Model,
    tokens: Tokens,
    computation: Computation,
    output: Path,
    dense: bool = True,
    progress: StageProgress = no_progress,
) -> OwnLogits:
    """Logits of ``model``, a checkpoint of an artifact's own weights, in the file ``output``.

    What ``float16_gelu`` costs is measured for ``dense`` models alone. Raises what ``reference_logits`` does.
    """
    check_dtype(computation.dtype)
    answer = _compute(model, tokens, computation, output, progress, computation.float16_gelu and dense)
    return OwnLogits(map_logits(output, tokens.positions), float(answer.get("gelu_kld", 0.0)))


def _ingredients(tokens: Tokens, source: Mapping[str, object], computation: Computation) -> dict[str, object]:
    """All that the logits depend on; what is equal has one entry in the cache."""
    ids = [list(tokens.firsts), [list(ids) for ids in tokens.sequences]]
    return {
        "schema": 2,
        "source": dict(source),
        "sequences": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "dtype": computation.dtype,
        **({"grids": True} if computation.grids else {}),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _compute(
    model: Model,
    tokens: Tokens,
    computation: Computation,
    output: Path,
    progress: StageProgress,
    gelu_noise: bool = False,
) -> Mapping[str, Any]:
    """Have the child process write the logits, and give its answer: with ``gelu_noise``, what
    ``float16_gelu`` costs too. Leaves no file behind when it fails."""
    progress(0, 0)
    _clear_offload(output.parent)
    with _offload(output.parent) as offload, model.files() as directory:
        request: Mapping[str, object] = {
            "task": "logits",
            "model": str(directory.resolve()),
            "left_out": list(model.left_out),
            "untied": model.untied,
            "grids": computation.grids,
            "scales": dict(model.scales),
            "sequences": [list(ids) for ids in tokens.sequences],
            "firsts": list(tokens.firsts),
            "output": str(output),
            "scratch": offload,
            "dtype": computation.dtype,
            "max_memory": computation.max_memory,
            "batch_bytes": computation.batch_bytes,
            "float16_gelu": computation.float16_gelu,
            "gelu_noise": gelu_noise,
        }
        try:
            result = computation.worker.call(request, progress, what="reference")
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
