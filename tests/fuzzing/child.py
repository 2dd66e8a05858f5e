"""The process that runs cases: whatever a reader does to it is noticed by ``fuzzing.trial``."""

from __future__ import annotations

import faulthandler
import resource
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from converter.errors import QatconvertError
from converter.system.child import serve
from converter.system.progress import StageProgress
from fuzzing import Damage, Files, case, find, read_files

#: Longest message in characters; one names a path, a part of the file and what is wrong.
_LONGEST_MESSAGE = 1000


def run_cases(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Run cases ``first`` to ``last`` of a format; progress tells the index of the next one.

    Request: ``format``, ``reader`` (``module:function`` or null for the format's own), ``directory`` with the
    right files, which are damaged and mended there, ``seed``, ``first``, ``last``, ``seconds`` and ``bytes``
    that a case may take. Answer: ``read``, how many were read, and ``failures`` by index.
    """
    format, directory = find(request["format"]), Path(request["directory"])
    read = _function(request["reader"]) if request["reader"] else format.read
    files = read_files(directory)
    format.read(directory)  # compiles and imports what a case would else be charged with
    _limit_memory(request["bytes"])
    warnings.simplefilter("error", RuntimeWarning)
    taken, failures = 0, {}
    progress(request["first"], request["last"])
    for index in range(request["first"], request["last"]):
        changed = case(format, files, request["seed"], index)
        _put(directory, changed)
        faulthandler.dump_traceback_later(request["seconds"], exit=True, file=sys.__stderr__)
        try:
            problem, was_read = judged(read, directory)
        finally:
            faulthandler.cancel_dump_traceback_later()
        _mend(directory, changed, files)
        taken += was_read
        if problem is not None:
            failures[str(index)] = problem
        progress(index + 1, request["last"])
    return {"read": taken, "failures": failures}


def judged(read: Callable[[Path], None], directory: Path) -> tuple[str | None, bool]:
    """What is wrong with how the files were read, or ``None``; and whether they were read at all."""
    try:
        read(directory)
    except QatconvertError as error:
        message = str(error)
        if not message.isprintable() or len(message) > _LONGEST_MESSAGE:
            return f"not one short printable line: {message[:_LONGEST_MESSAGE]!r}", False
        return None, False
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "nowhere"
        return f"{type(error).__name__} at {where}: {error!s:.200}", False
    return None, True


def _function(name: str) -> Callable[[Path], None]:
    module, _, function = name.partition(":")
    found: Callable[[Path], None] = getattr(import_module(module), function)
    return found


def _limit_memory(more: int) -> None:
    """Let the process have ``more`` bytes of addresses than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _put(directory: Path, changed: Damage) -> None:
    for name, data in changed.items():
        if data is None:
            (directory / name).unlink()
        else:
            (directory / name).write_bytes(data)


def _mend(directory: Path, changed: Damage, files: Files) -> None:
    for name in changed:
        if name in files:
            (directory / name).write_bytes(files[name])
        else:
            (directory / name).unlink(missing_ok=True)


if __name__ == "__main__":
    serve(run_cases)
