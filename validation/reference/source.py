"""What ``transformers`` loads for the reference: the checkpoint itself, or its numbers."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

from converter.checkpoint.canonical_names import EMBEDDING
from converter.checkpoint.opened import Checkpoint
from converter.errors import ValidationError
from converter.system.amounts import amount
from converter.system.progress import StageProgress, no_progress
from targets.target import StoredTensor
from validation.own_weights import needed_disk, write_checkpoint
from validation.reference.logits import Model

#: The stage of ``reference_model``. It begins with the first number that is written, if one is.
DEQUANTIZING: Final = "dequantizing the checkpoint"


def reference_model(
    checkpoint: Checkpoint,
    scratch: Path,
    tokens: Collection[int] | None = None,
    progress: StageProgress = no_progress,
) -> Model:
    """The model whose logits are the reference's, of sequences of ``tokens`` (default: of any).

    A stored form that ``transformers`` does not load is written out below ``scratch`` as float32 numbers:
    codes times scales, 4 bytes per parameter, each time that the model is used. ``progress`` counts these
    numbers. That raises ``ValidationError`` where there is no room for it.
    """
    vocabulary = checkpoint.architecture.vocabulary
    if checkpoint.form.loads_as_stored:
        left_out = tuple(left.name for left in checkpoint.left_out)
        return Model(checkpoint.source.directory(), left_out, vocabulary, untied=_is_untied(checkpoint))

    def write(directory: Path) -> None:
        needed, free = needed_disk(checkpoint, tokens), shutil.disk_usage(directory).free
        if free < needed:
            raise ValidationError(
                f"reference: transformers does not load {checkpoint.form.name}, and its weights as numbers "
                f"need {amount(needed)} of temporary files, {amount(free)} are free"
            )
        numbers = {
            name: StoredTensor(
                name, weight.source, weight.stored, weight.shape, weight.stored_bytes, weight.floats
            )
            for name, weight in checkpoint.weights.items()
        }
        write_checkpoint(checkpoint, numbers, directory, progress, tokens=tokens)

    return Model(scratch / "reference-model", (), vocabulary, write=write)


def gridded_modules(checkpoint: Checkpoint) -> int:
    """How many modules of the model have their inputs or outputs rounded by ``transformers`` to static grids.
    None of a form that it does not load: its reference is made of numbers."""
    return len(checkpoint.grids) if checkpoint.form.loads_as_stored else 0


def _is_untied(checkpoint: Checkpoint) -> bool:
    """Whether a head is tied to packed codes, which transformers does not load: the head is then loaded as
    one of its own, which computes the same."""
    return checkpoint.architecture.tied_head and checkpoint.weights[EMBEDDING].is_packed
