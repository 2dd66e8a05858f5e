"""Cases of a format run in a child process, which is started anew behind a case that ended it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from converter.errors import ValidationError
from converter.system.child import Worker
from fuzzing import case, find, read_files

#: What a case may take: seconds, also on a busy machine, and bytes of memory.
SECONDS, BYTES = 20, 512 << 20
_TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """How many cases there were, how many of them were read, and what went wrong by index."""

    cases: int
    read: int
    failures: Mapping[int, str]


def run(
    format: str,
    directory: Path,
    *,
    seed: int,
    first: int = 0,
    cases: int = 200,
    reader: str | None = None,
    seconds: int = SECONDS,
    memory: int = BYTES,
) -> Outcome:
    """Run cases on the right files in ``directory``, which are those again at the end. ``reader`` is another
    than the format's own, ``module:function``. An end of the child is charged to the case that it was at."""
    files = read_files(directory)
    last, read, failures = first + cases, 0, {}
    request = {"format": format, "reader": reader, "directory": str(directory), "seed": seed, "last": last}
    path = os.pathsep.join((str(_TESTS.parent), str(_TESTS), os.environ.get("PYTHONPATH", "")))
    while first < last:
        done: list[int] = []
        limits = {"first": first, "seconds": seconds, "bytes": memory}
        try:
            with Worker("fuzzing.child", environment={"PYTHONPATH": path}) as worker:
                answer = worker.call({**request, **limits}, partial(_note, done), what=format)
        except ValidationError as error:
            if not done:  # it was not the case's fault
                raise
            case(find(format), files, seed, done[-1])  # raises what the fuzzer itself does wrong
            late = any("Timeout (" in note for note in getattr(error, "__notes__", ()))
            failures[done[-1]] = f"took more than {seconds} s" if late else str(error)
            for name, data in files.items():
                (directory / name).write_bytes(data)
            first = done[-1] + 1
            continue
        read += answer["read"]
        failures |= {int(index): problem for index, problem in answer["failures"].items()}
        first = last
    return Outcome(cases, read, failures)


def keep(format: str, directory: Path, seed: int, index: int, destination: Path) -> Path:
    """Write the files that a case changes, and return their directory."""
    kept = destination / f"{format}-{seed}-{index}"
    for name, data in case(find(format), read_files(directory), seed, index).items():
        if data is not None:
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            (kept / name).write_bytes(data)
    return kept


def _note(done: list[int], index: int, last: int) -> None:
    done.append(index)
