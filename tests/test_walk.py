"""The walk of a new user through README, in a clean environment.

The commands of README are one script, in its order. bash runs it in a copy of what a clone holds, with a home
that has nothing, no packages but those that the script installs, and a Hub on this machine that has a
checkpoint under the name of Google's. After every command the walk holds what README promises of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.hub_server import HubServer
from support.pages import README, ROOT, examples, matches

#: What README's first command on a real model downloads.
REPO = "google/gemma-4-E2B-it-qat-q4_0-unquantized"
CLONE = ("converter", "targets", "validation", "pyproject.toml", "README.md", "LICENSE")
#: What a divergence may differ by from README's on another processor, as a share. torch in narrower vectors
#: makes 2e-8 of it; llama.cpp could not be tried in others.
SHARE = 0.05
#: Settings of whoever runs the tests that a new user has not; proxies and pip's sources stay.
FOREIGN = ("PYTHON", "VIRTUAL_ENV", "QATCONVERT_")


@dataclass(frozen=True)
class Step:
    """A command of README, what README shows of its output, and what came of it."""

    command: str
    shown: str
    status: int
    output: str
    errors: str


def script(commands: list[str]) -> str:
    """Commands for one shell, each with its output, its errors and its status in files."""
    steps = (
        f"{{\n{command}\n}} > ../{number}.output 2> ../{number}.errors\necho $? > ../{number}.status\n"
        for number, command in enumerate(commands)
    )
    return "".join(steps)


def clone(directory: Path) -> Path:
    """What a clone holds of what is installed."""
    directory.mkdir()
    for name in CLONE:
        source, target = ROOT / name, directory / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return directory


def environment(server: HubServer, folder: Path) -> dict[str, str]:
    """That of a new user with this Python and this machine's way to packages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    own = server.environment(folder)
    constraints = " ".join(
        filter(None, [os.environ.get("PIP_CONSTRAINT"), str(ROOT / "converter" / "constraints.txt")])
    )
    return {name: value for name, value in kept.items() if not name.startswith("HF_")} | {
        "PATH": os.pathsep.join([str(Path(sys.base_prefix) / "bin"), "/usr/bin", "/bin"]),
        "HOME": str(folder / "home"),
        "HF_ENDPOINT": own["HF_ENDPOINT"],
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "COLUMNS": "80",
        # the versions that the tests run, and no time for modules that nothing imports
        "PIP_CONSTRAINT": constraints,
        "PIP_NO_COMPILE": "1",
    }


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, checkpoint_factory) -> Iterator[tuple[Path, list[Step]]]:
    """The directory in which README was followed, and its steps."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "home").mkdir()
    place = clone(folder / "clone")
    told = examples(README.read_text("utf-8"))
    (folder / "walk.sh").write_text(script([command for command, _ in told]), "utf-8")
    with HubServer({REPO: checkpoint_factory("e2b")}) as server:
        subprocess.run(
            ["bash", "../walk.sh"], cwd=place, env=environment(server, folder), check=True, timeout=900
        )
    yield (
        place,
        [
            Step(
                command,
                shown,
                int((folder / f"{number}.status").read_text()),
                (folder / f"{number}.output").read_text("utf-8"),
                (folder / f"{number}.errors").read_text("utf-8"),
            )
            for number, (command, shown) in enumerate(told)
        ],
    )
    shutil.rmtree(place / "qat", ignore_errors=True)


def step(steps: list[Step], beginning: str) -> Step:
    (found,) = (one for one in steps if one.command.startswith(beginning))
    return found


@pytest.mark.slow
def test_every_command_of_readme_ends_well_and_prints_what_readme_shows(walk):
    _, steps = walk
    for one in steps:
        assert one.status == 0, f"$ {one.command}\n{one.output}\n{one.errors}"
        assert "Traceback" not in one.errors + one.output, one.command
        if one.shown:
            shown = matches(one.shown, one.output, SHARE)
            assert shown, f"$ {one.command}\n{one.output}\n--- README\n{one.shown}"


@pytest.mark.slow
def test_what_was_installed_is_the_wheel_of_the_clone(walk):
    place, steps = walk
    python = place / "qat" / "bin" / "python"
    told = subprocess.run(
        [
            python,
            "-P",
            "-c",
            "import converter, importlib.metadata as m; from importlib.util import find_spec as f; "
            "print(converter.__file__, m.version('torch'), f('onnx'), f('litert_torch'))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(place / "qat" / "lib") in told.stdout
    assert told.stdout.endswith(" None None\n")
    assert (place / "qatconvert-0.1.0-py3-none-any.whl").exists()
    assert step(steps, "pip install").output.rstrip().splitlines()[-1].startswith("Successfully installed")


@pytest.mark.slow
def test_the_first_command_on_a_real_model_downloads_converts_and_proves_it(walk):
    place, steps = walk
    one = step(steps, "qatconvert gemma4-e2b")
    assert "downloading gemma4-e2b" in one.errors
    # the only warning is what README announces: the encoders are left out
    warnings = [line for line in one.errors.splitlines() if "warning" in line]
    assert len(warnings) == 1, warnings
    assert "left out: vision encoder (" in warnings[0]
    assert "audio encoder (" in warnings[0]
    out = place / "gemma4-e2b-qatconvert"
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["source"]["repo"] == REPO
    assert report["targets"]["gguf"]["passed"]
    assert report["targets"]["gguf"]["weights"]["exact_fraction"] == 1
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {
        "gguf/gemma4-e2b-q4_0.gguf",
        "ollama/Modelfile",
        "manifest.json",
        "report.html",
        "report.json",
        "report.md",
    }


@pytest.mark.slow
def test_naive_rounding_of_the_shipped_checkpoint_loses_its_blocks(walk):
    place, _ = walk
    entry = json.loads((place / "demo" / "report.json").read_text("utf-8"))["targets"]["gguf"]
    assert entry["weights"]["exact_fraction"] == 1
    assert entry["baseline"]["weights"]["exact_fraction"] < 0.01


@pytest.mark.slow
def test_readmes_table_has_the_figures_of_a_report(walk, monkeypatch):
    place, _ = walk
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from real_gemma import quality, told

    entry = json.loads((place / "demo" / "report.json").read_text("utf-8"))["targets"]["gguf"]
    _, artifact, baseline = quality({"measured": [{"scheme": "max7", "target": "gguf", **told(entry)}]})
    assert artifact[:2] == ["GGUF, max/7", "100 %"]
    assert baseline[:2] == ["rounded naively", "0.01 %"]
    for cells, kld, same_top, distance in ((artifact, 6.1e-5, 99.02, 0.1), (baseline, 0.01379, 93.35, 3.3)):
        told_kld, told_same_top, told_distance = (float(cell.removesuffix(" %")) for cell in cells[2:])
        assert told_kld == pytest.approx(kld, rel=SHARE, abs=5e-5)  # four decimals are told
        assert told_same_top == pytest.approx(same_top, abs=0.6)  # three positions of 511
        assert told_distance == pytest.approx(distance, abs=0.2)


@pytest.mark.slow
def test_nothing_is_left_outside_home_and_the_clone(walk):
    place, _ = walk
    made = {path.name for path in place.iterdir()} - set(CLONE) - {"build", "qatconvert.egg-info"}
    assert made == {"qat", "qatconvert-0.1.0-py3-none-any.whl", "gemma4-e2b-qatconvert", "demo"}
    assert {path.suffix for path in place.parent.iterdir()} == {"", ".sh", ".output", ".errors", ".status"}


@pytest.mark.parametrize(
    ("printed", "right"),
    [
        ("blocks 0.0111 %\nmean KLD   0.01049", True),
        ("blocks 0.0111 %\nmean KLD   0.00951", True),
        ("blocks 0.0111 %\nmean KLD   0.01051", False),
        ("blocks 0.0112 %\nmean KLD   0.0100", False),
        ("blocks 0.0111 %\nmean KLD   -", False),
    ],
)
def test_only_divergences_may_be_rounded_otherwise(printed, right):
    shown = "blocks 0.0111 %\nmean KLD   0.0100"
    assert matches(shown, printed, SHARE) is right
    assert matches(shown, shown)
    assert not matches(shown, printed)
