"""Odd places to read from and to write to: nothing of the user's is lost, and no name steers a terminal."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.directories import listing

BEL = "\x1b]0;title\x07"
PROGRAM = str(Path(sys.executable).with_name("qatconvert"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The directory in which the command runs."""
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


# what is read

NAMES = ("with 'space\"", "new\nline", "-dash", f"{BEL}\x9b31m", "\udcff\udcfe", "<b>$(x)&", "x" * 255)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_any_name_is_converted_and_its_reports_are_printable(qatconvert, model, work, name):
    model.rename(work / name)
    done = qatconvert(f"./{name}", "--no-validate", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (out,) = work.glob("*-qatconvert")
    assert out.name.isascii()
    assert json.loads(done.stdout)["source"]["path"].isprintable()
    for file in ("manifest.json", "report.json", "report.md", "ollama/Modelfile"):
        assert all(line.isprintable() for line in (out / file).read_text("utf-8").split("\n"))
    assert "<b>$" not in (out / "report.html").read_text("utf-8")


NO_MODELS = ("", "x" * 5000, "x" * 300, BEL * 300, "a\nb/c", "\udcff/\udcfe", "./absent", "~nobody/x")


@pytest.mark.parametrize("name", NO_MODELS)
def test_a_model_that_is_none_is_wrong_usage(refused, name):
    refused(name, status=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frobnicate"], "No such option '--frobnicate'"),
        (["--target", BEL], r"unknown target '\x1b]0;title\x07'; known: gguf"),
        (["--off-lattice", "q2"], "'q2' is not one of 'q8_0'"),
        (["--split-max-size", "0"], "split size '0' is not a number with K, M or G"),
        (["--split-max-size", ""], "split size '' is not a number with K, M or G"),
        (["--split-max-size", "2T"], "split size '2T' is not a number with K, M or G"),
        (["--positions", "1"], "1 is not in the range x>=2"),
        (["--max-memory", "0"], "0.0 is not in the range x>0"),
        (["--max-memory", "nan"], "nan is no amount of memory"),
        (["--num-ctx", "0"], "0 is not in the range x>=1"),
        (["--system", "\udcff"], "SYSTEM cannot hold the character U+DCFF"),
        (["--license", "/absent"], "'/absent' does not exist"),
        (["--text", "/"], "is a directory"),
        (["-o", ""], "the path is empty"),
    ],
)
def test_an_option_that_means_nothing_is_one_line_and_status_2(refused, model, options, message):
    assert message in refused(model, "--validate", *options, status=2)


@pytest.mark.parametrize(
    ("content", "message"), [(b" \n", "holds no text"), (b"\x00\xff", "not UTF-8 at byte 1")]
)
def test_an_evaluation_text_that_is_none(refused, model, tmp_path, content, message):
    (tmp_path / "text").write_bytes(content)
    assert message in refused(model, "--validate", "--text", tmp_path / "text", status=2)


def test_a_text_of_the_checkpoints_own_that_is_none(refused, model):
    (model / "evaluation_text.json").write_text('{"passages": [{"kind": "\\u001b[2J", "text": "a"}]}')
    told = refused(model, "--validate")
    assert "evaluation_text.json: passages[0].kind is no name of at most 40 printable characters" in told


def test_more_positions_than_the_text_has(refused, model, tmp_path):
    (tmp_path / "text").write_text("A short text.")
    told = refused(model, "--validate", "--text", tmp_path / "text", "--positions", 10**18, status=2)
    assert "tokens, too few for 1000000000000000000 positions" in told


