"""Graphs without weights: litert-torch in a child process, whose memory and chatter stay there.

A graph is a ``.tflite`` of a few megabytes with the signatures ``prefill_N`` and ``decode``. Each matrix of
the checkpoint is an input of type float32, named as the weight, of which the writer makes constants.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from converter.architecture import Architecture
from converter.checkpoint import Checkpoint
from converter.errors import TargetError

#: LiteRT-LM's names of the kinds of graph.
DECODER: Final = "tf_lite_prefill_decode"
EMBEDDER: Final = "tf_lite_embedder"
PER_LAYER_EMBEDDER: Final = "tf_lite_per_layer_embedder"
#: Steps of progress for each graph.
STEPS: Final = 3

#: ``progress(done, total)`` in steps, of which the first of each graph takes the longest.
Progress = Callable[[int, int], None]

_MODULE: Final = "targets.litert.graph_process"
#: Of the child. The seed is for transformers 5.23.0, where the order of a set of strings (the kinds of
#: attention) decides the order of operators; malloc's settings give memory back that the exporter frees.
_ENVIRONMENT: Final = {
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_MIB: Final = 1 << 20
#: Lines of a log that tell more than the last.
_TELLING: Final = ("Error", "error:", "terminate called", "Check failed")
#: Characters of the log that go with an error as a note.
_NOTE: Final = 20_000


def export_graph(
    checkpoint: Checkpoint,
    formats: Mapping[str, str],
    prefill_lengths: Sequence[int],
    context_length: int,
    directory: Path,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write the graph of a text model below ``directory``, with the embedding in it; its path.

    See ``export_graphs``.
    """
    return export_graphs(checkpoint, formats, prefill_lengths, context_length, directory, progress)[DECODER]


def export_graphs(
    checkpoint: Checkpoint,
    formats: Mapping[str, str],
    prefill_lengths: Sequence[int],
    context_length: int,
    directory: Path,
    progress: Progress = lambda done, total: None,
    *,
    externalize_embedder: bool = False,
) -> Mapping[str, Path]:
    """Write the graphs of a text model below ``directory``; paths by LiteRT-LM's name of the kind.

    ``formats`` are the plan's, by canonical name: a matrix of ``INT4+sums`` gets a second input,
    ``<name>|sums`` (float32 ``[rows, columns / 32]``), and a tied head becomes an input of its own if
    ``lm_head.weight`` has a format. Of a tensor of experts ``[E, N, K]`` the input is ``[E * N, K]``, and
    ``[N, E * K]`` for ``down_proj``, the experts side by side. ``prefill_lengths`` and ``context_length`` are
    in tokens. With ``externalize_embedder`` the embeddings are graphs of their own.

    Equal arguments give equal bytes. Raises ``TargetError`` of one line, with the child's log as a note.
    """
    request = {
        "checkpoint": str(checkpoint.path.absolute()),
        "formats": dict(formats),
        "prefill_lengths": list(prefill_lengths),
        "context_length": context_length,
        "directory": str(directory.absolute()),
        "externalize_embedder": externalize_embedder,
    }
    files = _run(_MODULE, request, progress)
    return {kind: directory / name for kind, name in files.items()}


def needed_memory(architecture: Architecture, prefill_lengths: Sequence[int]) -> int:
    """Bytes that the child holds at most, a little more than was measured (litert-torch 0.10.0; 6, 10 and 35
    layers): imports, and 6 MiB for every layer and signature. They do not grow with the parameters."""
    return (850 + 6 * len(architecture.layers) * (len(prefill_lengths) + 1)) * _MIB


def _run(module: str, request: Mapping[str, object], progress: Progress) -> dict[str, str]:
    """The answer of a child to one request."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | _ENVIRONMENT
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    with tempfile.TemporaryFile() as log:
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
        if answer is not None and "result" in answer:
            result: dict[str, str] = answer["result"]
            return result
        printed = _text(log)
    cause = answer["error"] if answer is not None else _ending(status, printed)
    error = TargetError(
        cause if cause.startswith("litert: ") else f"litert: the graph's export failed: {cause}"
    )
    error.add_note(printed[-_NOTE:])
    raise error


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
