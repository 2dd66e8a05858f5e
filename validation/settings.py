"""What a validation needs before there is an artifact: options, token ids, and a process with transformers.

Whatever can be wrong with the options shows here, so that no finished conversion is lost to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converter.checkpoint.architecture import SLIDING
from converter.checkpoint.opened import Checkpoint
from converter.system.child import Worker
from converter.system.progress import Progress, no_progress, stage_of
from validation import gates, limits
from validation.baseline import check_baseline
from validation.evaluation import Evaluation, find_evaluation
from validation.reference.logits import check_dtype
from validation.reference.process import reference_worker
from validation.room import Room, room_in
from validation.runners import CPU
from validation.text import Tokens, cut, encode


@dataclass(frozen=True, slots=True)
class Settings:
    """How artifacts are proven.

    ``positions`` of logits are compared on ``text``, a file (default: the checkpoint's own text, else the
    shipped one). ``gates`` overrides
    limits by name. ``max_memory`` in bytes bounds the reference model's weights in memory. ``baseline`` names
    what is measured beside an artifact. ``same_weights`` has logits of the artifact's own weights computed,
    which needs 4 bytes per parameter of temporary files. ``provider`` is what runs the artifact, for runtimes
    that have several. ``cache`` is the directory of the cache of reference logits (default:
    ``reference.default_cache()``). ``foreign`` is for another tool's artifact: what is not as this one builds
    it is listed and not judged. ``allow_unrun`` names gates without which the user goes on if they cannot
    run; ``off_lattice`` says that the user accepts matrices that lie on no lattice. ``room`` tells what there
    is for temporary files in a directory and in memory, by which models are cut.
    """

    positions: int = 512
    text: Path | None = None
    gates: Mapping[str, float] = field(default_factory=dict)
    reference_dtype: str = "float32"
    max_memory: int | None = None
    baseline: str | None = None
    same_weights: bool = True
    provider: str = CPU
    cache: Path | None = None
    foreign: bool = False
    allow_unrun: tuple[str, ...] = ()
    off_lattice: bool = False
    room: Callable[[Path], Room] = room_in


@dataclass(frozen=True, slots=True)
class Prepared:
    """All of a validation that needs no artifact, the same for every target.

    ``evaluation`` has the text that ``tokens`` are of, ``worker`` is a ``reference_worker`` that is running
    already.
    """

    checkpoint: Checkpoint
    settings: Settings
    tokens: Tokens
    evaluation: Evaluation
    worker: Worker


@contextmanager
def prepare(
    checkpoint: Checkpoint,
    settings: Settings,
    progress: Progress = no_progress,
    context: int | None = None,
    worker: Worker | None = None,
) -> Iterator[Prepared]:
    """Check ``settings`` and make the token ids.

    ``worker`` is a ``reference_worker`` that may be started already; without one, there is one that ends with
    the context. ``context`` is the most tokens that every artifact takes, if that is less than the model.
    Raises ``UsageError`` for an option that means nothing and for a text that is too short,
    ``CheckpointError`` for a text of the checkpoint's own that is none, and ``ValidationError`` when its
    tokenizer or chat template fails.
    """
    architecture = checkpoint.architecture
    limits.check(settings.gates)  # an unknown gate costs no work
    check_baseline(settings.baseline)
    check_dtype(settings.reference_dtype)
    gates.check_unrun(settings.allow_unrun)
    evaluation = find_evaluation(checkpoint.evaluation, settings.text)
    with ExitStack() as stack:
        if worker is None:
            worker = stack.enter_context(reference_worker())
        encoding = encode(
            checkpoint.source.directory(),
            evaluation.passages,
            architecture.vocabulary,
            worker,
            stage_of(progress, "tokens"),
        )
        sliding = any(layer.attention == SLIDING for layer in architecture.layers)
        tokens = cut(
            encoding,
            settings.positions,
            architecture.sliding_window if sliding else None,
            min(architecture.context, context or architecture.context),
        )
        yield Prepared(checkpoint, settings, tokens, evaluation, worker)


def reference_entry(prepared: Prepared) -> dict[str, Any]:
    """The ``reference`` block of the report."""
    tokens = prepared.tokens
    return {
        "runtime": "transformers",
        "version": version("transformers"),
        "dtype": prepared.settings.reference_dtype,
        "positions": tokens.positions,
        "torch": version("torch"),
        "text": prepared.evaluation.sha256,
        "text_name": prepared.evaluation.name,
        "sequences": [
            {"kind": kind, "positions": len(ids) - first, **({"context": first} if first else {})}
            for kind, ids, first in zip(tokens.kinds, tokens.sequences, tokens.firsts, strict=True)
        ],
    }
