"""The child process: its answers, its errors, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converter.errors import ValidationError
from converter.worker import Worker, _ending, run_worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A process that serves requests one after the other."""
    with Worker("validation.reference_process") as one:
        yield one


def silent(done: int, total: int) -> None:
    """Report no progress."""


def children() -> set[str]:
    task = Path("/proc/self/task")
    return {pid for thread in task.iterdir() for pid in (thread / "children").read_text().split()}


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_an_error_is_one_line_and_the_process_lives_on(worker: Worker, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValidationError, match=r"^here: \w+Error: ") as caught:
            worker.call({"task": "tokenize", "model": str(tmp_path), "passages": []}, silent, what="here")
        assert "\n" not in str(caught.value)
        assert "Traceback" in caught.value.__notes__[0]
        assert caught.value.__notes__[0].count("Traceback (most recent call last)") < 6


def test_an_unknown_task_is_an_error(worker: Worker) -> None:
    with pytest.raises(ValidationError, match="here: KeyError: 'juggle'"):
        worker.call({"task": "juggle"}, silent, what="here")


def test_a_module_that_cannot_start_says_why() -> None:
    with pytest.raises(ValidationError, match=r"ended with status 1: .*No module named validation\.nothing"):
        run_worker("validation.nothing", {}, silent, what="here")


def test_a_killed_process_is_explained_and_replaced(checkpoint_factory: Callable[..., Path]) -> None:
    request = {
        "task": "tokenize",
        "model": str(checkpoint_factory("text")),
        "passages": [{"text": "Hello.", "turns": []}] * 2000,
    }
    with Worker("validation.reference_process") as worker:
        child, _ = worker._started()
        with pytest.raises(
            ValidationError, match="here: the process was killed, most likely for want of memory"
        ):
            worker.call(request, lambda done, total: child.kill(), what="here")
        with pytest.raises(ValidationError, match="KeyError: 'juggle'"):
            worker.call({"task": "juggle"}, silent, what="here")


def test_a_process_that_was_killed_while_it_waited_is_replaced() -> None:
    with Worker("validation.reference_process") as worker:
        child, _ = worker._started()
        child.kill()
        child.wait()
        with pytest.raises(ValidationError, match="KeyError: 'juggle'"):
            worker.call({"task": "juggle"}, silent, what="here")


def test_an_interrupted_request_leaves_no_process(
    checkpoint_factory: Callable[..., Path],
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = children()
    request = {
        "task": "tokenize",
        "model": str(checkpoint_factory("text")),
        "passages": [{"text": "Hello.", "turns": []}] * 2,
    }
    worker = Worker("validation.reference_process")
    with pytest.raises(KeyboardInterrupt):
        worker.call(request, interrupt, what="here")
    assert children() == before


def test_a_process_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(
        "import os, time\nfrom converter.worker import serve\n\n"
        "def handle(request, progress):\n    progress(os.getpid(), 0)\n    time.sleep(600)\n\nserve(handle)\n"
    )
    script = (
        "from converter.worker import run_worker\n"
        "run_worker('sleeper', {}, lambda done, total: print(done, flush=True), what='here')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait(10)
    end = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_process_that_was_never_asked_never_starts() -> None:
    before = children()
    with Worker("validation.reference_process"):
        assert children() == before


def test_an_assertion_is_found_in_a_log_and_freed_of_build_directories() -> None:
    log = "loading\n/build/x-1/vendor/llama.cpp/src/llama.cpp:7: GGML_ASSERT(a / b) failed\nthread 2\n"
    expected = "the process ended with SIGABRT: llama.cpp:7: GGML_ASSERT(a / b) failed"
    assert _ending(-signal.SIGABRT, log) == expected
    assert _ending(3, "") == "the process ended with status 3: it printed nothing"


def test_secrets_of_the_environment_stay_with_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Worker("validation.reference_process") as worker:
        child, _ = worker._started()
        with pytest.raises(ValidationError):  # it has certainly started when it answers
            worker.call({"task": "juggle"}, silent, what="here")
        environment = Path(f"/proc/{child.pid}/environ").read_bytes()
    assert b"hf_secret" not in environment
    assert b"HF_HUB_OFFLINE=1" in environment


def test_a_foreign_working_directory_is_not_imported_from(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('hijacked')")
    script = (
        "from converter.worker import run_worker\n"
        "try: run_worker('validation.reference_process', {'task': 'logits'}, lambda d, t: None, what='x')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [os.sys.executable, "-P", "-c", script],  # type: ignore[attr-defined]
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "hijacked" not in done.stdout + done.stderr
    assert "KeyError: 'model'" in done.stdout
