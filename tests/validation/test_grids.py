"""A mobile checkpoint is judged without static grids of activations, unless the artifact applies them; what
they do stands beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CheckpointFactory

from converter.checkpoint.opened import open_checkpoint
from converter.errors import ValidationError
from converter.pipeline.conversion import Conversion, convert
from support.tampering import GgufFile
from targets.target import Plan, find_target
from validation import unrounded
from validation.proof import inferred_plan, validate
from validation.report.coverage import not_covered
from validation.report.files import assemble
from validation.report.markdown import render_markdown
from validation.report.summary import measured_against, side_by_side

pytestmark = pytest.mark.slow

WIDE = {"hidden_size": 256}
SETTINGS: dict[str, Any] = {"positions": 96, "allow_unrun": ()}


@pytest.fixture(scope="module")
def made(mobile_factory: CheckpointFactory, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``made(**options)``: the checkpoint and its GGUF."""

    def make(**options: Any) -> Any:
        checkpoint = open_checkpoint(mobile_factory("text", WIDE, **options))
        target, output = find_target("gguf"), tmp_path_factory.mktemp("mobile")
        plan = target.plan(checkpoint, "model", {})
        target.write(checkpoint, plan, output)
        return checkpoint, output / plan.artifacts[0]

    return make


@pytest.fixture(scope="module")
def prove(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    cache = tmp_path_factory.mktemp("cache")

    def run(checkpoint: Any, artifact: Path, plan: Plan | None = None, **settings: Any) -> dict[str, Any]:
        return validate(checkpoint, "gguf", artifact, plan=plan, cache=cache, **SETTINGS, **settings)

    return run


@pytest.fixture(scope="module")
def proven(made: Callable[..., Any], prove: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return prove(*made())


def failed(entry: dict[str, Any]) -> set[str]:
    return {gate["name"] for gate in entry["gates"] if gate["passed"] is False}


def test_the_three_causes_of_error_are_told_apart(proven: dict[str, Any]) -> None:
    entry = proven["entry"]
    assert entry["passed"] is True
    runtime, grids, logits = entry["runtime"], entry["activation_grids"], entry["logits"]
    assert proven["reference"]["activation_grids"] is False
    weights = runtime["mean_kld_own_weights"]
    assert 0 < weights < 1e-4 < runtime["mean_kld_same_weights"] < 0.02
    assert (grids["modules"], grids["applied"]) == (25, False)
    assert 0.03 < grids["mean_kld"] < 0.5
    assert grids["max_kld"] > grids["mean_kld"]
    assert grids["mean_kld_artifact"] == pytest.approx(grids["mean_kld"], rel=0.3)
    assert logits["mean_kld"] < 0.2 * grids["mean_kld_artifact"]
    assert grids["same_top_p"] < 0.9


def test_the_graph_is_judged_without_rounding(proven: dict[str, Any]) -> None:
    (gate,) = (gate for gate in proven["entry"]["gates"] if gate["name"] == "graph_kld")
    assert gate["passed"] is True
    assert gate["value"] < 1e-5


def test_an_excerpt_is_judged_where_there_is_no_room_for_the_whole(
    made: Callable[..., Any], prove: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unrounded.shortage

    def shortage(runner: Any, artifact: Path, room: Any, excerpt: Any = None) -> str | None:
        return whole(runner, artifact, room, excerpt) if excerpt else "no room"

    monkeypatch.setattr(unrounded, "shortage", shortage)
    entry = prove(*made())["entry"]
    assert entry["passed"] is True, failed(entry)
    graph = entry["runtime"]["graph"]
    assert len(graph["layers"]) < graph["layers_of"] == 6
    assert graph["mean_kld"] < 1e-5


def test_codes_and_scales_are_told_apart(proven: dict[str, Any]) -> None:
    weights = proven["entry"]["weights"]
    assert weights["equal_code_blocks"] == weights["blocks"]
    assert weights["wrong_blocks"] == 0
    assert 0 < weights["max_scale_error"] < 0.01
    assert weights["not_representable_blocks"] > 0.8 * weights["blocks"]


def test_pages_and_terminal_have_the_figures(proven: dict[str, Any]) -> None:
    origin = {"repo": None, "revision": None, "path": "m", "format": "gemma-mobile"}
    report = assemble("m", origin, proven["reference"], {"gguf": proven["entry"]})
    rows = {row[0]: row[1] for row in side_by_side(report["targets"])}
    assert rows["blocks with the checkpoint's codes"] == "100 %"
    assert rows["largest error of a scale"].endswith(" %")
    grids = proven["entry"]["activation_grids"]
    assert rows["mean KLD of the activation grids"][:5] == f"{grids['mean_kld']:.4g}"[:5]
    assert "mean KLD with activation grids" in rows
    assert ("gguf", "the runtime does not round to the static grids of 25 modules") in not_covered(report)
    page = render_markdown(report)
    assert "- activation grids: 25 modules of the checkpoint round to them, which the runtime" in page
    assert "- **activation grids**: Static scales" in page
    assert "- weights alone: mean KLD" in page
    assert "float32, without the static grids of activations" in page


def test_a_checkpoint_without_grids_has_no_such_figures(
    made: Callable[..., Any], prove: Callable[..., dict[str, Any]]
) -> None:
    found = prove(*made(activations=False))
    assert found["entry"]["passed"] is True
    assert "activation_grids" not in found["entry"]
    assert "activation_grids" not in found["reference"]


def test_an_artifact_that_applies_grids_is_judged_by_a_reference_that_does(
    made: Callable[..., Any], prove: Callable[..., dict[str, Any]]
) -> None:
    """This one does not, and claims it."""
    checkpoint, artifact = made()
    honest = inferred_plan("gguf", artifact, checkpoint)
    plan = replace(honest, applies_grids=True)
    found = prove(checkpoint, artifact, plan, gates={"mean_kld": 0.03}, baseline="naive-q4_0")
    entry, grids = found["entry"], found["entry"]["activation_grids"]
    assert grids["applied"] is True
    assert entry["logits"]["mean_kld"] == grids["mean_kld_artifact"] > 0.03
    assert entry["logits"]["ppl_reference"] == grids["ppl"]
    # edges of grids make much of float16 scales, and of the GELU that the reference on them shares
    assert entry["runtime"]["mean_kld_own_weights"] > 0.01
    assert entry["runtime"]["mean_kld_same_weights"] > 0.03
    assert failed(entry) == {"mean_kld"}
    assert entry["baseline"]["logits"]["ppl_reference"] == grids["ppl"]
    (graph,) = (gate for gate in entry["gates"] if gate["name"] == "graph_kld")
    assert graph["value"] < 1e-5
    origin = {"repo": None, "revision": None, "path": "m", "format": "gemma-mobile"}
    report = assemble("m", origin, found["reference"], {"gguf": entry})
    assert not [line for _, line in not_covered(report) if "static grids" in line]
    assert "which the artifact and its reference do too" in render_markdown(report)
    assert "transformers in float32 with static grids" in measured_against(report)


def test_grids_that_the_reference_does_not_have_cannot_be_judged(
    made: Callable[..., Any], prove: Callable[..., dict[str, Any]]
) -> None:
    checkpoint, artifact = made(activations=False)
    plan = replace(inferred_plan("gguf", artifact, checkpoint), applies_grids=True)
    with pytest.raises(ValidationError, match="static grids, and transformers has none for gemma-mobile"):
        prove(checkpoint, artifact, plan)


@pytest.mark.parametrize("options", [{"head": "tied"}, {"blocks": 6}, {"extremes": True}])
def test_other_checkpoints_are_proven_too(
    options: dict[str, Any], made: Callable[..., Any], prove: Callable[..., dict[str, Any]]
) -> None:
    entry = prove(*made(**options))["entry"]
    assert entry["passed"] is True, failed(entry)
    assert entry["activation_grids"]["mean_kld"] > 0.03


def test_a_conversion_says_what_is_recorded_and_not_applied(
    mobile_factory: CheckpointFactory, tmp_path: Path
) -> None:
    """From the command's own steps, with the report and the manifest as their schemas have them."""
    settings = {"cache": tmp_path / "cache", "positions": 64, "baseline": "naive-q4_0"}
    warned: list[str] = []
    model, output = str(mobile_factory("e2b")), tmp_path / "out"
    outcome = convert(Conversion(model, ["gguf"], output, validation=settings), warn=warned.append)
    assert outcome.exit_status == 0
    report = outcome.report
    assert report["source"]["format"] == "gemma-mobile"
    assert report["reference"]["activation_grids"] is False
    entry = report["targets"]["gguf"]
    for lines in (warned, entry["warnings"]):
        assert any("static scales of activations" in line and "does not apply" in line for line in lines)
    assert entry["weights"]["exact_fraction"] > entry["baseline"]["weights"]["exact_fraction"]
    assert entry["logits"]["mean_kld"] < 0.1 * entry["baseline"]["logits"]["mean_kld"]
    assert "does not round to the static grids" in (output / "report.html").read_text("utf-8")


def _block(change: Callable[[bytearray], None], name: str) -> Callable[[GgufFile], None]:
    def apply(file: GgufFile) -> None:
        for index, (own, dims, kind, data) in enumerate(file.tensors):
            if own == name:
                other = bytearray(data)
                change(other)
                file.tensors[index] = (own, dims, kind, bytes(other))

    return apply


def _code(data: bytearray) -> None:
    data[3] ^= 1


def _scale(data: bytearray) -> None:
    data[64] ^= 4


def _signs(data: bytearray) -> None:
    for place in range(65, len(data), 66):
        data[place] ^= 0x80


def _order(data: bytearray) -> None:
    blocks = np.frombuffer(bytes(data), np.uint8).reshape(-1, 66).copy()
    blocks[:, :64] = blocks[:, :64].reshape(-1, 2, 32)[:, ::-1].reshape(-1, 64)
    data[:] = blocks.tobytes()


@pytest.mark.parametrize(
    ("change", "others"),
    [(_code, set()), (_scale, set()), (_signs, {"mean_kld"}), (_order, {"mean_kld"})],
    ids=["code", "scale", "signs", "order"],
)
def test_a_wrong_artifact_fails(
    change: Callable[[bytearray], None],
    others: set[str],
    made: Callable[..., Any],
    prove: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    checkpoint, artifact = made()
    file = GgufFile.read(artifact)
    _block(change, "output.weight")(file)
    path = tmp_path / artifact.name
    file.write(path)
    assert failed(prove(checkpoint, path)["entry"]) >= {"exact_fraction", "same_as_built"} | others
