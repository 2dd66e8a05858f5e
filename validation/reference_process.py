"""The child process that holds ``transformers``: token ids, reference logits and reference text.

It serves all tasks, and both models of a validation, because importing torch and transformers takes longer
than most of what they are asked to do here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Mapping
from typing import Any

from validation.causal_model import write_logits
from validation.greedy import continue_prompts
from validation.tokens import spell, tokenize
from validation.worker import Progress, Worker, serve

_TASKS = {"tokenize": tokenize, "spell": spell, "logits": write_logits, "continue": continue_prompts}


def reference_worker() -> Worker:
    """A worker for requests to this module: those of its tasks, with the task's name under ``task``."""
    return Worker("validation.reference_process")


def _handle(request: dict[str, Any], progress: Progress) -> Mapping[str, object]:
    try:
        return _TASKS[request.pop("task")](request, progress)
    finally:
        _release_memory()


def _release_memory() -> None:
    """Give a model's memory back before other processes need it."""
    gc.collect()  # modules and their hooks refer to each other
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # a C library other than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


if __name__ == "__main__":
    serve(_handle)
