"""Signals at every stage of a conversion: an exit status of their own, one line, and nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.hub_server import HubServer
from support.stages import without_stages

PROGRAM = str(Path(sys.executable).with_name("qatconvert"))
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
REPO = "google/gemma-4-9B-it-qat-q4_0-unquantized"


def start(*words: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupt(process: subprocess.Popen[str], stage: Callable[[], object], *numbers: int) -> str:
    """Send signals as soon as a stage is reached; what the command says."""
    end = time.monotonic() + 120
    while not stage():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)
    for number in numbers:
        os.kill(process.pid, number)
        time.sleep(0.002)
    return without_stages(process.communicate(timeout=60)[1])


def children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("stage", ["locked", "written", "child"])
def test_a_signal_ends_a_conversion_with_its_status_and_nothing_is_left(
    checkpoint_factory, tmp_path, number, stage
):
    out, home = tmp_path / "out", tmp_path / "home"
    environment = {**os.environ, "QATCONVERT_HOME": str(home)}
    process = start(checkpoint_factory("text"), "-o", out, "--positions", 64, environment=environment)
    reached = {
        "locked": lambda: (tmp_path / ".out.lock").exists(),
        "written": lambda: any((tmp_path / ".out.partial").glob("gguf/*.gguf")),
        "child": lambda: children(process.pid),
    }[stage]
    told = interrupt(process, reached, number)
    assert told.strip() == "qatconvert: interrupted"
    assert process.returncode == STATUS[number]
    assert [path.name for path in tmp_path.iterdir() if path != home] == []


@pytest.mark.parametrize("second", STATUS)
def test_further_signals_while_it_cleans_up_change_nothing(checkpoint_factory, tmp_path, second):
    environment = {**os.environ, "QATCONVERT_HOME": str(tmp_path / "home")}
    process = start(checkpoint_factory("text"), "-o", tmp_path / "out", environment=environment)
    written = (tmp_path / ".out.partial").glob
    told = interrupt(process, lambda: any(written("gguf/*.gguf")), signal.SIGTERM, *[second] * 400)
    assert told.strip() == "qatconvert: interrupted"
    assert process.returncode in STATUS.values()  # of signals that come at once, the system picks
    assert {path.name for path in tmp_path.iterdir()} <= {"home"}


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_during_a_download_leaves_no_output(checkpoint_factory, tmp_path, number):
    with HubServer({REPO: checkpoint_factory("text")}) as server:
        server.drop_after["model.safetensors"] = 50_000  # so that the rest is waited for
        environment = {**server.environment(tmp_path), "QATCONVERT_HOME": str(tmp_path / "own")}
        process = start(REPO, "--no-validate", "-o", tmp_path / "out", environment=environment)
        told = interrupt(process, lambda: server.asked_for("model.safetensors"), number)
    assert told.strip() == "qatconvert: interrupted"
    assert process.returncode == STATUS[number]
    assert not list(tmp_path.glob("*out*"))


def test_an_ignored_ctrl_c_stays_ignored(checkpoint_factory, tmp_path):
    process = subprocess.Popen(
        [PROGRAM, str(checkpoint_factory("text")), "--no-validate", "-o", str(tmp_path / "out")],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and not (tmp_path / ".out.lock").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    assert (tmp_path / "out" / "manifest.json").exists()
