"""What happens inside, as ``-v`` and ``--log-file`` tell it."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.cli.logs import logged, redacted
from converter.errors import DestinationError
from support.stages import without_stages

Run = Callable[..., subprocess.CompletedProcess[str]]
ErrorOf = Callable[..., str]
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING) (qatconvert\.[\w.]+|py\.warnings): "
)
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


def test_a_log_tells_what_each_room_did(qatconvert: Run, checkpoint_factory, tmp_path: Path) -> None:
    model, log = checkpoint_factory("text"), tmp_path / "log"
    done = qatconvert(model, "-o", "out", "--positions", 64, "--log-file", log)
    assert done.returncode in (0, 3), done.stderr
    assert done.stderr == ""
    told = log.read_text()
    assert all(LINE.match(line) for line in told.splitlines())
    for pattern in (
        r"qatconvert\.command: qatconvert \d.*--log-file",
        r"packages: .*numpy \d",
        rf"converter\.pipeline\.opening: {model}: gemma4 bf16-lattice, \d+ weights",
        r"converter\.pipeline\.conversion: gguf: .*bits per weight; options .*off_lattice",
        r"converter\.system\.child: process \d+: \S+ -P -m validation\.reference\.process",
        r"validation\.reference\.process \(\d+\): done after [\d.]+ s; its peak memory so far \d+ MB",
        r"stages: writing gguf: done after [\d.]+ s; peak memory so far \d+ MB",
        r"targets\.writing: .*\.gguf: written by \d+ threads",
        r"validation\.running: .*: run by llama\.cpp",
        r"validation\.proof: gguf: gate exact_fraction passed: 1\.0",
        r"published as .*/out",
    ):
        assert re.search(pattern, told), (pattern, told)
    assert not list((tmp_path / "work" / "out").rglob("*log*"))


@pytest.mark.parametrize(("flag", "detailed"), [("-v", False), ("-vv", True)])
def test_verbose_tells_on_standard_error(
    flag: str, detailed: bool, qatconvert: Run, checkpoint_factory
) -> None:
    quiet = qatconvert(checkpoint_factory("text"), "--no-validate", "-o", "first")
    done = qatconvert(checkpoint_factory("text"), "--no-validate", "-o", "second", flag)
    assert done.returncode == 0
    assert done.stdout == quiet.stdout.replace("first", "second")
    assert re.search(
        r"^\d\d:\d\d:\d\d qatconvert\.stages: writing gguf: done after", done.stderr, re.MULTILINE
    )
    assert ("packages: " in done.stderr) == detailed


def test_a_second_log_goes_behind_the_first(qatconvert: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(2):
        assert qatconvert("inspect", "gemma4-demo", "-t", "gguf", "--log-file", log).returncode == 0
    assert log.read_text().count("qatconvert.command: qatconvert ") == 2


@pytest.mark.parametrize("words", [("validate", "--reference", "gemma4-demo"), ("verify",)])
def test_other_commands_have_a_log_too(
    words: tuple[str, ...], demo_output: Path, qatconvert: Run, tmp_path: Path
) -> None:
    command, *options = words
    place = demo_output / "gguf" if command == "validate" else demo_output
    extra = ("--positions", 64, "--no-same-weights") if command == "validate" else ()
    done = qatconvert(command, place, *options, *extra, "--log-file", "log")
    assert done.returncode in (0, 3), done.stderr
    assert "stages: " in (tmp_path / "work" / "log").read_text()


def test_the_log_of_a_failure_has_the_traceback(qatconvert: Run, error_of: ErrorOf, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    log = tmp_path / "log"
    line = error_of(qatconvert(tmp_path / "model", "--log-file", log))
    told = log.read_text()
    assert "Traceback (most recent call last):" in told
    assert line.removeprefix("qatconvert: ") in told


def test_the_log_of_an_interrupted_command_is_there(checkpoint_factory, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = str(Path(sys.executable).with_name("qatconvert"))
    process = subprocess.Popen(
        [program, str(checkpoint_factory("text")), "-o", str(tmp_path / "out"), "--log-file", str(log)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "QATCONVERT_HOME": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not log.exists() or "child: process " not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert without_stages(told).strip() == "qatconvert: interrupted"
    assert "Interrupted: SIGINT" in log.read_text()


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("nowhere/log", "no log can be written there: No such file or directory"),
        ("out/log", "is in the output directory"),
        ("out", "is in the output directory"),
        ("notes.txt", "is no log"),
    ],
)
def test_an_unusable_log_is_one_error_before_any_work(
    file: str, why: str, qatconvert: Run, error_of: ErrorOf, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    done = qatconvert("gemma4-demo", "-o", "out", "--log-file", file)
    assert why in error_of(done)
    assert [path.name for path in work.iterdir()] == ["notes.txt"]
    assert (work / "notes.txt").read_text() == "mine"


def test_quiet_and_verbose_contradict_each_other(qatconvert: Run, error_of: ErrorOf) -> None:
    assert "contradict each other" in error_of(qatconvert("inspect", "gemma4-demo", "-q", "-v"), 2)


def test_no_secret_reaches_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct horse")
    text = f"{TOKEN} of https://me:word@hub/x?Signature=abc&y=1 with correct horse"
    assert redacted(text) == "*** of https://***@hub/x?*** with ***"
    assert redacted("a plain line: /tmp/a?b") == "a plain line: /tmp/a?b"


def test_a_token_reaches_neither_log_nor_terminal(qatconvert: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = (f"owner/{TOKEN}", "--offline", "-vv", "--log-file", log)
    done = qatconvert(*words, environment={"HF_TOKEN": "secret-of-mine"})
    assert done.returncode == 1
    assert "***" in log.read_text()
    logged_lines = "".join(line for line in done.stderr.splitlines() if not line.startswith("qatconvert: "))
    for text in (log.read_text(), logged_lines):
        assert TOKEN not in text
        assert "secret-of-mine" not in text


def test_a_log_is_written_only_while_the_block_runs_and_has_warnings(tmp_path: Path) -> None:
    log, logger = tmp_path / "log", logging.getLogger("qatconvert.somewhere")
    logger.info("before")
    with logged(0, log, None):
        logger.debug("a name \x1b]that steers\x07")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old call", DeprecationWarning, stacklevel=1)
    logger.info("after")
    told = log.read_text()
    assert r"DEBUG qatconvert.somewhere: a name \x1b]that steers\x07" in told
    assert "DeprecationWarning: old call" in told
    assert not {"before", "after"} & set(told.split())


def test_what_a_child_prints_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.system.child import run_worker

    (tmp_path / "chatty.py").write_text(
        "import sys\nfrom converter.system.child import serve\n\n"
        "def handle(request, progress):\n    print('a word', file=sys.stderr)\n    return {}\n\n"
        "serve(handle)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{Path.cwd()}:{tmp_path}")
    with logged(0, tmp_path / "log", None):
        run_worker("chatty", {}, lambda done, total: None, what="here")
    assert re.search(r"chatty \(\d+\) printed: a word", (tmp_path / "log").read_text())


def test_a_log_in_the_way_of_what_is_published_is_refused_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with (
        pytest.raises(DestinationError, match="is in the output directory"),
        logged(0, tmp_path / "link" / "log", tmp_path / "out"),
    ):
        pass
