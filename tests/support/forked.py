"""Processes that are forked from one which has imported what they import, for tests.

Importing torch and transformers, or litert-torch, takes longer than most of what a test asks of them. For
each such module a server imports that once, and does nothing else. A worker is a copy of the server. It gets
standard streams, an environment and a working directory of its own, and runs the module as ``python -m``
does. If its environment is another one than the server's, it is started as ever.

``run_command`` does the same with whole commands. ``PROGRAM`` is the command in a process of its own, whose
workers come from the servers of the test process that runs it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import pytest

from converter.system import child

#: What serves whole commands.
_COMMAND: Final = "converter.cli"
#: What is imported beforehand, by the module that a worker runs.
IMPORTS: Final[Mapping[str, Sequence[str]]] = {
    "validation.reference.process": [
        "validation.reference.process",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.gemma3.modeling_gemma3",
        "transformers.models.gemma4.modeling_gemma4",
    ],
    "targets.litert.export.process": ["targets.litert.export.process"],
    "converter.checkpoint.rendering": [
        "converter.checkpoint.rendering",
        "transformers.utils.chat_template_utils",
    ],
    "validation.loading": ["validation.loading"],
    "validation.runtimes.genai_text_model": ["validation.runtimes.genai_text_model", "onnxruntime_genai"],
    "validation.runtimes.litert_lm_engine": ["validation.runtimes.litert_lm_engine", "litert_lm"],
    "validation.runtimes.litert_model": [
        "validation.runtimes.litert_model",
        "ai_edge_litert.interpreter",
    ],
    "validation.runtimes.llamacpp_model": ["validation.runtimes.llamacpp_model"],
    "validation.runtimes.llamacpp_server_model": ["validation.runtimes.llamacpp_server_model", "xllamacpp"],
    "validation.runtimes.llamacpp_text_model": ["validation.runtimes.llamacpp_text_model"],
    "validation.runtimes.onnxruntime_excerpt": ["validation.runtimes.onnxruntime_excerpt", "onnx"],
    "validation.runtimes.onnxruntime_model": [
        "validation.runtimes.onnxruntime_model",
        "onnx",
        "onnxruntime",
    ],
    _COMMAND: [
        "converter.cli",
        "converter.cli.convert",
        "converter.cli.inspect",
        "converter.cli.modelfile",
        "converter.cli.stages",
        "converter.cli.tables",
        "converter.cli.validate",
        "converter.cli.verify",
        "converter.pipeline.conversion",
        "converter.pipeline.proving",
        "targets.gguf.artifact",
        "targets.onnx.artifact",
    ],
}
#: Of this test process; sockets have short paths.
_DIRECTORY: Final = Path(tempfile.gettempdir()) / f"qatconvert-tests-{os.getpid()}"
PROGRAM: Final = str(_DIRECTORY / "qatconvert")
#: What is behind all else that is imported from: the packages, and the tests' support.
_PATHS: Final = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
#: What differs from process to process without a meaning for what was imported.
_OF_EACH: Final = ("PATH", "TMPDIR", "QATCONVERT_HOME", "PYTEST_CURRENT_TEST", "PYTHONPATH")
#: The one of them that says where to import from.
_PLACES: Final = "PYTHONPATH"
#: The variable with which a server is told its environment: an interpreter adds to its own.
_TOLD: Final = "QATCONVERT_TESTS_ENVIRONMENT"
#: What a server answers instead of a process's number.
_REFUSED: Final = "another environment"

#: What starts a process for a worker where there are no servers.
start_process: Final = child.start_process


@contextlib.contextmanager
def no_processes() -> Iterator[None]:
    """Skip the test that starts a process while this lasts."""

    def skip(*arguments: object, **options: object) -> None:
        pytest.skip("starts a process")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", skip)
        patch.setattr(subprocess.Popen, "__del__", lambda process: None)
        patch.setattr(ForkedProcess, "__init__", skip)
        yield


@contextlib.contextmanager
def forked_workers(graphs: Path) -> Iterator[None]:
    """Have the workers of this process, and those of ``PROGRAM``, come from servers while this lasts.

    Graphs that are exported for LiteRT are kept in ``graphs`` (``support.litert_exports``).
    """
    _DIRECTORY.mkdir()
    Path(PROGRAM).write_text(
        f"#!{sys.executable}\nimport sys\nsys.path += {_PATHS!r}\nfrom support import forked\n"
        f"forked.use_servers({str(_DIRECTORY)!r})\nfrom converter.cli import main\nmain()\n"
    )
    Path(PROGRAM).chmod(0o755)
    servers = [_server(module, graphs) for module in IMPORTS]
    use_servers(str(_DIRECTORY))
    try:
        yield
    finally:
        child.start_process = start_process
        for server in servers:
            assert server.stdin is not None
            server.stdin.close()
            server.wait()
        for file in _DIRECTORY.iterdir():
            file.unlink()
        _DIRECTORY.rmdir()


def use_servers(directory: str) -> None:
    """Have workers of this process come from the servers whose sockets are in ``directory``."""

    def start(
        module: str, environment: Mapping[str, str], cwd: Path | None, log: IO[bytes]
    ) -> subprocess.Popen[bytes] | ForkedWorker:
        if module in IMPORTS:
            address = str(Path(directory) / module)
            with contextlib.suppress(_RefusedError):
                return ForkedWorker(address, environment, cwd or Path.cwd(), log)
        return start_process(module, environment, cwd, log)

    child.start_process = start  # type: ignore[assignment]  # it has what a worker uses


def run_command(
    words: Sequence[str], environment: Mapping[str, str], directory: Path, seconds: float
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` gives for ``qatconvert`` with ``words``, which is forked where it can be.

    What it prints is decoded as file names are. Raises ``TimeoutExpired`` as that does.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        streams = [nothing.fileno(), out.fileno(), err.fileno()]
        try:
            process = ForkedProcess(str(_DIRECTORY / _COMMAND), environment, directory, streams, words=words)
        except _RefusedError:
            return subprocess.run(
                [PROGRAM, *words],
                capture_output=True,
                text=True,
                errors="surrogateescape",
                env=environment,
                cwd=directory,
                timeout=seconds,
            )
        if not process.ends_within(seconds):
            process.kill()
            process.wait()
            raise subprocess.TimeoutExpired([PROGRAM, *words], seconds)
        told = []
        for stream in (out, err):
            stream.seek(0)
            told.append(stream.read().decode("utf-8", "surrogateescape"))
        return subprocess.CompletedProcess([PROGRAM, *words], process.wait(), *told)


def _server(module: str, graphs: Path) -> subprocess.Popen[bytes]:
    """A process that runs ``serve``; whoever connects before it has imported what it needs waits."""
    environment = _environment(module)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(_DIRECTORY / module))
        listener.listen(64)
        return subprocess.Popen(
            [sys.executable, "-P", __file__, module, str(listener.fileno()), str(graphs)],
            env={**environment, _TOLD: json.dumps(environment)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            process_group=0,
        )


def _environment(module: str) -> dict[str, str]:
    if module == _COMMAND:
        return dict(os.environ)
    environment = child.child_environment(os.environ)
    if module == "targets.litert.export.process":
        from targets.litert.export import child as export

        environment.update(export._ENVIRONMENT)
    return environment


class _RefusedError(Exception):
    """A server gives no such worker."""


class ForkedProcess:
    """A process that ``serve`` has forked, with the descriptors ``streams`` as its standard streams.

    Raises ``_RefusedError`` if the server's environment is another one.
    """

    def __init__(
        self,
        address: str,
        environment: Mapping[str, str],
        directory: Path,
        streams: Sequence[int],
        words: Sequence[str] = (),
    ) -> None:
        self.returncode: int | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(address)
        self._told = self._server.makefile("r")
        message = {"environment": dict(environment), "directory": str(directory), "words": list(words)}
        socket.send_fds(self._server, [json.dumps(message).encode() + b"\n"], streams)
        answer = self._told.readline().strip()
        if answer == _REFUSED:
            self._close()
            raise _RefusedError
        self.pid = int(answer)

    def ends_within(self, seconds: float) -> bool:
        """Whether the process has ended, or does so in the next ``seconds``."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._server, selectors.EVENT_READ)
                return bool(selector.select(seconds))
        return True

    def poll(self) -> int | None:
        """The exit status as ``Popen`` has it, ``None`` while the process runs."""
        return self.wait() if self.ends_within(0) else None

    def wait(self) -> int:
        """The exit status, once there is one."""
        if self.returncode is None:
            self.returncode = int(self._told.readline() or -signal.SIGKILL)
            self._close()
        return self.returncode

    def kill(self) -> None:
        """Kill the process unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _close(self) -> None:
        self._told.close()
        self._server.close()


class ForkedWorker(ForkedProcess):
    """What ``Worker`` uses of ``subprocess.Popen``."""

    def __init__(self, address: str, environment: Mapping[str, str], directory: Path, log: IO[bytes]) -> None:
        requests, stdin = os.pipe()
        stdout, answers = os.pipe()
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        try:
            super().__init__(address, environment, directory, [requests, answers, log.fileno()])
        except _RefusedError:
            self.stdin.close()
            self.stdout.close()
            raise
        finally:
            os.close(requests)
            os.close(answers)


def serve(module: str, listener: socket.socket, graphs: Path) -> None:
    """Fork a worker for every connection to ``listener`` until standard input ends."""
    directory = Path(listener.getsockname()).parent
    workers: dict[int, tuple[socket.socket, int]] = {}  # by the descriptor that tells of a worker's end
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == 0:
                    for _, process in workers.values():
                        os.kill(process, signal.SIGKILL)
                    return
                if key.fileobj is listener:
                    connection = listener.accept()[0]
                    if (process := _fork(module, connection, directory, graphs)) is not None:
                        ended = os.pidfd_open(process)
                        workers[ended] = connection, process
                        selector.register(ended, selectors.EVENT_READ)
                        selector.register(connection, selectors.EVENT_READ, process)
                elif key.data is not None:  # whoever asked for this worker has gone
                    selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
                elif key.fd in workers:
                    _tell_end(selector, key.fd, *workers.pop(key.fd))


def _tell_end(selector: selectors.BaseSelector, ended: int, connection: socket.socket, process: int) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    selector.unregister(ended)
    os.close(ended)
    with contextlib.suppress(KeyError):
        selector.unregister(connection)
    with contextlib.suppress(BrokenPipeError), connection:
        connection.sendall(f"{status}\n".encode())


def _fork(module: str, connection: socket.socket, directory: Path, graphs: Path) -> int | None:
    data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    message = json.loads(data)
    process = None
    given, own = (_for_all(one, module) for one in (message["environment"], json.loads(os.environ[_TOLD])))
    if given == own:
        _import(module)
        places = _places(message["environment"].get(_PLACES, ""))
        if places is not None:
            process = os.fork()
            if process == 0:
                sys.path[:0] = places
                _become(message, descriptors)
                _run(module, directory, graphs)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(f"{_REFUSED if process is None else process}\n".encode())
    return process


def _places(given: str) -> list[str] | None:
    """Directories of ``PYTHONPATH`` that a worker imports from too, ``None`` if the server has imported, or
    would have run, another module of a name in them."""
    places = [one for one in given.split(os.pathsep) if one and Path(one).is_dir() and one not in sys.path]
    names = {file.name.split(".")[0] for place in places for file in Path(place).iterdir()}
    return None if names & {*sys.modules, "sitecustomize"} else places


def _for_all(environment: Mapping[str, str], module: str) -> dict[str, str]:
    # a worker is told where files are, where a command looks for them at home
    own = _OF_EACH if module == _COMMAND else (*_OF_EACH, "HOME")
    return {name: value for name, value in environment.items() if name not in own}


def _import(module: str) -> None:
    if module in sys.modules:
        return
    for name in IMPORTS[module]:
        with contextlib.suppress(ImportError):  # the worker says what is missing
            importlib.import_module(name)
    if module == _COMMAND:  # what was compiled is loaded when it is first used
        from converter.checkpoint.opened import open_checkpoint
        from converter.demo import DEMO

        open_checkpoint(DEMO)
    if ".llamacpp_" in module or module == _COMMAND:  # its digest is known then
        from validation.runtimes.llamacpp_library import find_library

        find_library()
    gc.freeze()  # pages of what was imported stay shared


def _become(message: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Take on what a process would have been given that is started."""
    os.setpgid(0, 0)
    for own, given in enumerate(descriptors):
        os.dup2(given, own)
    os.closerange(3, max(descriptors) + 64)
    os.environ.clear()
    os.environ.update(message["environment"])
    tempfile.tempdir = None
    os.chdir(message["directory"])
    sys.argv = [PROGRAM, *message["words"]]


def _run(module: str, directory: Path, graphs: Path) -> None:
    status = 1
    try:
        if module == "targets.litert.export.process":
            from support.litert_exports import kept
            from targets.litert.export.process import serve_export

            child.serve(kept(serve_export, graphs))
        elif module == _COMMAND:
            from converter.cli import main

            use_servers(str(directory))
            main()
        else:
            del sys.modules[module]  # it is run, not imported
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.path += _PATHS
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])), Path(sys.argv[3]))
