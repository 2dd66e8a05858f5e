"""Stages as they are shown: something moves on a terminal, and elsewhere each has a line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from converter.cli.stages import Picture, Stages, shown_stages
from converter.system.compiled import COMPILING
from converter.system.progress import begin, beside, counted, stage_of
from support.stages import stages_of, without_stages
from support.terminal import watched

PROGRAM = str(Path(sys.executable).with_name("qatconvert"))
#: Seconds without a change after which a person wonders.
PATIENCE = 1.5


def names(stages: Stages) -> list[str]:
    return [stage.name for stage in stages.running()]


@pytest.fixture
def stages() -> Stages:
    return Stages(lambda name: None)


def test_a_stage_is_over_when_its_thread_begins_another(stages: Stages) -> None:
    begin(stages, "first")
    begin(stages, "second")
    assert (names(stages), stages.done) == (["second"], ["first"])


def test_the_last_stage_moves_on_until_the_next_begins(stages: Stages) -> None:
    counted(stage_of(stages, "first"), 1)(1)
    assert names(stages) == ["first"]


def test_stages_of_two_threads_run_side_by_side(stages: Stages) -> None:
    go_on = threading.Event()

    def work() -> None:
        advance = counted(stage_of(stages, "other"), 2)
        advance(1)
        go_on.wait(10)
        advance(1)

    begin(stages, "first")
    thread = threading.Thread(target=work)
    thread.start()
    while "other" not in names(stages):
        time.sleep(0.001)
    begin(stages, "second")
    assert names(stages) == ["other", "second"]
    go_on.set()
    thread.join()
    assert names(stages) == ["second"]
    assert stages.done == ["first", "other"]


def test_a_stage_whose_thread_ended_before_its_end_is_over(stages: Stages) -> None:
    thread = threading.Thread(target=lambda: begin(stages, "other"))
    thread.start()
    thread.join()
    assert (names(stages), stages.done) == ([], ["other"])


def test_work_within_a_stage_does_not_end_it_and_is_told_once() -> None:
    told: list[str] = []
    stages = Stages(told.append)
    begin(stages, "first")
    for done, total in ((0, 1), (1, 1), (1, 2), (2, 2)):
        stages.beside("within", done, total)
    assert names(stages) == ["first"]
    assert told == ["first", "within"]


def test_only_what_numba_compiles_is_announced(tmp_path: Path) -> None:
    """The second process finds the machine code on disk."""
    (tmp_path / "twice.py").write_text(
        "from converter.system.compiled import compiled\n\n@compiled()\ndef twice(x):\n    return 2 * x\n"
    )
    script = (
        "from converter.system.progress import shown_beside\nfrom twice import twice\n"
        "with shown_beside(lambda *told: print(*told)):\n    twice(1)\n    twice(2)\n    twice(1.5)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{tmp_path}", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    first, second = (subprocess.check_output(command, text=True, env=environment) for _ in range(2))
    assert first.splitlines() == [
        f"{COMPILING} {done} {total}" for done, total in ((0, 1), (1, 1), (1, 2), (2, 2))
    ]
    assert second == ""


@pytest.mark.parametrize(("encoding", "plain"), [("utf-8", False), ("ascii", True)])
@pytest.mark.parametrize("columns", [80, 60, 30])
def test_the_picture_fits_the_terminal(columns: int, encoding: str, plain: bool, tmp_path: Path) -> None:
    stages = Stages(lambda name: None)
    for number in range(9):
        begin(stages, f"checking the weights of part {number}")
    stages("writing a model whose name is far too long for any line that a terminal may have", 1, 3)
    stages.beside("compiling", 1, 2)
    with (tmp_path / "written").open("w+", encoding=encoding) as file:
        console = Console(file=file, width=columns, force_terminal=True, color_system=None)
        picture = Picture(stages, console)
        console.print(picture())
        file.seek(0)
        lines = file.read().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) < columns
    assert lines[0].startswith("9 done in 0:00")
    assert columns < 60 or lines[0].endswith("checking the weights of part 8")
    assert " 33%" in lines[1]
    assert " 50%" in lines[2]
    assert all(line.isascii() for line in lines) == plain


def test_without_a_terminal_each_stage_is_one_plain_line(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    command = [PROGRAM, str(checkpoint_factory("text")), "--no-validate", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [name for name in stages_of(done.stderr) if name != COMPILING]
    opened = checkpoint_factory("text").name
    assert found == [f"opening {opened}", "planning gguf", "writing gguf", "writing the report"]
    assert without_stages(done.stderr) == ""
    assert done.stderr.isascii()
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert "writing gguf" not in done.stdout


def test_a_reader_that_wants_no_stages_ends_no_conversion(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [PROGRAM, str(checkpoint_factory("text")), "--no-validate", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    assert done.returncode == 0
    assert (tmp_path / "out" / "manifest.json").exists()


def test_quiet_shows_results_and_no_warnings(checkpoint_factory: Callable[..., Path], tmp_path: Path) -> None:
    model = shutil.copytree(checkpoint_factory("text"), tmp_path / "model")
    (model / "README.md").write_text("---\ntags: {a: b}\n---\n")
    told = []
    for words in ([], ["--quiet"]):
        command = [PROGRAM, str(model), "--no-validate", "-o", str(tmp_path / f"out{len(words)}"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "written to" in done.stdout
        told.append(without_stages(done.stderr) if not words else done.stderr)
    assert "qatconvert: warning: " in told[0]
    assert told[1] == ""


def test_work_is_shown_only_while_the_block_runs() -> None:
    with shown_stages(quiet=True) as stages:
        beside("compiling", 0, 1)
        assert names(stages) == ["compiling"]
    beside("more", 0, 1)
    assert names(stages) == []


def test_something_moves_all_the_time(tmp_path: Path) -> None:
    """Also while modules are imported and while children start."""
    command = [PROGRAM, "gemma4-demo", "-t", "gguf", "-t", "onnx", "-o", str(tmp_path / "out")]
    screen = watched([*command, "--positions", "64"], 80, tmp_path, {"QATCONVERT_HOME": str(tmp_path)})
    assert screen.status in (0, 3)
    assert screen.stillness < PATIENCE
    assert max(map(len, screen.lines)) < 80
    for name in (
        "tokenizing text (transformers)",
        "writing onnx",
        "running llama.cpp",
        "checking weights (gguf)",
    ):
        assert any(name in line for line in screen.lines)


@pytest.mark.slow
def test_something_moves_all_the_time_of_an_export(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    two = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    model = str(checkpoint_factory("gemma3", text=two))
    command = [PROGRAM, model, "-t", "litert", "-o", str(tmp_path / "out"), "--no-validate"]
    screen = watched(command, 60, tmp_path)
    assert screen.status == 0
    assert screen.stillness < PATIENCE
    assert max(map(len, screen.lines)) < 60
    assert any("exporting the graph (litert)" in line for line in screen.lines)


@pytest.mark.parametrize("stage", ["opening", "tokenizing", "reference", "running llama.cpp"])
def test_an_interrupt_leaves_the_terminal_as_it_was(stage: str, tmp_path: Path) -> None:
    sent: list[int] = []

    def interrupt(process: subprocess.Popen[bytes], written: str) -> None:
        if stage in written and not sent:
            sent.append(process.pid)
            process.send_signal(signal.SIGINT)

    command = [PROGRAM, "gemma4-demo", "-o", str(tmp_path / "out")]
    screen = watched(command, 80, tmp_path, {"QATCONVERT_HOME": str(tmp_path)}, interrupt)
    assert screen.status == 130
    assert screen.lines[-1] == "qatconvert: interrupted"
    assert screen.written.rindex("\x1b[?25h") > screen.written.rindex(
        "\x1b[?25l"
    )  # the cursor is there again


@pytest.mark.parametrize(
    ("environment", "controls"),
    [
        ({"TERM": "dumb"}, False),
        ({"NO_COLOR": "1"}, True),
        ({"LC_ALL": "C"}, True),
        ({"PYTHONIOENCODING": "ascii"}, True),
    ],
)
def test_a_plain_terminal_is_taken_for_what_it_is(
    environment: dict[str, str], controls: bool, checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    model = str(checkpoint_factory("text"))
    screen = watched(
        [PROGRAM, model, "--no-validate", "-o", str(tmp_path / "out")], 80, tmp_path, environment
    )
    assert screen.status == 0
    assert ("\x1b" in screen.written) == controls
    assert "\x1b[3" not in screen.written or "NO_COLOR" not in environment
    assert "UnicodeEncodeError" not in screen.written
    if "PYTHONIOENCODING" in environment:
        assert screen.written.isascii()
