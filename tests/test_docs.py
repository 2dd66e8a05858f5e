"""Every command in README and docs runs, and prints what the page says.

In a ``console`` block, a line that begins with ``$ `` is a command, and lines that begin with ``> `` go on
with it; what follows is its output, in which ``...`` stands for anything. Blocks of one page run in order in
one directory; README's run in tests/test_walk.py. Every other block is run in some way, or ``NOT_RUN`` says
why it is not. ``python tests/test_docs.py`` writes the present ``--help`` texts, the tree of modules and
the table of sources and targets into the pages.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

if __name__ == "__main__":  # a script finds the folders of tests before the packages of the same names
    sys.path.insert(0, str(Path(__file__).parents[1]))

from converter.cli import group
from converter.pipeline.release.document import read_release
from support.forked import PROGRAM
from support.hub_server import HubServer
from support.pages import PAGES, README, ROOT, examples, matches
from support.stored_types import table

#: Pages whose commands take long.
SLOW = {"litert.md"}
ARCHITECTURE = ROOT / "docs" / "architecture.md"
_TREE = re.compile(r"(?<=^```tree\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"(?<=^## Sources and targets\n\n).*?\n(?=\n)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What begins a line of a block that someone would paste into a shell.
_PROGRAM = re.compile(r"^(\$ |qatconvert [a-z]|pip |python|make |git |\.venv/|[A-Z]+=)", re.MULTILINE)
#: Commands of ``sh`` blocks, and languages of blocks, that no test runs, and why.
NOT_RUN = {
    "qatconvert gemma4-e2b --target litert --android-assets app/src/main/assets": "downloads 10 GB; "
    "tests/targets/litert/devices/test_android.py does the same with the shipped checkpoint",
    **dict.fromkeys(
        (
            "qatconvert gemma4-e2b -t all -o out/e2b",
            "qatconvert publish out/e2b --repo OWNER/NAME --dry-run",
            "qatconvert publish out/e2b --repo OWNER/NAME --tag v1",
            "qatconvert verify OWNER/NAME@v1",
        ),
        "tests/converter/cli/test_publish.py runs them with a Hub on this machine and the shipped checkpoint",
    ),
    "pip install ai-edge-litert-sdk-qualcomm": "downloads a vendor's SDK, whose licence has to be accepted",
    "qatconvert gemma4-e2b --target litert --npu qualcomm:SM8750": "needs the vendor's SDK",
    "PYTHONPATH=.:tests .venv/bin/python -m fuzzing --format gguf --seconds 600 --seed 7": "takes ten "
    "minutes; tests/test_fuzzing.py runs a few cases",
    **dict.fromkeys(
        (
            "pip install 'torch==2.13.0' --index-url CPU_BUILDS",
            "pip install './qatconvert-0.1.0-py3-none-any.whl[llamacpp,reference]'",
            "pip install --no-deps --require-hashes -r requirements/all.lock",
            "pip install --no-deps ./qatconvert-0.1.0-py3-none-any.whl",
        ),
        "tests/distribution does the same in clean environments, from the index of this machine",
    ),
    **dict.fromkeys(
        (
            "pip install 'qatconvert[llamacpp,reference] @ git+URL'",
            "pipx install 'qatconvert[llamacpp,reference] @ git+URL'",
        ),
        "tests/distribution does the same without extras, from a clone of this repository",
    ),
    **dict.fromkeys(
        (
            "pipx install './qatconvert-0.1.0-py3-none-any.whl[llamacpp,reference]'",
            "uv tool install './qatconvert-0.1.0-py3-none-any.whl[llamacpp,reference]'",
            "uv tool install 'qatconvert[llamacpp,reference] @ git+URL'",
        ),
        "installs what the commands beside it install, by another program",
    ),
    "kotlin": "needs the Android SDK; the page says that it was not compiled",
}
_HELP = re.compile(r"(^\$ (qatconvert(?: [a-z]+)* --help)\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)


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


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if page != README
    ],
)
def test_the_examples_of_a_page_run_and_print_what_it_shows(page, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command, shown in examples(page.read_text(encoding="utf-8")):
        done = run(command, tmp_path)
        assert done.returncode == 0, f"$ {command}\n{done.stderr}"
        if shown:
            assert matches(shown, done.stdout), f"$ {command}\n{done.stdout}\n--- the page shows\n{shown}"


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Blocks of all pages in these languages ("" for none), each after its page's name."""
    found = [(page.name, *one) for page in PAGES for one in _BLOCK.findall(page.read_text("utf-8"))]
    return [(page, text) for page, language, text in found if language in languages]


def test_every_block_is_run_or_said_not_to_be():
    languages = {one for page in PAGES for one, _ in _BLOCK.findall(page.read_text("utf-8"))}
    # what this file, tests/test_walk.py and tests/test_troubleshooting.py run or read, and text
    assert languages - set(NOT_RUN) == {
        "",
        "console",
        "diff",
        "error",
        "json",
        "python",
        "sh",
        "toml",
        "tree",
    }
    commands = {line for _, text in blocks("sh") for line in text.splitlines() if line}
    assert commands == set(NOT_RUN) - languages
    for page, text in blocks(""):
        assert not _PROGRAM.search(text), f"{page} has a command in a block without a language:\n{text}"


