"""What a conversion is asked for, what it works with while it runs, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.names import resolve
from converter.pipeline.opening import Model
from converter.system.digests import Digests
from converter.system.progress import Progress
from targets.target import Target, accepts_off_lattice

if TYPE_CHECKING:
    from converter.system.child import Worker


@dataclass(frozen=True)
class Conversion:
    """What to convert and how."""

    model: str
    targets: Sequence[str]
    output: Path | None = None
    force: bool = False
    offline: bool = False
    #: They go to the targets, each of which takes those that it declares.
    options: Mapping[str, object] = field(default_factory=dict)
    #: What ``validation.settings.read_settings`` takes: fields of ``Settings`` and options of runtimes.
    #: ``None`` skips the validation.
    validation: Mapping[str, Any] | None = field(default_factory=dict)

    @property
    def destination(self) -> Path:
        """The output directory: the one that was given, or one that is named after the model."""
        return self.output or Path(f"{resolve(self.model).name}-qatconvert")


@dataclass(frozen=True)
class Running:
    """A conversion under way."""

    #: What was asked for.
    request: Conversion
    #: The opened checkpoint.
    model: Model
    targets: Sequence[Target]
    #: The output directory that is to be.
    destination: Path
    #: Digests of files, computed meanwhile.
    digests: Digests
    #: The process that holds transformers, ``None`` where nothing is validated.
    worker: Worker | None
    #: ``progress`` and ``warn``, which gets one line for each warning, tell the user.
    progress: Progress
    warn: Callable[[str], None]

    @property
    def names(self) -> list[str]:
        """Of the targets."""
        return [target.name for target in self.targets]

    @property
    def options(self) -> dict[str, object]:
        """What targets are given: the source, and the user's options."""
        return {**self.model.record(), **self.request.options}

    @property
    def settings(self) -> dict[str, Any] | None:
        """What ``validation.settings.read_settings`` takes: what the user gave, and whether matrices that lie
        on no lattice are accepted. ``None`` where nothing is validated."""
        if self.request.validation is None:
            return None
        from validation.settings import OFF_LATTICE

        accepted = accepts_off_lattice(self.targets, self.request.options)
        return {**self.request.validation, OFF_LATTICE: accepted}


@dataclass(frozen=True)
class Outcome:
    """Where the result lies, its report, and whether every gate passed."""

    output: Path | None
    report: Mapping[str, Any]
    passed: bool
    #: One line for each artifact that was written but could not be validated, or not laid out elsewhere.
    errors: Sequence[str] = ()
    #: Shell commands that try the artifacts that were written.
    try_it: Sequence[str] = ()

    @property
    def exit_status(self) -> int:
        """0 if every gate passed, 1 after errors, 3 if a gate failed."""
        return 1 if self.errors else 0 if self.passed else 3


def all_passed(report: Mapping[str, Any]) -> bool:
    """Whether no gate of a report failed and all have run but those that the user does without. Where nothing
    was validated, none failed."""
    entries = report["targets"].values()
    gates = [gate for entry in entries for gate in entry.get("gates", ())]
    return all(entry["passed"] is not False for entry in entries) and all(
        gate["passed"] is not None or gate.get("allowed") for gate in gates
    )
