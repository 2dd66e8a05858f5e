"""What finished steps left, by their keys: a later run takes it from there, once it is verified by hash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converter.errors import CheckpointError
from converter.pipeline.release.steps import OUTPUT, Step
from converter.pipeline.verification import verify
from converter.system.progress import Progress, no_progress
from converter.system.replacing import write_whole
from converter.system.untrusted import read_object

#: The directory within a release's output that is this program's own.
STORE: Final = ".qatconvert-release"
_RECORD: Final = "step.json"
_RECORD_BYTES: Final = 1 << 20
#: Letters of a key that name a directory.
_LETTERS: Final = 32


@dataclass(frozen=True)
class Store:
    """The directory of finished steps, in a release's output."""

    root: Path

    def place(self, step: Step) -> Path:
        """The directory of a step."""
        return self.root / STORE / "steps" / step.key[:_LETTERS]

    def output(self, step: Step) -> Path:
        """The conversion that it left."""
        return self.place(step) / OUTPUT

    def finished(self, step: Step, progress: Progress = no_progress) -> dict[str, Any] | None:
        """What a step gave when it was run, if all its files are as they were then; ``None`` otherwise."""
        record = self.recorded(step)
        if record is None:
            return None
        try:
            found = verify(self.output(step), progress)
        except CheckpointError:
            return None
        result = record.get("result")
        return None if found.differences or not isinstance(result, dict) else result

    def recorded(self, step: Step) -> dict[str, Any] | None:
        """The record of a step, whatever its files are now."""
        try:
            record = read_object(self.place(step) / _RECORD, _RECORD_BYTES)
        except CheckpointError:
            return None
        return record if record.get("key") == step.key else None

    def clear(self, step: Step) -> None:
        """Remove what a run that was ended left of a step."""
        shutil.rmtree(self.place(step), ignore_errors=True)
        self.place(step).mkdir(parents=True)

    def record(self, step: Step, result: Mapping[str, Any]) -> None:
        """Note that a step is finished; last, so that one that was ended has no note."""
        entry = {"schema": 1, "key": step.key, "model": step.model, "target": step.target}
        text = json.dumps({**entry, "result": dict(result)}, indent=1, ensure_ascii=False)
        write_whole(self.place(step) / _RECORD, text + "\n", durable=True)
