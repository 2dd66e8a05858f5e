"""The scratch directory and its lock: one run at a time, and nothing of anybody else's is used or emptied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from converter.errors import DestinationError
from converter.system.output import scratch_directory
from support.directories import listing

RUN = """
import sys
from pathlib import Path
from converter.system.output import scratch_directory
with scratch_directory(Path(sys.argv[1]), "conversion of gemma4-demo") as scratch:
    (scratch / "half").write_text("x")
    print("ready", flush=True)
    sys.stdin.read()
"""


class Run:
    """A process that holds the scratch directory of an output until it is killed or let go."""

    def __init__(self, output: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(output)], stdin=pipe, stdout=pipe, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)

    def let_go(self) -> None:
        self.process.communicate("", timeout=10)
        assert self.process.returncode == 0


def refusal(output: Path) -> str:
    with pytest.raises(DestinationError) as caught, scratch_directory(output):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("exists", [False, True])
def test_a_second_run_is_told_who_holds_the_output_and_since_when(tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    run = Run(out)
    told = refusal(out)
    assert (
        f"{out}: another run is writing there (process {run.process.pid}, conversion of gemma4-demo, " in told
    )
    assert "since 20" in told
    assert told.endswith("wait for it to end")
    run.let_go()
    assert listing(tmp_path) == (["out"] if exists else [])


def test_a_run_that_began_before_the_output_was_there_still_holds_it(tmp_path):
    out = tmp_path / "out"
    run = Run(out)
    out.mkdir()
    assert f"process {run.process.pid}" in refusal(out)
    run.let_go()
    with scratch_directory(out) as scratch:
        assert scratch == out / ".qatconvert.partial"


@pytest.mark.parametrize("appears", [False, True])
def test_what_a_killed_run_left_goes_with_its_lock(tmp_path, appears):
    out = tmp_path / "out"
    Run(out).kill()
    assert listing(tmp_path) == [".out.lock", ".out.partial", ".out.partial/half"]
    if appears:
        out.mkdir()
    with scratch_directory(out) as scratch:
        assert list(scratch.iterdir()) == []
    assert listing(tmp_path) == (["out"] if appears else [])


@pytest.mark.parametrize("place", [".out.partial", "out/.qatconvert.partial"])
def test_a_directory_with_files_that_no_run_made_is_never_emptied(tmp_path, place):
    directory = tmp_path / place
    directory.mkdir(parents=True)
    (directory / "precious").write_text("p")
    told = refusal(tmp_path / "out")
    assert f"{directory} holds files and was not made by qatconvert" in told
    assert (directory / "precious").read_text() == "p"


def test_a_users_directory_in_place_of_a_killed_runs_is_never_emptied(tmp_path):
    out = tmp_path / "out"
    Run(out).kill()
    (tmp_path / ".out.partial").rename(tmp_path / "kept")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "precious").write_text("p")
    assert "was not made by qatconvert" in refusal(out)
    assert (tmp_path / ".out.partial" / "precious").read_text() == "p"


def test_an_empty_directory_of_ours_is_in_nobodys_way(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    with scratch_directory(tmp_path / "out") as scratch:
        assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", [".out.partial", ".out.lock"])
def test_a_link_is_never_followed(tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("p")
    for leads_to in (elsewhere, elsewhere / "precious", elsewhere / "absent"):
        (tmp_path / name).symlink_to(leads_to)
        assert f"{tmp_path / name}" in refusal(tmp_path / "out")
        (tmp_path / name).unlink()
        assert listing(elsewhere) == ["precious"]
        assert (elsewhere / "precious").read_text() == "p"


@pytest.mark.parametrize("kind", ["directory", "pipe", "second name", "another user's"])
def test_a_lock_that_is_none_is_refused_and_left_alone(tmp_path, kind):
    lock, mine = tmp_path / ".out.lock", tmp_path / "mine"
    mine.write_text("m" * 5000)
    if kind == "directory":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    elif kind == "second name":
        lock.hardlink_to(mine)
    elif os.geteuid() == 0:
        lock.write_text(json.dumps({"process": 1, "work": "x", "directory": 2}))
        os.chown(lock, 12345, 12345)
    else:
        pytest.skip("only root can give a file to another user")
    before = lock.lstat()
    assert f"{lock}" in refusal(tmp_path / "out")
    assert lock.lstat() == before
    assert mine.read_text() == "m" * 5000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_another_users_directory_is_refused_even_if_it_is_empty(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    os.chown(tmp_path / ".out.partial", 12345, 12345)
    assert "is user 12345's" in refusal(tmp_path / "out")
    assert (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 1024, '{"process": "x", "work": 3, "directory": "y"}', "[1]"]
)
def test_a_lock_that_says_nothing_is_taken(tmp_path, content):
    (tmp_path / ".out.lock").write_text(content)
    with scratch_directory(tmp_path / "out") as scratch:
        assert list(scratch.iterdir()) == []
    assert listing(tmp_path) == []


def test_what_took_the_place_of_the_scratch_directory_meanwhile_is_not_removed(tmp_path):
    with scratch_directory(tmp_path / "out") as scratch:
        scratch.rename(tmp_path / "moved")
        scratch.mkdir()
        (scratch / "precious").write_text("p")
    assert (scratch / "precious").read_text() == "p"


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from converter.system import interruption, scratch

interruption.install()
output = Path(sys.argv[1])
steps = 0

def trace(frame, event, argument):
    global steps
    if frame.f_code.co_filename != scratch.__file__:
        return None
    if event == "line":
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGTERM)  # SIGINT is ignored in the background
    return trace

at, interrupted, left = 0, 0, []
while steps >= at:
    at, steps = at + 1, 0
    interruption._handler._raised = float("-inf")  # as if minutes had passed
    sys.settrace(trace)
    try:
        with scratch.scratch_directory(output) as directory:
            (directory / "half").write_text("x")
    except KeyboardInterrupt:
        interrupted += 1
        sys.settrace(None)
        interruption.finish()
        for number in interruption.STATUSES:
            signal.signal(number, interruption._handler)
    sys.settrace(None)
    if found := sorted(os.listdir(output.parent)):
        left.append((at, found))
        for name in found:
            path = output.parent / name
            path.unlink() if path.is_file() else __import__("shutil").rmtree(path)
print(at, interrupted, left)
"""


def test_a_signal_at_any_line_leaves_neither_lock_nor_directory(tmp_path):
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tried, interrupted, left = done.stdout.split(maxsplit=2)
    assert int(interrupted) == int(tried) - 1 > 40
    assert left.strip() == "[]"
