"""Commands that try artifacts: each is run as it is printed, whatever the directory is called."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.generate import write_checkpoint
from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from targets.target import find_target
from targets.trying import quoted, try_lines

#: Names that a shell would take for something else.
HOSTILE = ["a b", "it's", '"$HOME"', "-x", "x;exit 3", "*", "\x1b]title\x07", "zwölf", "tab\there"]


def run(line: str, cwd: Path) -> str:
    """What bash prints of a line with the programs of this environment."""
    programs = [Path(sys.executable).parent, distribution("litert-lm").locate_file("../../../bin")]
    path = os.pathsep.join(map(str, [*programs, os.environ["PATH"]]))
    return subprocess.check_output(
        ["bash", "-c", line], text=True, cwd=cwd, env={**os.environ, "PATH": path}, timeout=120
    )


def written(target: str, model: Path, output: Path) -> tuple[str, ...]:
    """The commands for what a target writes of ``model`` below ``output``."""
    found, checkpoint = find_target(target), open_checkpoint(model)
    plan = found.plan(checkpoint, "demo", {})
    output.mkdir(parents=True)
    found.write(checkpoint, plan, output)
    return tuple(try_lines(found, plan, output))


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1))
def test_a_quoted_path_is_one_printable_word(text: str) -> None:
    path = Path(text)
    assert quoted(path).isprintable()
    if text.isprintable():
        (word,) = shlex.split(quoted(path))
        assert Path(word) == path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_shell_finds_what_a_quoted_path_names(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("found")
    assert run(f"cat {quoted(Path(name) / 'file')}", tmp_path) == "found"


def test_the_command_for_onnx_answers(tmp_path: Path) -> None:
    (line,) = written("onnx", DEMO, tmp_path / "it's a $place")
    assert "What are lists?" in run(line, tmp_path)


def test_the_command_for_onnx_without_a_chat_template_goes_on(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", "text", "max7")
    (model / "chat_template.jinja").unlink()
    (line,) = written("onnx", model, tmp_path / "out")
    assert "apply_chat_template" not in line
    assert run(line, tmp_path)


def test_the_commands_for_gguf_name_the_model_and_the_modelfile(tmp_path: Path) -> None:
    output = tmp_path / "a b"
    llama, ollama = written("gguf", DEMO, output)
    assert shlex.split(llama) == ["llama-cli", "-m", str(output / "gguf" / "demo-q4_0.gguf")]
    words = shlex.split(ollama)
    assert words == [
        *("ollama", "create", "demo", "-f", str(output / "ollama" / "Modelfile")),
        *("&&", "ollama", "run", "demo"),
    ]
    for path in (words[4], shlex.split(llama)[2]):
        assert Path(path).is_file()


def test_ollama_is_given_a_name_that_it_takes(tmp_path: Path) -> None:
    target, checkpoint = find_target("gguf"), open_checkpoint(DEMO)
    plan = target.plan(checkpoint, ".my model+", {})
    _, ollama = try_lines(target, plan, tmp_path)
    assert shlex.split(ollama)[2] == "my-model"


@pytest.mark.slow
def test_the_command_for_litert_answers_and_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "it's a $place"
    (line,) = written("litert", DEMO, output)
    before = sorted(output.rglob("*"))
    assert run(line, tmp_path).strip()
    assert sorted(output.rglob("*")) == before
