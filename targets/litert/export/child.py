"""Work of litert-torch done in a process of its own, whose memory, chatter and crashes stay there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from converter.errors import TargetError
from converter.system.child import Worker
from converter.system.memory import release_memory
from converter.system.progress import StageProgress

#: Of the child. The seed is for transformers 5.23.0, where the order of a set of strings (the kinds of
#: attention) decides the order of operators; malloc's settings give memory back that the exporter frees.
_ENVIRONMENT: Final = {
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


def ask(
    module: str,
    request: Mapping[str, object],
    progress: StageProgress,
    *,
    work: str,
    directory: Path | None = None,
) -> dict[str, Any]:
    """The answer of a child, which runs ``module``, to one request.

    ``work`` names what it does in the ``TargetError`` of one line that a failure becomes, with the log as a
    note. Files that it leaves lying about go to ``directory``, if that is given.
    """
    release_memory()  # what the caller has read before counts with what the child takes
    with Worker(module, environment=_ENVIRONMENT, directory=directory, error=TargetError) as worker:
        return worker.call(request, progress, what=f"litert: {work} failed")
