"""The built wheel, and clean environments that it is installed into.

Environments come from uv, which links their files from its cache: a second or two each once that is filled.
Without a network, or an empty cache, they cannot be made: the tests are then skipped and say so, but fail in
CI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "converter" / "constraints.txt"
_PACKAGES = ("converter", "targets", "validation")
_BUILD = "import sys; from setuptools import build_meta as build; build.build_{kind}(sys.argv[1])"
#: What pip's configuration calls what uv takes from its environment.
_SETTINGS = {
    "index-url": "UV_INDEX_URL",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
}
_TORCH = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))


@dataclass(frozen=True)
class Environment:
    """A virtual environment with qatconvert in it."""

    path: Path

    def run(self, *words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run ``qatconvert WORDS`` in it, in a directory of its own, and expect an exit status."""
        return self.program("qatconvert", *words, status=status)

    def python(self, source: str) -> str:
        """What a program prints in it."""
        return self.program("python", "-c", source).stdout

    def program(self, name: str, *words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment and expect an exit status."""
        work = self.path / "work"
        work.mkdir(exist_ok=True)
        done = subprocess.run(
            [str(self.path / "bin" / name), *map(str, words)],
            capture_output=True,
            text=True,
            cwd=work,
            env=variables(),
            timeout=600,
        )
        assert done.returncode == status, (words, done.stdout[-3000:], done.stderr[-3000:])
        return done


Make = Callable[..., Environment]


def variables() -> dict[str, str]:
    """The environment in which uv finds what pip would, and Python nothing of this tree."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    kept["PATH"] = f"{Path(find_uv_bin()).parent}{os.pathsep}{kept['PATH']}"
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = _SETTINGS.get(name.rpartition(".")[2])
        places = value.strip("'\"").split()
        kept_places = [place for place in places if not place.startswith("file:")]
        if key is not None and kept_places:
            kept[key] = " ".join(kept_places)
    return kept | {"UV_CONSTRAINT": str(CONSTRAINTS)}


def uv(*words: object, more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run uv, with ``more`` variables. Where it cannot, the test is skipped with what it says, but fails in
    CI."""
    done = subprocess.run(
        [find_uv_bin(), *map(str, words)],
        capture_output=True,
        text=True,
        env=variables() | more,
        timeout=600,
    )
    if done.returncode:
        told = f"uv {words[0]} {words[1]}: {done.stderr.strip()[-800:]}"
        if os.environ.get("CI") or "connect" not in told.lower():
            pytest.fail(told)
        pytest.skip(f"no network: {told}")


def build(kind: str, source: Path) -> Path:
    """Build an ``sdist`` or a ``wheel`` of a source tree, in which setuptools may leave what it makes."""
    built = source.parent / kind
    subprocess.run(
        [sys.executable, "-c", _BUILD.format(kind=kind), str(built)],
        cwd=source,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (made,) = built.iterdir()
    return made


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree, with what setuptools might take from it."""
    source = tmp_path_factory.mktemp("distribution") / "source"
    for name in (*_PACKAGES, "tests/checkpoints", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    files = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    for path in (*files, *ROOT.glob("tests/*.py")):
        shutil.copy(path, source / path.relative_to(ROOT))
    return source


@pytest.fixture(scope="session")
def wheel(checkout: Path) -> Path:
    """A wheel of this tree."""
    return build("wheel", checkout)


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``empty(python)``: a new virtual environment, of this Python if none is named, with nothing in it, not
    even pip."""

    def make(python: Path | str = sys.executable) -> Path:
        path = tmp_path_factory.mktemp("clean") / "environment"
        uv("venv", "--quiet", "--python", python, path)
        return path

    return make


@pytest.fixture(scope="session")
def installed(wheel: Path, empty: Callable[..., Path]) -> Make:
    """``installed(*extras)``: an environment with the wheel and these extras alone, made once."""
    made: dict[tuple[str, ...], Environment] = {}

    def make(*extras: str) -> Environment:
        if extras not in made:
            path = empty()
            brackets = f"[{','.join(extras)}]" if extras else ""
            uv("pip", "install", "--quiet", "--python", path, f"{wheel}{brackets}")
            made[extras] = Environment(path)
        return made[extras]

    return make


@pytest.fixture(scope="session")
def locked(wheel: Path, empty: Callable[..., Path]) -> Make:
    """``locked(name)``: an environment of a lock file, with its hashes, and the wheel, made once."""
    made: dict[str, Environment] = {}

    def make(name: str) -> Environment:
        if name not in made:
            path = empty()
            if name == "all":
                uv("pip", "install", "--quiet", "--python", path, _TORCH)
            lock = ROOT / "requirements" / f"{name}.lock"
            uv("pip", "install", "--quiet", "--python", path, "--no-deps", "--require-hashes", "-r", lock)
            uv("pip", "install", "--quiet", "--python", path, "--no-deps", wheel)
            uv("pip", "check", "--python", path)
            made[name] = Environment(path)
        return made[name]

    return make
