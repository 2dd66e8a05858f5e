"""Work done in a child process, so that a crash, a leak or the chatter of a library stays there.

The parent sends one JSON request on standard input. The child answers with JSON lines on what was its
standard output: any number of ``{"done": n, "total": m}``, then ``{"result": {...}}`` or
``{"error": "one line"}``. Whatever else the child or its native libraries print goes to a log, whose
last telling line explains a crash.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any

from converter.errors import ValidationError

#: ``progress(done, total)``, both in the same unit.
Progress = Callable[[int, int], None]
#: Lines of a native library's log that explain its end better than the lines after them.
_TELLING = ("GGML_ASSERT", "GGML_ABORT", "terminate called", "error:", "failed to", "Error")


def run_worker(
    module: str, request: Mapping[str, object], progress: Progress, *, what: str
) -> dict[str, Any]:
    """Run ``python -m module`` on ``request`` (anything JSON can hold) and return its result.

    ``what`` opens the message of the ``ValidationError`` that is raised when the child reports an
    error, crashes or is killed; the child's log is added to the exception as a note.
    """
    with tempfile.TemporaryFile() as log:
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
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
        if answer is not None and "result" in answer and status == 0:
            result: dict[str, Any] = answer["result"]
            return result
        log.seek(0)
        text = log.read().decode("utf-8", "replace")
    cause = answer["error"] if answer is not None and "error" in answer else _ending(status, text)
    error = ValidationError(f"{what}: {cause}")
    error.add_note(text[-20_000:])
    raise error


def _converse(
    child: subprocess.Popen[bytes], request: Mapping[str, object], progress: Progress
) -> dict[str, Any] | None:
    """Send the request, relay progress and return the last answer, ``None`` if there was none."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
    except BrokenPipeError:
        return None  # it died before it read: its log says why
    answer: dict[str, Any] | None = None
    for line in child.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # printed by a library before the channel was set apart
        if "done" in message:
            progress(message["done"], message["total"])
        else:
            answer = message
    return answer


def _ending(status: int, log: str) -> str:
    """One line that says how a child without an answer ended."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in _TELLING)]
    last = (telling or lines or ["it printed nothing"])[-1]
    if status == -signal.SIGKILL:
        return "the process was killed, most likely for want of memory; try a lower max-memory"
    if status < 0:
        return f"the process ended with {signal.Signals(-status).name}: {last}"
    return f"the process ended with status {status}: {last}"


def serve(handler: Callable[[dict[str, Any], Progress], Mapping[str, object]]) -> None:
    """Answer one request in the child: the whole of a worker module's ``__main__``."""
    channel = _private_channel()

    def send(message: Mapping[str, object]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        request = json.load(sys.stdin)
        result = handler(request, lambda done, total: send({"done": done, "total": total}))
    except Exception as error:
        traceback.print_exc()
        send({"error": _one_line(error)})
        sys.exit(1)
    send({"result": result})


def _private_channel() -> IO[str]:
    """The pipe to the parent, out of reach of libraries that print: descriptor 1 becomes the log."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(2, 1)
    return channel


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return " ".join(str(error).split())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
