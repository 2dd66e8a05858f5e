"""What is settled before there is an artifact, and what happens when the artifact then cannot be measured."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError
from support.stages import without_stages
from validation.proof import Artifact, inferred_plan, prove
from validation.settings import Settings, prepare

PROGRAM = str(Path(sys.executable).with_name("qatconvert"))


@dataclass(frozen=True)
class CommandLine:
    """``qatconvert`` on one checkpoint, with a cache of reference logits of its own."""

    model: Path
    home: Path

    def __call__(self, *words: object, file_size: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run it; no process of it can write a file of more than ``file_size`` bytes."""
        limit = (file_size, file_size)
        done = subprocess.run(
            [PROGRAM, str(self.model), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "QATCONVERT_HOME": str(self.home)},
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)) if file_size else None,
        )
        done.stderr = without_stages(done.stderr)
        return done


@pytest.fixture
def qatconvert(checkpoint_factory: Callable[..., Path], tmp_path: Path) -> CommandLine:
    return CommandLine(checkpoint_factory("text"), tmp_path / "home")


def test_more_positions_than_the_text_has_are_refused_before_anything_is_written(
    qatconvert: CommandLine, tmp_path: Path
) -> None:
    done = qatconvert("--positions", 1_000_000, "-o", tmp_path / "new" / "out")
    assert done.returncode == 2
    assert "too few for 1000000 positions" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_text_without_text_is_refused_before_the_model_is_looked_for(
    qatconvert: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    done = CommandLine(Path("owner/name"), tmp_path)("--text", tmp_path / "empty.txt")
    assert done.returncode == 2
    assert "holds no text" in done.stderr


@pytest.mark.parametrize("cached", [False, True], ids=["reference", "runtime"])
def test_a_conversion_that_cannot_be_validated_is_kept_unproven_until_it_can(
    cached: bool, qatconvert: CommandLine, tmp_path: Path
) -> None:
    """The files of logits are larger than a process may write; without one for the reference, which is
    cached the second time, it is llama.cpp's that fails."""
    if cached:
        given = ("--gate", "mean_kld=1", "--gate", "same_top_p=0", "--allow-unrun", "graph_kld")
        assert qatconvert("--no-same-weights", *given, "-o", tmp_path / "first").returncode == 0
    out = tmp_path / "out"
    done = qatconvert(*["--no-same-weights"] * cached, "-o", out, file_size=2_000_000)
    what = "llama.cpp on" if cached else "reference:"
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "could not be validated: " + what in line
    assert "File too large" in line
    assert f"  could not be validated  {what}" in done.stdout
    entry = json.loads((out / "report.json").read_text())["targets"]["gguf"]
    assert set(entry) == {
        "artifact",
        "bytes",
        "weight_bytes",
        "bits_per_weight",
        "requires",
        "recovery",
        "passed",
        "error",
    }
    assert entry["passed"] is False
    assert entry["error"] in line
    assert (out / entry["artifact"]).stat().st_size == entry["bytes"]
    listed = json.loads((out / "manifest.json").read_text())["artifacts"]
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {file["path"] for file in listed} | {"manifest.json"} == found
    for name in ("report.md", "report.html"):
        text = (out / name).read_text("utf-8")
        assert "could not be validated" in text
        assert "FAILED" in text
    if not cached:
        again = [PROGRAM, "validate", out / entry["artifact"], "--reference", qatconvert.model, "-o", out]
        environment = {**os.environ, "QATCONVERT_HOME": str(qatconvert.home)}
        assert subprocess.run([*again, "--force"], env=environment, timeout=300).returncode == 0
        assert json.loads((out / "report.json").read_text())["targets"]["gguf"]["passed"] is True
        assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_preparation_serves_several_artifacts_with_one_process_and_leaves_no_file(
    e2b: Any, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    own: set[Path] = set()

    def look(stage: str, done: int, total: int) -> None:
        own.update(scratch.glob("*/*/model-*.safetensors"))

    settings = Settings(positions=64, cache=tmp_path / "cache")
    with prepare(e2b.checkpoint, settings) as prepared:
        plan = inferred_plan("gguf", e2b.path, e2b.checkpoint)
        first = prove(prepared, Artifact(e2b.path, plan), scratch=scratch, progress=look)
        process = prepared.worker._child
        second = prove(prepared, Artifact(e2b.path, plan), scratch=scratch)
        assert prepared.worker._child is process
    assert first == second
    assert own
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        Settings(gates={"speed": 1.0}),
        Settings(baseline="q2"),
        Settings(reference_dtype="int8"),
        Settings(positions=1_000_000),
        Settings(text=Path("/nowhere.txt")),
    ],
)
def test_settings_that_mean_nothing_need_no_artifact_to_be_refused(
    settings: Settings, checkpoint_factory: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    with pytest.raises(UsageError), prepare(checkpoint, settings):
        pass
