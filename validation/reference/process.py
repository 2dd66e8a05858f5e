"""The child process that holds ``transformers``: token ids, reference logits and reference text.

It serves all tasks, and both models of a validation, because importing torch and transformers takes longer
than most of what they are asked to do here. It does so before the first request comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from converter.system.child import Worker, serve
from converter.system.memory import release_memory
from converter.system.progress import StageProgress
from validation.reference.greedy import continue_prompts
from validation.reference.model import write_logits
from validation.reference.tokens import render, spell, tokenize

_TASKS = {
    "tokenize": tokenize,
    "spell": spell,
    "render": render,
    "logits": write_logits,
    "continue": continue_prompts,
}


def reference_worker() -> Worker:
    """A worker for requests to this module: those of its tasks, with the task's name under ``task``."""
    return Worker("validation.reference.process")


def _handle(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    try:
        return _TASKS[request.pop("task")](request, progress)
    finally:
        release_memory()  # before other processes need it


def _import() -> None:
    """Import what all tasks take; what cannot be imported is told by the task that needs it."""
    with contextlib.suppress(ImportError, OSError):  # the second of a library that cannot be loaded
        import torch  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


if __name__ == "__main__":
    _import()
    serve(_handle)
