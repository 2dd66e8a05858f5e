"""Every message in docs/troubleshooting.md is one that the tool prints, with the exit status that is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.forked import PROGRAM
from support.hub_server import HubServer
from support.pages import ROOT
from support.stages import without_stages

PAGE = ROOT / "docs" / "troubleshooting.md"
GATED, PUBLIC = "google/gemma-4-31B-it-qat-q4_0-unquantized", "google/gemma-4-E2B-it-qat-q4_0-unquantized"
#: The command line where some modules are as if they were not installed.
WITHOUT = (
    "import sys; sys.modules |= dict.fromkeys(sys.argv.pop(1).split(',')); "
    "from converter.cli import main; main()"
)


@dataclass(frozen=True)
class Place:
    """A directory with what the cases need, and a Hub."""

    directory: Path
    server: HubServer
    latent: Path

    def run(self, *words: str, without: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """A command there; modules in ``without`` are hidden from it."""
        program = [sys.executable, "-c", WITHOUT, without] if without else [PROGRAM]
        own = self.server.environment(self.directory / "home") | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
        home = {"QATCONVERT_HOME": os.environ.get("QATCONVERT_HOME", own["QATCONVERT_HOME"])}
        return subprocess.run(
            [*program, *words],
            cwd=self.directory,
            env=own | home | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def changed(self, name: str, **keys: object) -> str:
        """A directory of a checkpoint with other keys in its configuration."""
        copy = shutil.copytree(self.latent, self.directory / name)
        config = json.loads((copy / "config.json").read_text("utf-8"))
        (copy / "config.json").write_text(json.dumps(config | keys), "utf-8")
        return name

    def altered(self) -> subprocess.CompletedProcess[str]:
        """``verify`` of an output of which a file has grown."""
        with next((self.directory / "made" / "gguf").iterdir()).open("ab") as file:
            file.write(b"x")
        return self.run("verify", "made")


#: By the heading on the page: what brings the message about, and the exit status.
CASES: dict[str, tuple[Callable[[Place], subprocess.CompletedProcess[str]], int]] = {
    "A gated repository": (lambda at: at.run("gemma4-31b"), 1),
    "No such repository": (lambda at: at.run("nobody/nothing"), 1),
    "No way to the Hub": (lambda at: at.run("gemma4-e2b", HF_ENDPOINT="http://127.0.0.1:9"), 1),
    "Not downloaded yet": (lambda at: at.run("gemma4-e2b", "--offline"), 1),
    "A directory without a checkpoint": (lambda at: at.run("empty"), 1),
    "A form that is not read": (
        lambda at: at.run(at.changed("packed", quantization_config={"quant_method": "awq"})),
        1,
    ),
    "Another family": (lambda at: at.run(at.changed("llama", model_type="llama")), 1),
    "A GGUF instead of a checkpoint": (lambda at: at.run("alone.gguf"), 2),
    "A target that is not installed": (
        lambda at: at.run("gemma4-demo", "--target", "onnx", "--no-validate", "-o", "new", without="mobius"),
        2,
    ),
    "A proof that is not installed": (
        lambda at: at.run("gemma4-demo", "-o", "new", without="torch"),
        2,
    ),
    "An output that is there already": (lambda at: at.run("gemma4-demo", "-o", "made"), 1),
    "An artifact without its source": (lambda at: at.run("validate", "alone.gguf"), 2),
    "Weights on no lattice": (lambda at: at.run(str(at.latent), "--positions", "16", "-o", "latent"), 3),
    "A gate that failed": (
        lambda at: at.run("gemma4-demo", "--gate", "mean_kld=1e-9", "--positions", "32", "-o", "failed"),
        3,
    ),
    "An output that has changed": (Place.altered, 3),
}
#: Those of a whole proof.
PROVEN = {"Weights on no lattice", "A gate that failed"}


def quoted() -> dict[str, str]:
    """The message under every heading of the page that has one."""
    return dict(re.findall(r"^## (.+)\n\n```error\n(.+)\n```$", PAGE.read_text("utf-8"), flags=re.MULTILINE))


def pattern(message: str) -> str:
    """An expression for what the page quotes; blanks may be broken into lines."""
    words = [re.escape(part).replace("\\ ", r"\s+") for part in message.split("...")]
    return ".*?".join(words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, checkpoint_factory, demo_output: Path) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("troubleshooting")
    (directory / "empty").mkdir()
    (directory / "empty" / "config.json").write_text("{}")
    shutil.copytree(demo_output, directory / "made")
    shutil.copy(next((demo_output / "gguf").iterdir()), directory / "alone.gguf")
    model = checkpoint_factory("text")
    with HubServer({GATED: model, PUBLIC: model}) as server:
        server.gated.add(GATED)
        yield Place(directory, server, checkpoint_factory("text", "latent"))


def test_every_message_of_the_page_has_a_case():
    assert list(quoted()) == list(CASES)
    assert PAGE.read_text("utf-8").count("```error\n") == len(CASES)


@pytest.mark.parametrize(
    "heading",
    [pytest.param(name, marks=[pytest.mark.slow] if name in PROVEN else []) for name in CASES],
)
def test_a_message_is_the_tools_own(place, heading):
    bring, status = CASES[heading]
    done = bring(place)
    told = without_stages(done.stderr) + done.stdout
    assert done.returncode == status, told
    assert re.search(pattern(quoted()[heading]), told, re.DOTALL), told
    text = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    assert ("Exit status 3." in text) == (status == 3)
