"""The shipped checkpoint in the mobile form, from the command to the report, in all three targets."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from converter.pipeline.verification import verify
from support.forked import PROGRAM

pytest.importorskip("litert_torch")
# its graph for LiteRT is exported for these tests alone
pytestmark = pytest.mark.slow

Converted = Callable[..., Mapping[str, Any]]
STATIC = ("--static-activations", "--litert-activations", "static")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """``converted(*options)``: the report of a conversion that passed every gate, with its ``output``."""
    made: dict[tuple[str, ...], Mapping[str, Any]] = {}

    def convert(*options: str) -> Mapping[str, Any]:
        if options not in made:
            output = tmp_path_factory.mktemp("mobile") / "out"
            done = subprocess.run(
                [PROGRAM, "gemma4-demo-mobile", *options, "--output", str(output)],
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, (done.stdout, done.stderr)
            assert "gemma4-demo-mobile: proven" in done.stdout
            report = json.loads((output / "report.json").read_text())
            made[options] = {**report, "output": output}
        return made[options]

    return convert


def test_it_passes_every_gate_in_every_target(converted: Converted) -> None:
    report = converted("--target", "all")
    assert report["source"]["format"] == "gemma-mobile"
    assert set(report["targets"]) == {"gguf", "onnx", "litert"}
    for name, entry in report["targets"].items():
        assert entry["passed"] is True
        assert all(gate["passed"] for gate in entry["gates"]), name
        assert entry["weights"]["equal_code_blocks"] == entry["weights"]["blocks"] > 10_000
        assert entry["activation_grids"]["applied"] is False
        assert entry["activation_grids"]["mean_kld"] > 0.005
    exact = {name: entry["weights"]["exact_fraction"] for name, entry in report["targets"].items()}
    assert exact["onnx"] == exact["litert"] == 1.0
    assert exact["gguf"] < 0.1  # float16 does not hold its scales
    assert report["targets"]["gguf"]["weights"]["max_scale_error"] <= 2.0**-11


def test_its_weights_lie_in_each_runtimes_types_of_rows(converted: Converted) -> None:
    report = converted("--target", "all")
    kinds = {}
    for name, entry in report["targets"].items():
        tensors = {one["name"]: one["format"] for one in entry["weights"]["per_tensor"]}
        kinds[name] = [
            tensors[weight]
            for weight in (
                "layers.8.mlp.down_proj.weight",
                "layers.0.self_attn.q_proj.weight",
                "per_layer_model_projection.weight",
            )
        ]
    assert kinds == {
        "gguf": ["TQ2_0", "Q4_0", "Q8_0"],
        "onnx": ["INT2/128", "INT4/128", "INT8/128"],
        "litert": ["INT2 per row", "INT4 per row", "INT8 per row"],
    }


def test_what_it_left_is_as_its_manifest_says_and_names_its_source(converted: Converted) -> None:
    output = converted("--target", "all")["output"]
    found = verify(output)
    assert (found.differences, set(found.verdicts.values())) == ([], {"passed"})
    assert found.manifest.origin.path == "gemma4-demo-mobile"


def test_with_its_static_grids_it_is_judged_by_transformers_with_them(converted: Converted) -> None:
    report = converted("--target", "onnx,litert", *STATIC)
    assert set(report["targets"]) == {"onnx", "litert"}
    for entry in report["targets"].values():
        grids = entry["activation_grids"]
        assert (entry["passed"], grids["applied"]) == (True, True)
        assert entry["logits"]["mean_kld"] == grids["mean_kld_artifact"] < 0.01
        # beside a reference without grids it would be as far as they move it
        assert grids["mean_kld"] > 4 * grids["mean_kld_artifact"]


def test_static_grids_are_told_from_the_artifacts_that_apply_them(
    converted: Converted, tmp_path: Path
) -> None:
    """A manifest that says otherwise does not hide them."""
    output = converted("--target", "onnx,litert", *STATIC)["output"]
    for artifact in ("onnx/model.onnx", "litert/gemma4-demo-mobile.litertlm"):
        done = subprocess.run(
            [
                PROGRAM,
                "validate",
                str(output / artifact),
                "--reference",
                "gemma4-demo-mobile",
                "--positions",
                "64",
                "--no-same-weights",
                "--output",
                str(tmp_path / Path(artifact).name),
            ],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode in (0, 3), done.stderr
        report = json.loads((tmp_path / Path(artifact).name / "report.json").read_text())
        (entry,) = report["targets"].values()
        assert entry["activation_grids"]["applied"] is True
        gates = {gate["name"]: gate["passed"] for gate in entry["gates"]}
        assert gates["same_as_built"] is True
