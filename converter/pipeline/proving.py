"""Artifacts proven: the reference is prepared and run, each artifact is measured beside it.

What proves is the package ``validation``, which is imported only where something is validated.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import QatconvertError, UsageError
from converter.names import one_line
from converter.pipeline.opening import Model
from converter.pipeline.writing import Written
from converter.system.digests import Digests
from converter.system.progress import Progress, one_at_a_time
from targets.target import Plan

if TYPE_CHECKING:
    from converter.system.child import Worker
    from validation.proof import Artifact, Proof
    from validation.reference.ahead import Identity
    from validation.settings import Prepared


def check_validation(targets: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for what shows without a model: names, packages, the runtimes, the text."""
    from validation.settings import check_runtimes, read_settings
    from validation.text import read_passages

    check_runtimes(read_settings(settings), targets)
    read_passages(settings.get("text"))


@contextmanager
def reference_process() -> Iterator[Worker]:
    """The process that holds transformers: it imports it while the checkpoint is opened and converted."""
    from validation.reference.process import reference_worker

    with reference_worker() as worker:
        worker.start()
        yield worker


@dataclass(frozen=True)
class Proving:
    """What the artifacts of one checkpoint are proven with."""

    #: Settings, token ids and reference.
    prepared: Prepared
    model: Model
    #: Those of the model's files, which tell reference logits in the cache apart.
    digests: Digests
    progress: Progress

    def identity(self) -> Identity:
        """What tells the checkpoint from every other."""
        from validation.reference.ahead import Identity

        def hashed() -> list[str]:
            return [str(entry["sha256"]) for entry in self.model.checkpoint.source.entries(self.digests)]

        return Identity(hashed, self.model.check_unchanged)


@contextmanager
def prepared_for(
    model: Model,
    settings: Mapping[str, Any],
    plans: Sequence[Plan],
    worker: Worker | None,
    progress: Progress,
) -> Iterator[Prepared]:
    """What the artifacts of ``plans`` are proven with. Raises ``UsageError`` for settings that mean nothing,
    also for one of the artifacts, and what ``validation.settings.prepare`` raises."""
    from validation.settings import prepare, read_settings

    context = min((plan.context for plan in plans if plan.context is not None), default=None)
    with prepare(model.checkpoint, read_settings(settings), progress, context, worker) as prepared:
        _check_context(plans, prepared)
        yield prepared


def _check_context(plans: Sequence[Plan], prepared: Prepared) -> None:
    """Raise ``UsageError`` for an artifact that could not be given the text that it is to be judged on."""
    longest = max(map(len, prepared.tokens.sequences))
    for plan in plans:
        if plan.context is not None and plan.context < longest:
            raise UsageError(
                f"{plan.target}: the validation has passages of up to {longest} tokens, more than "
                f"the context of {plan.context}: give a longer context, fewer --positions, or --no-validate"
            )


@contextmanager
def reference_ahead(proving: Proving) -> Iterator[Progress]:
    """Have the reference's logits computed while the block writes artifacts. Gives the ``progress`` that the
    block is to use, since another thread has some too."""
    from validation.reference.ahead import computed_ahead

    progress = one_at_a_time(proving.progress)
    with computed_ahead(proving.prepared, proving.identity(), progress):
        try:
            yield progress
        except BaseException:
            proving.digests.close()  # the other thread may be waiting for them
            raise


@dataclass(frozen=True, slots=True)
class Proven:
    """A target's entry of the report, and the way to run its artifact."""

    target: str
    entry: dict[str, Any]
    #: What was chosen of the ways to run the artifact, ``None`` where there was nothing to choose.
    choice: Mapping[str, object] | None


def prove(proving: Proving | None, made: Written) -> Proven:
    """Measure what a target wrote, choose among the ways to run it, and have the artifact run as it.

    Nothing is run if ``proving`` is ``None``: the choice is then the one by which it was written. What cannot
    be validated is told in its entry: it must neither look proven nor be lost.
    """
    measured: dict[str, Any] = {"passed": None}
    choice = made.choice
    if proving is not None:
        try:
            measured, choice = _measured(proving, made)
        except (QatconvertError, OSError, MemoryError) as error:
            measured = {"passed": False, "error": _reason(error)}
    if choice is not None:
        made.target.choose(made.artifact, choice)
    # what was read back says more than what was seen in writing
    recovered = {} if "weights" in measured or made.recovery is None else {"recovery": made.recovery}
    entry = {
        "artifact": made.plan.artifacts[0],
        "bytes": made.bytes,
        "weight_bytes": made.plan.weight_bytes,
        "bits_per_weight": round(made.plan.bits_per_weight, 4),
        **needs(made.plan),
        **({"warnings": list(made.warnings)} if made.warnings else {}),
        **recovered,
        **measured,
        **parts_entry(made.plan, made.scratch, measured.get("parts", {})),
    }
    return Proven(made.target.name, entry, choice)


def _measured(proving: Proving, made: Written) -> tuple[dict[str, Any], Mapping[str, object] | None]:
    """The measured part of the entry, and the choice, whose files are put in their place."""
    from validation.proof import Artifact

    choices = made.target.choices(made.plan)
    with tempfile.TemporaryDirectory(prefix=".others-", dir=made.scratch) as name:
        artifact = Artifact(made.artifact, made.plan, choices, Path(name))
        proof = measure(proving, artifact, made.scratch)
        _take(proof.artifact, made)
    return proof.entry, proof.choice if choices else None


def _take(chosen: Path, made: Written) -> None:
    """Put the files of the artifact that was chosen in the place of those that were written at first, by
    their names below the directory of each."""
    if chosen == made.artifact:
        return
    directory = chosen.parents[len(Path(made.plan.artifacts[0]).parts) - 1]
    for file in made.plan.files:
        os.replace(directory / file.path, made.scratch / file.path)


def measure(proving: Proving, artifact: Artifact, scratch: Path | None) -> Proof:
    """The measured part of a target's entry. Temporary files lie in ``scratch``, where there is room for
    models, and are gone when this returns."""
    from validation.proof import prove as prove_artifact

    return prove_artifact(
        proving.prepared,
        artifact,
        identity=proving.identity(),
        scratch=scratch,
        settle=proving.digests.wait,
        progress=proving.progress,
    )


def needs(plan: Plan) -> dict[str, object]:
    """What an artifact needs of whoever runs it: versions, and memory before the first token."""
    return {
        **({"requires": dict(plan.requires)} if plan.requires else {}),
        **({"kv_cache": asdict(plan.kv_cache)} if plan.kv_cache is not None else {}),
    }


def parts_entry(plan: Plan, directory: Path, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """For a target's entry: the ``parts`` beside the text model. Each has its ``files`` below ``directory``,
    their ``bytes`` if they lie there, and what was ``measured`` of it. Empty for a target that has no place
    for any."""
    parts = {}
    for part in plan.parts:
        files = [file.path for file in plan.files if file.part == part]
        places = [directory / name for name in files]
        there = all(place.is_file() for place in places)
        size = {"bytes": sum(place.stat().st_size for place in places)} if there else {}
        parts[part] = {"files": files, **size, **measured.get(part, {})}
    return {"parts": parts} if parts else {}


def _reason(error: Exception) -> str:
    """One line for the report, which names no directory of this machine."""
    from converter.system.child import without_directories

    text = "out of memory" if isinstance(error, MemoryError) else str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return one_line(without_directories(text))
