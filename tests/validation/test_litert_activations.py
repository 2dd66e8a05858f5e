"""The rows of a LiteRT bundle's activations, chosen by what each way loses in the runtime."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("litert_torch")

from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from converter.errors import DestinationError
from converter.pipeline.conversion import Conversion, Outcome, convert
from targets.litert.artifact import LitertTarget
from targets.litert.inferred import infer_options

# each proves a bundle that it may have to export itself
pytestmark = pytest.mark.slow


def converted(output: Path, cache: Path, **gates: float) -> Outcome:
    settings = {"cache": cache, "gates": gates}
    conversion = Conversion("gemma4-demo", ["litert"], output, validation=settings)
    return convert(conversion, warn=lambda line: None)


def entry_of(outcome: Outcome) -> dict[str, Any]:
    return outcome.report["targets"]["litert"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def one_row(tmp_path_factory, cache) -> Outcome:
    return converted(tmp_path_factory.mktemp("one") / "out", cache)


def check_files(outcome: Outcome, chosen: str) -> None:
    """What lies there is the chosen artifact, and the manifest says so."""
    manifest = json.loads((outcome.output / "manifest.json").read_text())
    assert manifest["targets"]["litert"]["options"]["activations"] is None
    assert manifest["targets"]["litert"]["chosen"] == {"activations": chosen}
    bundle = outcome.output / "litert" / "gemma4-demo.litertlm"
    assert infer_options(bundle, open_checkpoint(DEMO).weights)["activations"] == chosen
    listed = {entry["path"]: entry["sha256"] for entry in manifest["artifacts"]}
    assert listed["litert/gemma4-demo.litertlm"] == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert entry_of(outcome)["bytes"] == bundle.stat().st_size
    present = {path.name for path in outcome.output.iterdir()}
    assert present == {"litert", "manifest.json", "report.json", "report.md", "report.html"}


def test_one_row_is_kept_where_it_passes_and_nothing_else_is_tried(one_row):
    entry = entry_of(one_row)
    assert entry["passed"] is True
    assert entry["runtime"]["activations"] == "1"
    assert "alternatives" not in entry
    check_files(one_row, "1")


def test_the_first_way_that_passes_is_kept_and_all_that_were_measured_are_told(one_row, cache, tmp_path):
    lost = entry_of(one_row)["logits"]["mean_kld"]
    outcome = converted(tmp_path / "out", cache, mean_kld=0.9 * lost)
    entry = entry_of(outcome)
    tried = entry["alternatives"]
    assert [one["activations"] for one in tried] == ["1", "2"]
    assert [one["passed"] for one in tried] == [*[False] * (len(tried) - 1), True]
    assert [gate["name"] for gate in tried[0]["gates"] if not gate["passed"]] == ["mean_kld"]
    assert [one["chosen"] for one in tried] == [*[False] * (len(tried) - 1), True]
    chosen = tried[-1]
    assert entry["passed"] is True
    assert entry["logits"]["mean_kld"] == chosen["mean_kld"] < lost
    assert entry["runtime"]["activations"] == chosen["activations"]
    # without rounding one row or two are the same numbers
    assert entry["runtime"]["graph"]["mean_kld"] < 1e-10
    assert entry["weights"]["exact_fraction"] == 1.0
    check_files(outcome, chosen["activations"])
    report = (outcome.output / "report.md").read_text()
    assert "activations 1" in report
    assert f"activations {chosen['activations']} (chosen)" in report


def test_where_no_way_passes_the_most_accurate_is_left_and_fails(cache, tmp_path):
    outcome = converted(tmp_path / "out", cache, mean_kld=1e-9)
    tried = entry_of(outcome)["alternatives"]
    assert [one["activations"] for one in tried] == ["1", "2"]
    assert not any(one["passed"] for one in tried)
    (chosen,) = (one for one in tried if one["chosen"])
    assert chosen["mean_kld"] == min(one["mean_kld"] for one in tried)
    assert outcome.exit_status == 3
    check_files(outcome, chosen["activations"])


def test_without_a_measurement_the_most_accurate_way_is_written(tmp_path):
    conversion = Conversion("gemma4-demo", ["litert"], tmp_path / "out", validation=None)
    check_files(convert(conversion, warn=lambda line: None), "2")


def test_a_way_that_cannot_be_written_loses_nothing_that_was_measured(cache, tmp_path, monkeypatch):
    written = LitertTarget.write

    def full(self, checkpoint, plan, directory, *arguments):
        if plan.options["activations"] == "2":
            raise DestinationError("no space left on device")
        return written(self, checkpoint, plan, directory, *arguments)

    monkeypatch.setattr(LitertTarget, "write", full)
    outcome = converted(tmp_path / "out", cache, mean_kld=1e-9)
    first, second = entry_of(outcome)["alternatives"]
    assert (first["chosen"], second["error"]) == (True, "no space left on device")
    assert outcome.exit_status == 3
    check_files(outcome, "1")
