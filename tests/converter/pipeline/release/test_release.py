"""Releases from end to end: made, proven, found again, ended at any moment, and with artifacts that fail."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from converter.errors import DestinationError
from converter.pipeline.release.executors import Ended, Local
from converter.pipeline.release.running import Request, plan_release, release
from converter.pipeline.release.steps import Step, make
from converter.pipeline.release.store import STORE
from converter.pipeline.release.summary import Summary
from converter.pipeline.verification import verify
from converter.system.progress import no_progress
from converter.system.scratch import locked

# each makes and proves artifacts in processes of their own
pytestmark = pytest.mark.slow

PROGRAM = str(Path(sys.executable).with_name("qatconvert"))
QUICK = "positions = 64\n"
Write = Callable[..., Path]


class Here:
    """An executor of another kind: one step after the other, in this process."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def run(
        self, steps: Sequence[Step], place: Callable[[Step], Path], ended: Callable[[Ended], None]
    ) -> None:
        for step in steps:
            self.labels.append(step.label)
            ended(Ended(step, make(step.request, place(step), no_progress)))


@pytest.fixture
def write(checkpoint_factory: Callable[..., Path], tmp_path: Path) -> Write:
    """``write(*models, more="")``: a release of small checkpoints to GGUF, in the file ``r.toml``."""

    def written(*models: str, more: str = "", own: str = "") -> Path:
        tables = [f'[[models]]\nmodel = "{checkpoint_factory(one)}"\nname = "{one}"\n{own}' for one in models]
        path = tmp_path / "r.toml"
        head = f'output = "out"\n[defaults]\ntargets = ["gguf"]\n[defaults.validation]\n{QUICK}'
        path.write_text("\n".join([head, *tables, more]), "utf-8")
        return path

    return written


def run(path: Path, executor: Any = None) -> tuple[dict[str, Any], Path, list[str]]:
    told: list[str] = []
    summary, output = release(Request(path), tell=told.append, warn=lambda line: None, executor=executor)
    assert json.loads((output / "release.json").read_text()) == summary.as_dict()
    return {f"{one.model} {one.target}": one for one in summary.made}, output, told


def files(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and STORE not in path.parts
    }


def test_what_was_made_is_verified_and_found_by_the_next_run(write: Write) -> None:
    path = write("text", "gemma3-text")
    made, output, told = run(path)
    assert {name: (one.status, one.cached) for name, one in made.items()} == {
        "text gguf": ("passed", False),
        "gemma3-text gguf": ("passed", False),
    }
    assert sorted(told) == ["gemma3-text gguf: passed", "text gguf: passed"]
    for name in ("text", "gemma3-text"):
        assert verify(output / name).differences == []
        assert verify(output / name).verdicts == {"gguf": "passed"}
    before = files(output)
    found, _, told = run(path)
    assert all(one.cached for one in found.values())
    assert (told, files(output)) == ([], {**before, "junit.xml": (output / "junit.xml").read_bytes()})


def test_a_file_that_was_changed_is_made_again(write: Write) -> None:
    path = write("text", "gemma3-text")
    _, output, _ = run(path, Here())
    before = files(output)
    (artifact,) = (output / "text" / "gguf").glob("*.gguf")
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    artifact.write_bytes(content)
    executor = Here()
    made, _, _ = run(path, executor)
    assert executor.labels == ["text gguf"]
    assert {name: one.cached for name, one in made.items()} == {"text gguf": False, "gemma3-text gguf": True}
    after = files(output)
    del before["junit.xml"], after["junit.xml"]  # it has times
    assert after == before


def test_another_option_makes_one_artifact_anew_and_another_target_is_added(write: Write) -> None:
    executor = Here()
    run(write("text", "gemma3-text"), executor)
    more = 'targets = ["gguf", "onnx"]\n[models.options.onnx]\naccuracy_level = 4\n'
    made, output, _ = run(write("text", "gemma3-text", more=more), executor)
    assert executor.labels == ["text gguf", "gemma3-text gguf", "gemma3-text onnx"]
    assert {one.status for one in made.values()} == {"passed"}
    found = verify(output / "gemma3-text")
    assert (found.differences, found.verdicts) == ([], {"gguf": "passed", "onnx": "passed"})
    manifest = json.loads((output / "gemma3-text" / "manifest.json").read_text())
    assert list(manifest["targets"]) == ["gguf", "onnx"]
    executor.labels.clear()
    run(write("text", "gemma3-text", more=more.replace("4", "0")), executor)
    assert executor.labels == ["gemma3-text onnx"]


