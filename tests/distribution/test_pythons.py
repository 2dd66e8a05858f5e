"""Versions of Python that the package claims: what is tried with each stands in docs/versions.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from distribution.conftest import ROOT, Environment, uv

#: Those beside the one that runs every test.
OTHERS = ("3.12", "3.13")


def interpreter(version: str) -> Path:
    """A Python of this version: one on the path, or beside the one that runs here, as pyenv and uv keep them.
    The test is skipped if none starts; pyenv's on the path may not."""
    beside = Path(sys.base_prefix).parent.glob(f"*{version}*/bin/python{version}")
    for found in filter(None, (shutil.which(f"python{version}"), *beside)):
        if not subprocess.run([found, "-c", ""], capture_output=True).returncode:
            return Path(found)
    pytest.skip(f"there is no Python {version}")


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHERS)
def test_it_converts_the_demo_to_the_same_bytes(
    version: str, wheel: Path, empty: Callable[..., Path], demo_output: Path
) -> None:
    path = empty(interpreter(version))
    uv("pip", "install", "--quiet", "--python", path, f"{wheel}[llamacpp]")
    environment = Environment(path)
    environment.run("gemma4-demo", "-t", "gguf", "--no-validate", "-o", "out")
    environment.run("verify", "out")
    (artifact,) = (demo_output / "gguf").iterdir()
    assert (path / "work" / "out" / "gguf" / artifact.name).read_bytes() == artifact.read_bytes()
    told = json.loads(environment.run("doctor", "gguf", "--json", status=1).stdout)
    assert told["python"].startswith(f"{version}.")
    # so llama.cpp was loaded, and only the reference is missing
    assert told["targets"][0]["prove"]["problems"] == ["torch, transformers, accelerate are not installed"]


def test_only_versions_that_are_tried_are_claimed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: 3."
    claimed = [line.rpartition(" ")[2] for line in project["classifiers"] if line.startswith(prefix)]
    assert claimed == ["3.11", *OTHERS]
