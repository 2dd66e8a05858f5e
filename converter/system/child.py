"""Work done in a child process, so that a crash, a leak or the chatter of a library stays there.

The parent sends JSON requests, one a line, on standard input. The child answers each with JSON lines on what
was its standard output: any number of ``{"done": n, "total": m}``, then ``{"result": {...}}`` or
``{"error": "one line"}``. Whatever else the child or its native libraries print goes to a log, whose
last telling line explains a crash.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import IO, Any, Final

from converter.errors import QatconvertError, ValidationError
from converter.system.amounts import amount
from converter.system.progress import StageProgress

_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")
#: Bytes of what a process printed for one request that are logged.
_LOGGED: Final = 1 << 18
_PR_SET_PDEATHSIG = 1
#: Variables of the environment that a child gets from its parent, with what needs them; ``*`` stands for any
#: ending. All others stay behind: tokens of any service, and settings of a runtime that would change what is
#: proven (``ORT_MLAS_*`` choose other arithmetic, ``LLAMA_CPP_LIB_PATH`` another library).
_INHERITED: Final[Mapping[str, str]] = {
    "PATH": "libraries that look for programs of the system, such as a linker",
    "HOME": "caches of libraries; the user's own packages",
    "USER": "torch names its cache after the user",
    "LOGNAME": "the same on other systems",
    "TMPDIR": "temporary files",
    "LANG": "the encoding of file names",
    "LC_*": "the encoding of file names",
    "PYTHONPATH": "packages, this one included",
    "PYTHONHOME": "the interpreter",
    "PYTHONUSERBASE": "the user's own packages",
    "PYTHONNOUSERSITE": "the user's own packages",
    "PYTHONPYCACHEPREFIX": "compiled modules",
    "PYTHONDONTWRITEBYTECODE": "compiled modules",
    "PYTHONHASHSEED": "the order of sets",
    "PYTHONUTF8": "the encoding of files and of file names",
    "PYTHONWARNINGS": "what is told of old calls",
    "VIRTUAL_ENV": "packages",
    "CONDA_PREFIX": "packages and shared libraries",
    "LD_LIBRARY_PATH": "shared libraries; a vendor's SDK",
    "LD_PRELOAD": "libraries that have to be loaded first, such as libgomp on some processors",
    "DYLD_LIBRARY_PATH": "shared libraries on macOS",
    "XDG_CACHE_HOME": "caches of libraries",
    "OMP_*": "threads of torch and of llama.cpp",
    "GOMP_*": "threads of GNU's OpenMP",
    "KMP_*": "threads of LLVM's OpenMP",
    "MKL_*": "threads of torch",
    "OPENBLAS_*": "threads of numpy",
    "NUMBA_*": "threads and cache of compiled kernels",
    "MALLOC_*": "memory that glibc gives back",
    "CUDA_VISIBLE_DEVICES": "graphics processors",
    "CUDA_DEVICE_ORDER": "graphics processors",
    "CUDA_PATH": "libraries of graphics processors",
    "CUDA_HOME": "libraries of graphics processors",
    "HIP_VISIBLE_DEVICES": "graphics processors",
    "ROCR_VISIBLE_DEVICES": "graphics processors",
    "HIP_PATH": "libraries of graphics processors",
    "NVIDIA_VISIBLE_DEVICES": "graphics processors in a container",
}
#: Parts of names that no child gets whatever the table says: a new variable of a family may hold a secret.
_SECRET: Final = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "ACCESS_KEY")
#: What every child gets.
_FIXED: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # the file in which the Hub's login keeps it is not read either
    "TOKENIZERS_PARALLELISM": "false",
    "GGML_NO_BACKTRACE": "1",  # llama.cpp would start a debugger and print pages
}
#: Lines of a native library's log that explain its end better than the lines after them.
_TELLING = ("GGML_ASSERT", "GGML_ABORT", "terminate called", "Check failed", "error:", "failed to", "Error")


class Worker:
    """A child process that runs ``python -m module``; a context manager, which ends it.

    The process starts with the first request, or ``start``. It serves any number of them, so that what is
    slow to import is imported once. After a crash, or if it was ended while it waited, the next request
    starts another. ``environment`` is added to what it gets of the parent's (``child_environment``). What the
    process leaves lying about goes to ``directory``. ``error`` is what ``call`` raises.

    One thread at a time makes requests. Any other may end them for good (``give_up``).
    """

    def __init__(
        self,
        module: str,
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
        directory: Path | None = None,
        error: type[QatconvertError] = ValidationError,
    ) -> None:
        self._module = module
        self._environment = environment
        self._directory = directory
        self._error = error
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._given_up = False
        self._starting = Lock()  # no process may start once requests are given up

    def __enter__(self) -> Worker:
        return self

    def start(self) -> None:
        """Start the process before there is a request, so that it imports what it needs meanwhile."""
        with self._starting:
            if not self._given_up:
                self._started()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # a request that was never read
                        pipe.close()
        if self._log is not None:
            self._log.close()
        self._child = self._log = None

    def give_up(self) -> None:
        """Kill the process, and start no other. A request under way in another thread fails at once, and so
        does every later one."""
        with self._starting:
            self._given_up = True
            child = self._child
        if child is not None:
            child.kill()

    def call(self, request: Mapping[str, object], progress: StageProgress, *, what: str) -> dict[str, Any]:
        """The result of one request (anything that JSON can hold).

        ``what`` opens the message of the error that is raised when the child reports one, crashes or is
        killed. What it printed meanwhile is added to the exception as a note.
        """
        with self._starting:
            if self._given_up:
                raise self._error(f"{what}: given up")
            child, log = self._started()
        printed, began = log.seek(0, os.SEEK_END), time.monotonic()
        _LOG.debug("%s (%d): %s", self._module, child.pid, request.get("task", "request"))
        try:
            answer = _converse(child, request, progress)
            status = None if answer is not None else child.wait()
            self._log_call(child.pid, log, printed, began)
            if answer is not None and "result" in answer:
                result: dict[str, Any] = answer["result"]
                return result
            log.seek(printed)
            text = log.read().decode("utf-8", "replace")
        except BaseException:
            self.close()  # half a conversation cannot be continued
            raise
        if answer is None:
            self.close()
            if self._given_up:
                raise self._error(f"{what}: given up")
        cause = answer["error"] if answer is not None else _ending(status or 0, text)
        error = self._error(f"{what}: {cause}")
        error.add_note(text[-20_000:])
        raise error

    def _log_call(self, process: int, log: IO[bytes], printed: int, began: float) -> None:
        """Log how long a request took, the process's peak memory, and the last of what it printed."""
        if not _LOG.isEnabledFor(logging.DEBUG):
            return
        peak = _high_water(process)
        told = "" if peak is None else f"; its peak memory so far {amount(peak)}"
        _LOG.debug("%s (%d): done after %.2f s%s", self._module, process, time.monotonic() - began, told)
        log.seek(max(printed, log.seek(0, os.SEEK_END) - _LOGGED))
        for line in log.read().decode("utf-8", "replace").splitlines():
            _LOG.debug("%s (%d) printed: %s", self._module, process, line)

    def _started(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None or self._log is None:
            environment = {**child_environment(os.environ), **self._environment}
            if self._directory is not None:
                environment["TMPDIR"] = str(self._directory.absolute())
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
            try:
                self._child = start_process(self._module, environment, self._directory, self._log)
            except BaseException:
                self.close()
                raise
            _LOG.info("process %d: %s", self._child.pid, shlex.join(command(self._module)))
        return self._child, self._log


def start_process(
    module: str, environment: Mapping[str, str], directory: Path | None, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A process that runs ``module``, with pipes for requests and answers; the rest of what it prints goes to
    ``log``."""
    return subprocess.Popen(
        command(module),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        cwd=directory,
        process_group=0,  # Ctrl-C on a terminal is for the parent, which ends its children
    )


def command(module: str) -> list[str]:
    """The words that run ``module`` in a process; nothing is imported from the working directory."""
    return [sys.executable, "-P", "-m", module]


def child_environment(parent: Mapping[str, str]) -> dict[str, str]:
    """What a child gets of its parent's environment: an allow-list, so that no secret is among it."""
    kept = {name: value for name, value in parent.items() if _is_inherited(name)}
    # OpenMP threads that spin while they wait starve each other on a busy machine
    return {"OMP_WAIT_POLICY": "passive", **kept, **_FIXED}


def is_secret(name: str) -> bool:
    """Whether the value of a variable of the environment is a secret, by its name."""
    return any(part in name.upper() for part in _SECRET)


def _is_inherited(name: str) -> bool:
    if is_secret(name):
        return False
    return any(fnmatchcase(name, pattern) for pattern in _INHERITED)


def run_worker(
    module: str, request: Mapping[str, object], progress: StageProgress, *, what: str
) -> dict[str, Any]:
    """The result of one request to a process of its own; see ``Worker.call``."""
    with Worker(module) as worker:
        return worker.call(request, progress, what=what)


def _converse(
    child: subprocess.Popen[bytes], request: Mapping[str, object], progress: StageProgress
) -> dict[str, Any] | None:
    """Send the request, relay progress and return the answer, ``None`` if the child ended without one."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        return None  # it died before it read: its log says why
    for line in child.stdout:
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # printed by a library before the channel was set apart
        if "done" not in message:
            return message
        progress(message["done"], message["total"])
    return None


def _ending(status: int, log: str) -> str:
    """One line that says how a child without an answer ended."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in _TELLING)]
    last = (telling or lines or ["it printed nothing"])[-1]
    last = without_directories(last)  # of the machine that built a library
    if status == -signal.SIGKILL:
        return "the process was killed, most likely for want of memory; free some, or try a lower max-memory"
    if status < 0:
        return f"the process ended with {signal.Signals(-status).name}: {last}"
    return f"the process ended with status {status}: {last}"


def without_directories(text: str) -> str:
    """``text`` with the names of files alone where it has absolute paths."""
    return re.sub(r"(?<![^\s:'\"(=,])(/[^/\s:'\"]+)+/", "", text)


def serve(handler: Callable[[dict[str, Any], StageProgress], Mapping[str, object]]) -> None:
    """Answer requests in the child until the parent goes: the whole of a worker module's ``__main__``."""
    _end_with_parent()
    channel = _private_channel()

    def send(message: Mapping[str, object]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    for line in sys.stdin:
        try:
            result = handler(json.loads(line), lambda done, total: send({"done": done, "total": total}))
        except Exception as error:
            traceback.print_exc()
            send({"error": _one_line(error)})
        else:
            send({"result": result})


def peak_bytes() -> int:
    """The most memory that this process had in RAM at once. The usage that the system keeps for a process
    begins with its parent's on Linux, so the figure of its own address space is taken there."""
    found = _high_water("self")
    if found is not None:
        return found
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage << 10


def _high_water(process: int | str) -> int | None:
    """The peak memory of a process in bytes, ``None`` on systems other than Linux and once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["VmHWM"].split()[0]) << 10 if "VmHWM" in fields else None


def _end_with_parent() -> None:
    """Be killed with the parent, should it be killed in the middle of a request (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # a C library without it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _private_channel() -> IO[str]:
    """The pipe to the parent, out of reach of libraries that print: descriptor 1 becomes the log."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(2, 1)
    return channel


def _one_line(error: Exception) -> str:
    if isinstance(error, QatconvertError):
        return " ".join(str(error).split())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    told = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {told}"
