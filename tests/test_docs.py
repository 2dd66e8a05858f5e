"""Every command in README and docs runs, and prints what the page says.

In a ``console`` block, a line that begins with ``$ `` is a command, and lines that begin with ``> `` go on
with it; what follows is its output, in which ``...`` stands for anything. Blocks of one page run in order in
one directory. ``python tests/test_docs.py`` writes the present ``--help`` texts and the tree of modules into
the pages.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import click
import pytest

if __name__ == "__main__":  # a script finds the folders of tests before the packages of the same names
    sys.path.insert(0, str(Path(__file__).parents[1]))

from converter.cli import group
from support.forked import PROGRAM
from support.hub_server import HubServer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Pages whose commands take long.
SLOW = {"litert.md"}
ARCHITECTURE = ROOT / "docs" / "architecture.md"
_TREE = re.compile(r"(?<=^```tree\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HELP = re.compile(r"(^\$ (qatconvert(?: [a-z]+)* --help)\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)


def examples(page: str) -> list[tuple[str, str]]:
    """Commands of a page with the output that it shows, in order."""
    found = []
    for block in _BLOCK.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            more = list(takewhile(lambda line: line.startswith("> "), lines[1:]))
            command = "\n".join([lines[0], *(line[2:] for line in more)])
            found.append((command, "\n".join(lines[1 + len(more) :]).rstrip()))
    return found


def run(
    command: str, directory: Path, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run a shell command with this environment's programs first; 80 columns, no colours."""
    binaries = os.pathsep.join([str(Path(PROGRAM).parent), str(Path(sys.executable).parent)])
    variables = {
        **environment,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "QATCONVERT_HOME": str(directory / ".home"),
        "NO_COLOR": "1",
        "COLUMNS": "80",
    }
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=directory, env=variables, timeout=900
    )


def matches(shown: str, printed: str) -> bool:
    """Whether ``printed`` is what the page shows, ``...`` standing for anything; trailing blanks apart."""

    def stripped(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    pattern = ".*?".join(re.escape(part) for part in re.split(r"\.\.\.", stripped(shown)))
    return re.fullmatch(pattern, stripped(printed), re.DOTALL) is not None


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
    ],
)
def test_the_examples_of_a_page_run_and_print_what_it_shows(page, tmp_path):
    for command, shown in examples(page.read_text(encoding="utf-8")):
        if command.startswith("make "):
            continue  # the two commands that set this environment up
        done = run(command, tmp_path)
        assert done.returncode == 0, f"$ {command}\n{done.stderr}"
        if shown:
            assert matches(shown, done.stdout), f"$ {command}\n{done.stdout}\n--- the page shows\n{shown}"


@pytest.mark.parametrize("command", group.list_commands(click.Context(group)))
def test_the_help_of_every_command_is_in_the_docs(command):
    shown = [line for page in PAGES for line, _ in examples(page.read_text(encoding="utf-8"))]
    assert f"qatconvert {command} --help" in shown


def _help_of(command: str) -> str:
    context = click.Context(group, info_name="qatconvert")
    if not command:
        return group.get_help(context)
    _, found, _ = group.resolve_command(context, [command])
    assert found is not None
    return found.get_help(click.Context(found, context, command))


def pasted(help_text: str) -> list[str]:
    """The examples of a help, as somebody pastes them."""
    return re.findall(r"^  (qatconvert .*)$", help_text, re.MULTILINE)


EXAMPLES = [
    pytest.param(line, id=line.removeprefix("qatconvert "))
    for line in dict.fromkeys(
        line
        for command in ["", *group.list_commands(click.Context(group))]
        for line in pasted(_help_of(command))
    )
]
#: What makes an example quick where it would measure something.
QUICKLY = {"convert": "--dry-run", "validate": "--positions 16 --no-same-weights"}


@pytest.mark.parametrize("line", EXAMPLES)
def test_the_examples_of_every_help_can_be_pasted(line, demo_output, checkpoint_factory, tmp_path):
    """Where the files that they name are there: a conversion, a checkpoint, a repository."""
    shutil.copytree(demo_output, tmp_path / "out")
    (tmp_path / "my-checkpoint").symlink_to(checkpoint_factory("text"))
    (gguf,) = (tmp_path / "out" / "gguf").glob("*.gguf")
    (tmp_path / "model.gguf").symlink_to(gguf)
    command, *_ = shlex.split(line, comments=True)[1:]
    known = group.list_commands(click.Context(group))
    quickly = QUICKLY.get(command if command in known else "convert", "")
    before, mark, comment = line.partition(" #")
    with HubServer({"google/gemma-4-E2B-it-qat-q4_0-unquantized": checkpoint_factory("text")}) as server:
        environment = {**server.environment(tmp_path), "HOME": str(tmp_path), "SHELL": "/bin/bash"}
        done = run(f"{before} {quickly}{mark}{comment}", tmp_path, environment)
    assert done.returncode in ((0, 3) if command == "validate" else (0,)), done.stderr


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def additions(page: str) -> list[tuple[str, str]]:
    """Files that the ``diff`` blocks of a page name, each with lines in a row that it is shown to have."""
    found = []
    for block in re.findall(r"^```diff\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        file, *hunks = block.split("@@\n")
        for hunk in hunks:
            lines = "".join(line.removeprefix("+") for line in hunk.splitlines(keepends=True))
            found.append((file.removeprefix("+++ ").strip(), lines))
    return found


def test_what_is_shown_of_files_is_in_them():
    shown = additions((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    assert len({file for file, _ in shown}) > 5
    for file, lines in shown:
        assert lines in (ROOT / file).read_text(encoding="utf-8"), f"{file}:\n{lines}"


def tree() -> str:
    """Every module by its room, as the page shows them."""
    rooms: dict[str, list[str]] = {}
    for package in ("converter", "targets", "validation"):
        for path in sorted((ROOT / package).rglob("*.py")):
            modules = rooms.setdefault(f"{path.parent.relative_to(ROOT).as_posix()}/", [])
            if path.stem != "__init__":
                modules.append(path.stem)
    lines = []
    for room, modules in rooms.items():
        indent = "    " * (room.count("/") - 1)
        head = f"{indent}{room.split('/')[-2]}/"
        wrapped = textwrap.wrap(" ".join(modules), 88, break_on_hyphens=False) or [""]
        lines += [f"{head if not number else '':<22}{line}".rstrip() for number, line in enumerate(wrapped)]
    return "\n".join(lines) + "\n"


def test_the_tree_has_every_module_in_its_room():
    (shown,) = _TREE.findall(ARCHITECTURE.read_text(encoding="utf-8"))
    assert shown == tree()


def write_help() -> None:
    """Put the present help texts and the present tree into the pages."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    ARCHITECTURE.write_text(_TREE.sub(lambda found: tree(), text), encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = _HELP.sub(lambda found: found[1] + run(shlex.join(found[2].split()), ROOT).stdout, text)
        page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    write_help()
