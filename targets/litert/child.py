"""Work of litert-torch done in a process of its own, whose memory, chatter and crashes stay there.

One request is JSON on the child's standard input. The child answers in JSON lines: any number of
``{"done": n, "total": m}``, then ``{"result": {...}}`` or ``{"error": "one line"}``. The rest that it prints
is the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from converter.errors import QatconvertError, TargetError

#: ``progress(done, total)`` in steps.
Progress = Callable[[int, int], None]

#: Of the child. The seed is for transformers 5.23.0, where the order of a set of strings (the kinds of
#: attention) decides the order of operators; malloc's settings give memory back that the exporter frees.
_ENVIRONMENT: Final = {
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_PR_SET_PDEATHSIG: Final = 1
#: Lines of a log that tell more than the last.
_TELLING: Final = ("Error", "error:", "terminate called", "Check failed")
#: Characters of the log that go with an error as a note.
_NOTE: Final = 20_000


def ask(
    module: str,
    request: Mapping[str, object],
    progress: Progress,
    *,
    work: str,
    directory: Path | None = None,
) -> dict[str, str]:
    """The answer of a child, which runs ``module``, to one request.

    ``work`` names what it does in the ``TargetError`` of one line that a failure becomes, with the log as a
    note. Files that it leaves lying about go to ``directory``, if that is given.
    """
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | _ENVIRONMENT
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    if directory is not None:
        environment["TMPDIR"] = str(directory.absolute())
    release()  # what the caller has read before counts with what the child takes
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            cwd=directory,
        )
        try:
            answer = _converse(child, request, progress)
            status = child.wait()
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if answer is not None and "result" in answer:
            result: dict[str, str] = answer["result"]
            return result
        printed = _text(log)
    cause = answer["error"] if answer is not None else _ending(status, printed)
    error = TargetError(cause if cause.startswith("litert: ") else f"litert: {work} failed: {cause}")
    error.add_note(printed[-_NOTE:])
    raise error


def release() -> None:
    """Give memory back to the system: graphs of torch refer to each other, and malloc keeps what is freed."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)


def _converse(
    child: subprocess.Popen[bytes], request: Mapping[str, object], progress: Progress
) -> dict[str, Any] | None:
    """Send the request, relay progress; the answer, ``None`` if the child ended without one."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        return None
    for line in child.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # printed by a library before the channel was set apart
        if not isinstance(message, dict):
            continue
        if "done" not in message:
            return message
        progress(message["done"], message["total"])
    return None


def _text(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode("utf-8", "replace")


def _ending(status: int, log: str) -> str:
    """One line that says how a child without an answer ended."""
    if status == -signal.SIGKILL:
        return "the process was killed, most likely for want of memory; free some and try again"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in _TELLING)]
    last = (telling or lines or ["it printed nothing"])[-1]
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"the process ended with {name}: {last}"


def serve(handler: Callable[[dict[str, Any], Progress], Mapping[str, str]]) -> None:
    """Answer one request in the child: the whole of its ``__main__``.

    Standard output becomes the log: litert-torch prints there."""
    if sys.platform == "linux":  # end with the parent, should it be killed
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: Mapping[str, object]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        request = json.loads(sys.stdin.readline())
        answer: dict[str, object] = {
            "result": handler(request, lambda done, total: send({"done": done, "total": total}))
        }
    except Exception as error:
        traceback.print_exc()
        answer = {"error": _one_line(error)}
    send(answer)


def _one_line(error: Exception) -> str:
    if isinstance(error, QatconvertError):
        return " ".join(str(error).split())
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {first}"
