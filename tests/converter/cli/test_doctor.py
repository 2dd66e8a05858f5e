"""``qatconvert doctor`` and ``--version -v``, also where something is missing or broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from support.distributions import write_distribution
from support.schemas import faults

#: A target of which the runtime is what a test makes of it.
_TARGET = "from targets.gguf import target\n"
_RUNNER = """
    from dataclasses import replace
    from validation.runtimes.llamacpp import LlamaCpp

    class Other(LlamaCpp):
        def configured(self, options):
            return self

    runner = replace(Other(), extra="other", modules=("a_runtime",), libraries=())
"""


def doctor(*words: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", "from converter.cli import main; main()", "doctor", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3], timeout=200
    )


def found(done: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
    """What was printed as JSON, which is as its schema says."""
    told: Mapping[str, Any] = json.loads(done.stdout)
    assert faults("doctor", told) == []
    return told


def other_runtime(directory: Path, modules: Mapping[str, str]) -> Path:
    """A directory with a distribution of a target ``other`` and of its runtime, and with ``modules``. There,
    torch is broken too: loading it takes seconds."""
    return write_distribution(
        directory,
        "qatconvert-other",
        {
            "qatconvert.targets": {"other": "other_target:target"},
            "qatconvert.runtimes": {"other.own": "other_runner:runner"},
        },
        {"other_target": _TARGET, "other_runner": _RUNNER, "torch": "raise ImportError('broken')", **modules},
    )


def test_a_target_that_is_ready_has_status_0() -> None:
    done = doctor("gguf", "--json")
    assert done.returncode == 0, done.stderr
    (target,) = found(done)["targets"]
    assert (target["name"], target["runtime"]) == ("gguf", "llamacpp")
    assert target["convert"] == target["prove"] == {"ready": True, "problems": [], "commands": []}


def test_a_runtime_that_is_missing_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    path = other_runtime(tmp_path, {})
    done = doctor("other", "--json", path=path)
    assert done.returncode == 1
    (target,) = found(done)["targets"]
    assert target["convert"]["ready"]
    assert target["prove"]["problems"] == [
        "a_runtime is not installed",
        "torch is installed and cannot be loaded: ImportError: broken",
    ]
    command, _ = target["prove"]["commands"]
    assert "install" in command
    assert "qatconvert-other[other]" in command
    assert doctor("other", "--no-validate", path=path).returncode == 0


def test_it_fails_only_for_a_target_that_is_named(tmp_path: Path) -> None:
    path = other_runtime(tmp_path, {"a_runtime": "raise OSError('libother.so: cannot open')"})
    done = doctor(path=path)
    assert done.returncode == 0, done.stderr
    assert "other: prove: a_runtime is installed and cannot be loaded: OSError: libother.so" in done.stdout


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise OSError('libother.so: cannot open')", "OSError: libother.so: cannot open"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process ended with SIGSEGV"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
    ids=["error", "crash", "exit"],
)
def test_a_library_that_is_broken_is_found(tmp_path: Path, source: str, cause: str) -> None:
    done = doctor("-t", "other", "--json", path=other_runtime(tmp_path, {"a_runtime": source}))
    assert done.returncode == 1, done.stderr
    problem, _ = found(done)["targets"][0]["prove"]["problems"]
    assert problem.startswith(f"a_runtime is installed and cannot be loaded: {cause}")


def test_a_broken_library_that_is_known_is_to_be_installed_anew(tmp_path: Path) -> None:
    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    done = doctor("gguf", "--json", path=tmp_path)
    assert done.returncode == 1
    ability = found(done)["targets"][0]["prove"]
    assert "xllamacpp is installed and cannot be loaded: ImportError: undefined symbol" in ability["problems"]
    assert any(f"xllamacpp=={version('xllamacpp')}" in command for command in ability["commands"])


def test_a_plug_in_that_cannot_be_loaded_is_a_problem_of_its_target(tmp_path: Path) -> None:
    path = write_distribution(
        tmp_path,
        "qatconvert-broken",
        {
            "qatconvert.targets": {"broken": "nowhere:target"},
            "qatconvert.runtimes": {"broken.x": "nowhere:r"},
        },
    )
    done = doctor("broken", "--json", path=path)
    assert done.returncode == 1, done.stderr
    (target,) = found(done)["targets"]
    assert "'qatconvert-broken' registers, cannot be loaded" in target["convert"]["problems"][0]
    assert not target["prove"]["ready"]


def test_the_token_for_the_hub_is_told_and_never_shown(tmp_path: Path) -> None:
    token = "hf_" + "x" * 30
    hub = str(tmp_path / "hub")
    done = doctor("gguf", "--no-validate", "--json", HF_TOKEN=token, HF_HUB_CACHE=hub)
    assert found(done)["hub_token"] is True
    places = {place["name"]: place for place in found(done)["places"]}
    assert places["models from the Hub"]["path"] == hub
    assert token not in done.stdout + done.stderr
    without = doctor("gguf", "--no-validate", "--json", HF_HOME=str(tmp_path), HF_TOKEN="")
    assert found(without)["hub_token"] is False


def test_the_lattice_code_is_there_once_it_ran(tmp_path: Path) -> None:
    def compiled() -> bool:
        places = found(doctor("gguf", "--no-validate", "--json", NUMBA_CACHE_DIR=str(tmp_path)))["places"]
        (code,) = (place for place in places if place["name"] == "compiled lattice code")
        assert code["writable"]
        assert code["path"].startswith(str(tmp_path))
        return bool(code["compiled"])

    assert not compiled()
    script = "import numpy as np; from converter.checkpoint.lattice import recover; "
    subprocess.run(
        [sys.executable, "-c", script + "recover(np.zeros((1, 32), np.uint16))"],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        check=True,
    )
    assert compiled()


def test_an_unknown_target_is_wrong_usage() -> None:
    done = doctor("ggfu")
    assert done.returncode == 2
    assert "did you mean gguf?" in done.stderr


def test_the_table_names_versions_that_were_not_tested(tmp_path: Path) -> None:
    write_distribution(tmp_path, "rich", {})  # version 1.0, which is too old
    write_distribution(tmp_path, "numpy", {})
    (tmp_path / "numpy-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: numpy\nVersion: 99\n"
    )
    done = doctor("gguf", "--no-validate", path=tmp_path)
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert rows["rich"].endswith("not in the allowed range")
    assert rows["numpy"].endswith("not tested")
    assert rows["click"].endswith("always")


def test_the_version_tells_more_with_v() -> None:
    def run(*words: str) -> str:
        command = [sys.executable, "-c", "from converter.cli import main; main()", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    short = f"qatconvert, version {version('qatconvert')}\n"
    assert run("--version") == short
    long = run("--version", "-v")
    assert long == run("-v", "--version") == run("--verbose", "--version")
    assert long.startswith(short)
    told = dict(line.split(maxsplit=1) for line in long.splitlines()[1:])
    assert told["onnxruntime"] == version("onnxruntime")
    assert told["xllamacpp"] == f"{version('xllamacpp')} (llama.cpp build 11549)"
    assert told["Python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")


def test_versions_are_told_without_importing_what_they_are_of() -> None:
    script = (
        "import sys\nfrom converter.cli import main\n"
        "try:\n main(['--version', '-v'])\nexcept SystemExit:\n"
        " print(sorted({'numpy', 'numba', 'torch', 'onnxruntime'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
