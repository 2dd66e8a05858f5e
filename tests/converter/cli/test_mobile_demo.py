"""The shipped checkpoint in the mobile form, from the command to the report, in all three targets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO_MOBILE
from converter.pipeline.verification import verify
from support.forked import PROGRAM
from targets.target import find_target
from validation.exactness import measure

pytest.importorskip("litert_torch")
from targets.litert.reading import open_models

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


@pytest.mark.parametrize(
    ("weight", "what"),
    [
        ("layers.8.mlp.down_proj.weight", "a code of 2 bits"),
        ("lm_head.weight", "a code of 2 bits"),
        ("layers.0.self_attn.q_proj.weight", "a code of 4 bits"),
        ("per_layer_model_projection.weight", "a code of 8 bits"),
        ("layers.8.mlp.down_proj.weight", "a scale, one step off"),
        ("embed_tokens.weight", "a scale, one step off"),
    ],
)
def test_one_that_is_wrong_in_a_bundle_is_no_exact_block(
    weight: str, what: str, converted: Converted, tmp_path: Path
) -> None:
    right = converted("--target", "all")["output"] / "litert" / "gemma4-demo-mobile.litertlm"
    wrong = Path(shutil.copy(right, tmp_path / "wrong.litertlm"))
    (model,) = open_models(right)
    tensor = next(one for graph in model.subgraphs for one in graph.tensors if one.name == weight)
    place = tensor.rowwise.scales if "scale" in what else tensor.buffer
    with wrong.open("r+b") as file:
        file.seek(model.start + place.offset + 4 * 7)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    checkpoint, target = open_checkpoint(DEMO_MOBILE), find_target("litert")
    found = measure(checkpoint, target.describe(wrong, checkpoint))
    assert [(one.weight, one.wrong) for one in found.tensors if one.wrong] == [(weight, 1)]
    assert (
        found.exact_fraction < 1.0 == measure(checkpoint, target.describe(right, checkpoint)).exact_fraction
    )


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


def test_artifacts_show_that_they_apply_static_grids(converted: Converted, tmp_path: Path) -> None:
    """No manifest has to say so."""
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
