"""The steps of a release: plain functions of files to files, each with a key of all that decides its result.

A step's function takes a request that JSON can hold and a directory, and leaves its result there. It knows
nothing of other steps, so that any executor can run it, here or elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from converter.pipeline.conversion import Conversion, convert
from converter.pipeline.manifest import library_versions
from converter.pipeline.opening import described_place, examined_place, local_place, open_place
from converter.pipeline.release.document import Item
from converter.system.digests import Digests
from converter.system.progress import Progress, no_progress
from targets.target import find_target

#: Where a conversion lies in the directory of its step.
OUTPUT: Final = "output"
#: Version of what a step's key is made of.
_VERSION: Final = 1


@dataclass(frozen=True)
class Step:
    """One artifact that is made and proven."""

    #: SHA-256 of everything that decides the result.
    key: str
    #: The model's name in the release, and the target.
    model: str
    target: str
    #: What ``make`` takes.
    request: Mapping[str, Any]
    #: Bytes of memory that it is expected to take; 0 where nothing is known.
    memory: int = 0
    #: Seconds that it is expected to take; ``None`` where nothing is known.
    seconds: float | None = None

    @property
    def label(self) -> str:
        """What a user calls it."""
        return f"{self.model} {self.target}"


def source_of(item: Item, *, offline: bool, fetch: bool, progress: Progress = no_progress) -> dict[str, Any]:
    """What the item's model is, to the byte: a repository's commit, or the digests of its files. With
    ``fetch`` a repository is downloaded. Raises what opening a model raises."""
    place = local_place(item.source)
    if place is None:
        targets = [find_target(name) for name in item.targets]
        options = {name: value for own in item.options.values() for name, value in own.items()}
        if fetch:
            place = examined_place(item.source, offline, targets, options, progress)
        else:
            place, _ = described_place(item.source, offline, targets, options)
        return {"repo": item.source.repo, "revision": place.revision}
    model = open_place(place, progress)
    with closing(Digests()) as digests:
        digests.add(model.checkpoint.files)
        return {"files": model.checkpoint.source.entries(digests)}


def step_of(item: Item, target: str, source: Mapping[str, Any], memory: int, seconds: float | None) -> Step:
    """The step that makes an item's artifact for a target, of a ``source`` (``source_of``)."""
    from validation.settings import read_settings, recordable

    settings = read_settings(item.validation)
    libraries = (*find_target(target).libraries, *settings.runner(target).libraries)
    model = item.model
    if item.source.repo is not None:
        model = f"{item.source.repo}@{source['revision']}"  # what was looked at, whatever is pushed meanwhile
    options = dict(item.options.get(target, {}))
    decisive = {
        "version": _VERSION,
        "tool": version("qatconvert"),
        "libraries": library_versions(libraries),
        "source": dict(source),
        "name": item.source.name,
        "target": target,
        "options": options,
        "validation": recordable({"text": None, **item.validation}),
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    validation = {
        name: str(value) if isinstance(value, Path) else value for name, value in item.validation.items()
    }
    request = {"model": model, "target": target, "options": options, "validation": validation}
    return Step(key, item.name, target, request, memory, seconds)


def make(
    request: Mapping[str, Any], directory: Path, tell: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Convert and prove one artifact below ``directory``. What the model is was downloaded before.

    ``tell`` gets stages. The result has the exit status of the conversion, its verdict, warnings and errors.
    Raises what ``convert`` does.
    """
    warnings: list[str] = []
    validation = dict(request["validation"])
    if "text" in validation:
        validation["text"] = Path(validation["text"])
    outcome = convert(
        Conversion(
            model=request["model"],
            targets=[request["target"]],
            output=directory / OUTPUT,
            offline=True,
            options={name: _value(value) for name, value in request["options"].items()},
            validation=validation,
        ),
        tell,
        warnings.append,
    )
    return {
        "exit_status": outcome.exit_status,
        "passed": outcome.passed and not outcome.errors,
        "warnings": warnings,
        "errors": list(outcome.errors),
    }


def _value(value: object) -> object:
    """An option as targets take it: JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
