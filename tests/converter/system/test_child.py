"""The child process: its answers, its errors, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from converter.errors import ValidationError
from converter.system import child
from converter.system.child import Worker, _ending, run_worker
from converter.system.progress import no_progress
from support import forked


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    """Workers are processes that are started, as users have them."""
    if pytestconfig.getoption("no_processes"):
        pytest.skip("starts processes")
    monkeypatch.setattr(child, "start_process", forked.start_process)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A process that serves requests one after the other."""
    with Worker("validation.reference.process") as one:
        yield one


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
        request = {"task": "tokenize", "model": str(tmp_path), "passages": []}
        with pytest.raises(ValidationError, match=r"^here: \w+Error: ") as caught:
            worker.call(request, no_progress, what="here")
        assert "\n" not in str(caught.value)
        assert "Traceback" in caught.value.__notes__[0]
        assert caught.value.__notes__[0].count("Traceback (most recent call last)") < 6


def test_an_unknown_task_is_an_error(worker: Worker) -> None:
    with pytest.raises(ValidationError, match="here: KeyError: 'juggle'"):
        worker.call({"task": "juggle"}, no_progress, what="here")


def test_a_module_that_cannot_start_says_why() -> None:
    with pytest.raises(ValidationError, match=r"ended with status 1: .*No module named validation\.nothing"):
        run_worker("validation.nothing", {}, no_progress, what="here")


def test_a_killed_process_is_explained_and_replaced(checkpoint_factory: Callable[..., Path]) -> None:
    request = {
        "task": "tokenize",
        "model": str(checkpoint_factory("text")),
        "passages": [{"text": "Hello.", "turns": []}] * 2000,
    }
    with Worker("validation.reference.process") as worker:
        child, _ = worker._started()
        with pytest.raises(
            ValidationError, match="here: the process was killed, most likely for want of memory"
        ):
            worker.call(request, lambda done, total: child.kill(), what="here")
        with pytest.raises(ValidationError, match="KeyError: 'juggle'"):
            worker.call({"task": "juggle"}, no_progress, what="here")


def test_a_process_that_was_killed_while_it_waited_is_replaced() -> None:
    with Worker("validation.reference.process") as worker:
        child, _ = worker._started()
        child.kill()
        child.wait()
        with pytest.raises(ValidationError, match="KeyError: 'juggle'"):
            worker.call({"task": "juggle"}, no_progress, what="here")


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
    worker = Worker("validation.reference.process")
    with pytest.raises(KeyboardInterrupt):
        worker.call(request, interrupt, what="here")
    assert children() == before


def test_requests_that_another_thread_gives_up_fail_at_once_and_start_no_process(
    checkpoint_factory: Callable[..., Path],
) -> None:
    request = {
        "task": "tokenize",
        "model": str(checkpoint_factory("text")),
        "passages": [{"text": "Hello.", "turns": []}] * 200_000,
    }
    done: list[int] = []
    before = children()
    with Worker("validation.reference.process") as worker, ThreadPoolExecutor() as pool:
        under_way = Event()

        def show(count: int, total: int) -> None:
            done.append(count)
            under_way.set()

        answer = pool.submit(worker.call, request, show, what="here")
        assert under_way.wait(60)
        worker.give_up()
        with pytest.raises(ValidationError, match=r"^here: given up$"):
            answer.result(5)
        assert done[-1] < 200_000
        with pytest.raises(ValidationError, match=r"^here: given up$"):
            worker.call({"task": "juggle"}, no_progress, what="here")
        worker.start()
        assert children() == before


def test_a_process_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(
        "import os, time\nfrom converter.system.child import serve\n\n"
        "def handle(request, progress):\n    progress(os.getpid(), 0)\n    time.sleep(600)\n\nserve(handle)\n"
    )
    script = (
        "from converter.system.child import run_worker\n"
        "run_worker('sleeper', {}, lambda done, total: print(done, flush=True), what='here')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as parent:
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
    with Worker("validation.reference.process"):
        assert children() == before


def test_an_assertion_is_found_in_a_log_and_freed_of_build_directories() -> None:
    log = "loading\n/build/x-1/vendor/llama.cpp/src/llama.cpp:7: GGML_ASSERT(a / b) failed\nthread 2\n"
    expected = "the process ended with SIGABRT: llama.cpp:7: GGML_ASSERT(a / b) failed"
    assert _ending(-signal.SIGABRT, log) == expected
    assert _ending(3, "") == "the process ended with status 3: it printed nothing"


SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_TOKEN",
    "GITHUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN",
    "OPENAI_API_KEY",
    "PGPASSWORD",
    "HTTPS_PROXY",
    "SSH_AUTH_SOCK",
    "LC_TOKEN",
    "OMP_SECRET",
    "ANYTHING",
)


def environment_of_child(**added: str) -> dict[str, str]:
    """The environment of a real child process, as the system has it."""
    with Worker("validation.reference.process", environment=added) as worker:
        child, _ = worker._started()
        with pytest.raises(ValidationError, match="KeyError: 'juggle'"):  # it has started when it answers
            worker.call({"task": "juggle"}, no_progress, what="here")
        words = Path(f"/proc/{child.pid}/environ").read_text().split("\0")
    return dict(word.split("=", 1) for word in words if word)


def test_no_secret_of_the_environment_reaches_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, f"secret of {name}")
    found = environment_of_child()
    assert not [name for name, value in found.items() if "secret of" in value]
    assert found["HF_HUB_OFFLINE"] == found["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"


def test_a_child_gets_what_it_needs_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "XDG_CACHE_HOME": "/nowhere",
        "OMP_WAIT_POLICY": "active",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": "/nowhere",
    }
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    found = environment_of_child(ADDED="by the caller")
    assert {name: found[name] for name in wanted} == wanted
    assert found["PATH"] == os.environ["PATH"]
    assert found["ADDED"] == "by the caller"


def test_settings_that_would_change_what_a_runtime_computes_stay_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("ORT_MLAS_QKGEMM_S8_APPROX_VNNI", "LLAMA_CPP_LIB_PATH", "GGML_BACKEND_PATH", "ORT_DISABLE_ALL")
    for name in names:
        monkeypatch.setenv(name, "1")
    assert not {*names} & {*environment_of_child()}


def test_a_child_is_out_of_reach_of_the_terminals_signals() -> None:
    with Worker("validation.reference.process") as worker:
        child, _ = worker._started()
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)


def test_a_foreign_working_directory_is_not_imported_from(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('hijacked')")
    script = (
        "from converter.system.child import run_worker\n"
        "try: run_worker('validation.reference.process', {'task': 'logits'}, lambda d, t: None, what='x')\n"
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