def test_python_of_a_page_runs_beside_what_was_converted(demo_output, tmp_path):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "out").symlink_to(demo_output)
    shown = blocks("python")
    assert shown
    for page, program in shown:
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{page}\n{program}\n{done.stderr}"


def test_toml_of_a_page_is_a_release(tmp_path):
    (tmp_path / "my-checkpoint").symlink_to(ROOT / "converter" / "demo" / "gemma4-demo")
    whole, published = (text for _, text in blocks("toml"))  # the second goes on where the first ends
    (tmp_path / "release.toml").write_text(f"{whole}\n{published}", "utf-8")
    first, second = read_release(tmp_path / "release.toml").items
    assert (first.source.alias, first.source.revision) == ("gemma4-e2b", "0123456789abcdef" * 2 + "01234567")
    assert (second.name, second.targets, second.options) == (
        "mine",
        ("gguf",),
        {"gguf": {"off_lattice": "bf16"}},
    )
    assert second.destination is not None
    assert (second.destination["repo"], second.destination["tag"]) == ("owner/name", "v1")
    assert second.destination["fields"].quantized_by == "us"


def test_json_of_a_page_is_json():
    shown = blocks("json")
    assert shown
    for _, text in shown:
        json.loads(text)


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
QUICKLY = {"convert": "--dry-run", "doctor": "--no-validate", "validate": "--positions 16 --no-same-weights"}


@pytest.mark.parametrize("line", EXAMPLES)
def test_the_examples_of_every_help_can_be_pasted(line, demo_output, checkpoint_factory, tmp_path):
    """Where the files that they name are there: a conversion, a checkpoint, a repository, a token that may
    write."""
    shutil.copytree(demo_output, tmp_path / "out")
    (tmp_path / "my-checkpoint").symlink_to(checkpoint_factory("text"))
    (tmp_path / "release.toml").write_text('[[models]]\nmodel = "./my-checkpoint"\n')
    (gguf,) = (tmp_path / "out" / "gguf").glob("*.gguf")
    (tmp_path / "model.gguf").symlink_to(gguf)
    command, *_ = shlex.split(line, comments=True)[1:]
    known = group.list_commands(click.Context(group))
    quickly = QUICKLY.get(command if command in known else "convert", "")
    before, mark, comment = line.partition(" #")
    repositories = {"google/gemma-4-E2B-it-qat-q4_0-unquantized": checkpoint_factory("text")}
    with HubServer(repositories, writing=tmp_path) as server:
        environment = {**server.environment(tmp_path), "HOME": str(tmp_path), "SHELL": "/bin/bash"}
        if command == "publish":
            run("qatconvert gemma4-demo --output out --force", tmp_path, environment)
            environment["HF_TOKEN"], server.user = "hf_writer", "OWNER"
            server.writers.add("hf_writer")
        done = run(f"{before} {quickly}{mark}{comment}", tmp_path, environment)
    assert done.returncode in ((0, 3) if command == "validate" else (0,)), done.stderr


def test_commands_within_sentences_have_options_that_there_are():
    known = {}
    for command, shown in examples((ROOT / "docs" / "cli.md").read_text("utf-8")):
        if found := re.fullmatch(r"qatconvert (?:([a-z]+) )?--help", command):
            known[found[1]] = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", shown)) | {"--help"}
    count = 0
    for page in PAGES:
        for words in re.findall(r"`qatconvert ([^`]+)`", _BLOCK.sub("", page.read_text("utf-8"))):
            first = words.split()[0]
            command = first if first in known else None if first.startswith("-") else "convert"
            options = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", words))
            assert options <= known[command], f"{page.name}: qatconvert {words}"
            count += bool(options)
    assert count > 10


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tables_of_a_real_model_are_what_was_recorded():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "real_gemma.py"), "--recorded"],
        capture_output=True,
        text=True,
        check=True,
    )
    quality, caption, costs = done.stdout.strip().split("\n\n")
    assert f"\n{quality}\n\n{caption}\n" in README.read_text("utf-8")
    assert f"\n{costs}\n" in (ROOT / "docs" / "performance.md").read_text("utf-8")


def test_the_picture_is_drawn_from_what_was_recorded(tmp_path):
    script = ROOT / "benchmarks" / "pictures.py"
    subprocess.run([sys.executable, str(script), "--directory", str(tmp_path)], check=True)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (ROOT / "docs" / "pictures").iterdir()}
    for name in drawn:
        assert f"docs/pictures/{name}" in README.read_text("utf-8")


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


def test_readme_tells_how_each_target_holds_what_is_read():
    (shown,) = _TABLE.findall(README.read_text(encoding="utf-8"))
    assert shown == table()


def write_help() -> None:
    """Put the present help texts, tree and table into the pages."""
    text = README.read_text(encoding="utf-8")
    README.write_text(_TABLE.sub(lambda found: table(), text), encoding="utf-8")
    text = ARCHITECTURE.read_text(encoding="utf-8")
    ARCHITECTURE.write_text(_TREE.sub(lambda found: tree(), text), encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = _HELP.sub(lambda found: found[1] + run(shlex.join(found[2].split()), ROOT).stdout, text)
        page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    write_help()
