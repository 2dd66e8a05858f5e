"""From a repository's URL, pip and pipx install what is committed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from distribution.conftest import ROOT, Environment, Make, uv


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a bare clone of this repository."""
    path = tmp_path_factory.mktemp("repository") / "qatconvert.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), str(path)], check=True)
    # with a host, since pip before 24.1 takes no direct reference without one
    return f"git+file://localhost{path}"


def test_pip_installs_from_the_url_of_a_repository(repository: str, locked: Make, tmp_path: Path) -> None:
    # what is required lies there already: pip would unpack it for ten seconds
    environment = locked("base")
    python = environment.path / "bin" / "python"
    uv("pip", "uninstall", "--quiet", "--python", python, "qatconvert")
    words = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*words, f"qatconvert @ {repository}"], check=True, cwd=tmp_path)
    (record,) = environment.path.glob("lib/python*/site-packages/qatconvert-*/direct_url.json")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(record.read_text())["vcs_info"]["commit_id"] == head.stdout.strip()
    assert environment.run("--version").stdout == "qatconvert, version 0.1.0\n"


def test_pipx_installs_from_the_url_of_a_repository(repository: str, tmp_path: Path) -> None:
    places = {"PIPX_HOME": "home", "PIPX_BIN_DIR": "bin", "PIPX_MAN_DIR": "man"}
    more = {key: str(tmp_path / name) for key, name in places.items()}
    uv("tool", "run", "pipx", "install", f"qatconvert @ {repository}", more=more)
    environment = Environment(tmp_path)
    assert environment.run("--version").stdout == "qatconvert, version 0.1.0\n"
    assert "gemma4-demo" in environment.run("models").stdout
