"""The reference's logits of a validation, which can be computed while its artifact is being written."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.stored import FORMS
from converter.system.digests import hexdigest
from converter.system.extensions import provider
from converter.system.progress import Progress, StageProgress, counted, stage_of
from validation.reference.logits import Cache, Computation, default_cache, is_writable, reference_logits
from validation.reference.source import DEQUANTIZING, gridded_modules, reference_model
from validation.settings import Prepared


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a checkpoint from every other: its files. A commit does not, as files can be damaged."""

    #: Gives the digests of all of them, in the order of their names. It may wait for them.
    digests: Callable[[], Sequence[str]]
    #: Raises if a file is not what was hashed any more: logits that were computed of it are not kept.
    unchanged: Callable[[], object] = lambda: None


def identity_of(checkpoint: Checkpoint, progress: Progress) -> Identity:
    """The identity of a checkpoint whose files are hashed the first time that it is asked for."""
    return Identity(cache(partial(_hashed, checkpoint, stage_of(progress, "hashing the checkpoint"))))


def logits_of(
    prepared: Prepared,
    identity: Identity | None,
    scratch: Path,
    progress: Progress,
    *,
    grids: bool = False,
) -> NDArray[np.float32]:
    """Reference logits of the positions that ``prepared`` compares, float32 ``[positions, vocabulary]``: with
    ``grids``, those of a model that rounds activations by the checkpoint's static scales.

    Without the checkpoint's ``identity``, its files are hashed. ``scratch`` is as for ``reference_logits``,
    and so is what is raised.
    """
    checkpoint, settings, tokens = prepared.checkpoint, prepared.settings, prepared.tokens
    identity = identity or identity_of(checkpoint, progress)
    form = {} if checkpoint.form.loads_as_stored else {"form": _made_by(checkpoint)}
    source = {"files": list(identity.digests()), **form}
    return reference_logits(
        reference_model(checkpoint, scratch, tokens.ids, partial(progress, DEQUANTIZING)),
        tokens,
        Computation(prepared.worker, settings.reference_dtype, settings.max_memory, grids=grids),
        scratch,
        Cache(_cache(prepared), source, identity.unchanged),
        # begun where they are computed, which they are not if they are in the cache
        partial(progress, f"reference logits (transformers{', with grids' * grids})"),
    )


@contextmanager
def computed_ahead(prepared: Prepared, identity: Identity, progress: Progress) -> Iterator[None]:
    """While the block runs, have the logits of ``logits_of`` computed into the cache. At its end they are
    there, or what failed is left to whoever asks for them. Nothing is done where no cache can be written, nor
    for a form whose numbers would have to be written first.

    An error in the block ends the computation at once, and ``prepared.worker`` for good. It is waited for
    until ``identity.digests`` returns or raises: whoever has an error there should have it raise.
    ``prepared.worker`` must not be used in the block. ``progress`` is called from another thread.
    """
    if not prepared.checkpoint.form.loads_as_stored or not is_writable(_cache(prepared)):
        yield
        return

    def compute() -> None:
        with suppress(Exception), tempfile.TemporaryDirectory() as scratch:
            logits_of(prepared, identity, Path(scratch), progress)
            if gridded_modules(prepared.checkpoint):
                logits_of(prepared, identity, Path(scratch), progress, grids=True)

    thread = Thread(target=compute, name="reference", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        prepared.worker.give_up()
        raise
    finally:
        thread.join()


def _made_by(checkpoint: Checkpoint) -> list[str]:
    """What makes the numbers of a form that ``transformers`` does not load: another version may make
    others."""
    name = checkpoint.form.name
    return [name, provider(FORMS, name), f"qatconvert {version('qatconvert')}"]


def _cache(prepared: Prepared) -> Path:
    return prepared.settings.cache or default_cache()


def _hashed(checkpoint: Checkpoint, progress: StageProgress) -> list[str]:
    """SHA-256 of a checkpoint's files."""
    files = sorted(checkpoint.files)
    advance = counted(progress, sum(file.stat().st_size for file in files))
    return [hexdigest(file, hashlib.sha256(), advance=advance) for file in files]