def test_a_failed_gate_is_that_of_its_artifact_alone(write: Write) -> None:
    more = "[models.validation.gates]\nmean_kld = 1e-15\n"
    path = write("text", "gemma3-text", more=more)
    made, output, told = run(path, Here())
    assert {name: (one.status, list(one.gates)) for name, one in made.items()} == {
        "text gguf": ("passed", []),
        "gemma3-text gguf": ("failed", ["mean_kld"]),
    }
    assert Summary("r", list(made.values())).exit_status == 3
    assert "gemma3-text gguf: failed: mean_kld" in told
    assert (output / "text").is_dir()
    assert not (output / "gemma3-text").exists()
    found, _, _ = run(path)
    assert found["gemma3-text gguf"].cached
    assert "| gemma3-text | gguf | **failed**: mean_kld |" in (output / "summary.md").read_text()
    suites = ElementTree.parse(output / "junit.xml").getroot()
    cases = {case.get("classname"): [one.tag for one in case] for case in suites.iter("testcase")}
    assert cases == {"text": [], "gemma3-text": ["failure"]}


def test_a_model_that_cannot_be_opened_is_an_error_of_its_own(write: Write, tmp_path: Path) -> None:
    """By the command, whose JSON tells of a gate that failed beside it."""
    (tmp_path / "broken").mkdir()
    gates = "[models.validation.gates]\nmean_kld = 1e-15\n"
    path = write("text", own=gates, more='[[models]]\nmodel = "./broken"\n')
    command = [PROGRAM, "release", str(path), "--json", "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    text, broken = json.loads(done.stdout)["artifacts"]
    assert (text["status"], text["gates"]) == ("failed", ["mean_kld"])
    assert (broken["status"], broken["path"]) == ("error", None)
    assert str(tmp_path / "broken") in broken["error"]
    assert json.loads((tmp_path / "out" / "release.json").read_text()) == json.loads(done.stdout)
    plain = subprocess.run([PROGRAM, "release", str(path), "-q"], capture_output=True, text=True)
    assert plain.returncode == 1
    assert "text gguf: mean_kld\nbroken gguf: " in plain.stdout


def test_a_dry_run_tells_every_step_and_writes_nothing(write: Write, tmp_path: Path) -> None:
    path = write("text", "gemma3-text")
    plan = plan_release(Request(path))
    assert [(one["model"], one["target"], one["done"]) for one in plan["steps"]] == [
        ("text", "gguf", False),
        ("gemma3-text", "gguf", False),
    ]
    assert all(one["bytes"] > 100_000 and one["memory"] and one["seconds"] for one in plan["steps"])
    assert plan["disk"] == sum(one["bytes"] for one in plan["steps"])
    assert not (tmp_path / "out").exists()
    run(path, Here())
    again = plan_release(Request(path))
    assert [one["done"] for one in again["steps"]] == [True, True]
    assert again["disk"] == 0


def test_two_releases_in_one_place_are_refused_and_told_who_is_there(write: Write, tmp_path: Path) -> None:
    path = write("text")
    (tmp_path / "out").mkdir()
    told = pytest.raises(DestinationError, match=rf"process {os.getpid()}, release of r")
    with locked(tmp_path / "out", "release of r"), told:
        release(Request(path))


def test_killed_at_any_moment_the_next_run_goes_on(write: Write, tmp_path: Path) -> None:
    path = write("text")
    chooser = random.Random(7)
    for _ in range(3):
        process = subprocess.Popen(
            [PROGRAM, "release", str(path), "-q"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(chooser.uniform(0.3, 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    made, output, _ = run(path)
    assert {one.status for one in made.values()} == {"passed"}
    found = files(output)
    assert verify(output / "text").differences == []
    assert not [name for name in found if name.split("/")[-1].startswith(".")]
    other = tmp_path / "other.toml"
    other.write_text(path.read_text().replace('"out"', '"whole"'))
    _, whole, _ = run(other, Here())
    for name, content in files(whole).items():
        if name not in ("junit.xml", "release.json", "summary.md"):
            assert found[name] == content, name


def test_steps_run_side_by_side_as_far_as_memory_goes() -> None:
    def step(label: str, memory: int, seconds: float) -> Step:
        return Step(label, label, "gguf", {}, memory, seconds)

    steps = [step("small", 10, 1), step("large", 90, 5), step("other", 20, 2)]
    executor = Local(3, 100)
    order = sorted(steps, key=lambda one: -(one.seconds or 0))
    first = executor._next(order, [])
    assert first is steps[1]
    assert executor._next([steps[2], steps[0]], [steps[1]]) is steps[0]
    assert executor._next([steps[2]], [steps[1], steps[0]]) is None
    assert executor._next([step("huge", 10_000, 1)], []) is not None  # alone it runs whatever it takes
    assert Local(1, 100)._next([steps[0]], [steps[1]]) is None
