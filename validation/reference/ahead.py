"""The reference's logits of a validation, which can be computed while its artifact is being written."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.stored import FORMS
from converter.system.digests import hexdigest
from converter.system.extensions import provider
from converter.system.progress import Progress, counted, stage_of
from validation.reference.logits import default_cache, is_writable, reference_logits
from validation.reference.source import reference_model
from validation.settings import Prepared


def logits_of(
    prepared: Prepared,
    source: Mapping[str, object] | None,
    scratch: Path,
    unchanged: Callable[[], object],
    progress: Progress,
) -> NDArray[np.float32]:
    """Reference logits of the positions that ``prepared`` compares, float32 ``[positions, vocabulary]``.

    ``source`` has the digests of the checkpoint's ``files``, which are computed otherwise. ``unchanged`` and
    ``scratch`` are as for ``reference_logits``, and so is what it raises.
    """
    checkpoint, settings, tokens = prepared.checkpoint, prepared.settings, prepared.tokens
    return reference_logits(
        reference_model(checkpoint, scratch, tokens.ids),
        tokens.sequences,
        firsts=tokens.firsts,
        source=_identity(checkpoint, source, progress),
        scratch=scratch,
        worker=prepared.worker,
        dtype=settings.reference_dtype,
        cache=_cache(prepared),
        max_memory=settings.max_memory,
        unchanged=unchanged,
        # begun where they are computed, which they are not if they are in the cache
        progress=partial(progress, "reference logits (transformers)"),
    )


@contextmanager
def computed_ahead(
    prepared: Prepared,
    source: Callable[[], Mapping[str, object]],
    unchanged: Callable[[], object],
    progress: Progress,
) -> Iterator[None]:
    """While the block runs, have the logits of ``logits_of`` computed into the cache. At its end they are
    there, or what failed is left to whoever asks for them. Nothing is done where no cache can be written, nor
    for a form whose numbers would have to be written first.

    An error in the block ends the computation. ``prepared.worker`` must not be used in the block.
    ``progress`` is called from another thread.
    """
    if not prepared.checkpoint.form.loads_as_stored or not is_writable(_cache(prepared)):
        yield
        return

    def compute() -> None:
        with suppress(Exception), tempfile.TemporaryDirectory() as scratch:
            logits_of(prepared, source(), Path(scratch), unchanged, progress)

    thread = Thread(target=compute, name="reference", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        prepared.worker.close()
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


def _identity(
    checkpoint: Checkpoint, source: Mapping[str, object] | None, progress: Progress
) -> dict[str, object]:
    """What tells this checkpoint from every other: the digests of its files."""
    form = {} if checkpoint.form.loads_as_stored else {"form": _made_by(checkpoint)}
    if source and source.get("files") is not None:
        return {"files": source["files"], **form}
    files = sorted(checkpoint.files)
    total = sum(file.stat().st_size for file in files)
    advance = counted(stage_of(progress, "hashing the checkpoint"), total)
    return {"files": [hexdigest(file, hashlib.sha256(), advance=advance) for file in files], **form}