# what is written


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file", "file is a file"),
        ("file/out", "file is a file"),
        ("pipe", "pipe is a file"),
        ("nowhere", "nowhere is a link to nowhere"),
        ("loop", "loop is a link to nowhere"),
        ("absent/../out", "absent/.. does not exist"),
        ("x" * 300, "File name too long"),
        ("/proc/out", "/proc"),
        ("locked", ".locked.partial: File exists"),
    ],
)
def test_a_destination_that_cannot_be_one(qatconvert, error_of, model, work, output, message):
    (work / "file").write_text("mine")
    os.mkfifo(work / "pipe")
    (work / "nowhere").symlink_to("absent")
    (work / "loop").symlink_to("loop")
    (work / ".locked.partial").write_text("mine")
    before = listing(work)
    done = qatconvert(model, "--no-validate", "--force", "-o", output, seconds=60)
    assert message in error_of(done)
    assert listing(work) == before


@pytest.mark.parametrize("output", [".", "model", "model/../model", "to-model"])
def test_the_source_is_never_replaced(qatconvert, error_of, model, work, output):
    """Not even where a manifest claims that it came from an earlier conversion."""
    model.rename(work / "model")
    (work / "to-model").symlink_to("model")
    entries = [{"path": name} for name in ("model.safetensors", "model/model.safetensors", "config.json")]
    for directory in (work, work / "model"):
        (directory / "manifest.json").write_text(json.dumps({"artifacts": entries}))
    before = listing(work)
    done = qatconvert("./model", "--no-validate", "--force", "-o", output)
    assert "holds the checkpoint itself" in error_of(done)
    assert listing(work) == before


@pytest.mark.parametrize("output", ["model/out", "link", "\udcff", f"{BEL}\n"])
def test_a_destination_may_have_any_name_and_lie_in_the_source(qatconvert, model, work, output):
    (work / "real").mkdir()
    model.rename(work / "model")
    (work / "link").symlink_to("real")
    source = listing(work / "model")
    done = qatconvert("./model", "--no-validate", "-o", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    assert (work / output / "manifest.json").is_file()
    assert set(source) <= set(listing(work / "model"))


@pytest.mark.parametrize("name", ["gguf", "manifest.json/mine", "report.md/mine"])
def test_what_is_in_the_way_stays_and_so_does_the_earlier_conversion(qatconvert, error_of, model, work, name):
    out = work / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    (out / "old").write_text("old")
    if not name.startswith("manifest"):
        (out / "manifest.json").write_text(json.dumps({"artifacts": [{"path": "old"}]}))
    before = listing(out)
    assert "in the way" in error_of(qatconvert(model, "--no-validate", "--force", "-o", out))
    assert listing(out) == before


@pytest.mark.parametrize("output", ["", ".", "pipe", "x" * 300, "file/Modelfile"])
def test_a_modelfile_that_cannot_be_written(qatconvert, error_of, model, work, output):
    (work / "file").write_text("mine")
    os.mkfifo(work / "pipe")
    done = qatconvert("modelfile", model, "-o", output, "--force", seconds=60)
    error_of(done, 2 if output in ("", ".") else 1)
    assert listing(work) == ["file", "pipe"]
    assert (work / "pipe").is_fifo()


# terminals


def on_a_terminal(*words: str) -> str:
    """Everything that a command prints where standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([PROGRAM, *words], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    printed = b""
    try:
        while part := os.read(ours, 1 << 16):
            printed += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    process.wait(60)
    return printed.decode()


def test_no_name_reaches_a_terminal_as_a_command(checkpoint_factory, tmp_path):
    name = f"{BEL}\x9b31m\u202e"
    model = str(shutil.copytree(checkpoint_factory("text"), tmp_path / name))
    out = str(tmp_path / f"out{name}")
    converted = on_a_terminal(model, "--no-validate", "-q", "-o", out)
    assert "written to" in converted
    for printed in (
        converted,
        on_a_terminal(model, "--no-validate", "-q", "-o", out),
        on_a_terminal("inspect", model, "-q", "--json"),
        on_a_terminal("validate", out, "--reference", name),
        on_a_terminal(name, f"--{name}"),
    ):
        assert "title" in printed
        assert "\x1b]" not in printed
        assert not {"\x9b", "\u202e"} & set(printed)
