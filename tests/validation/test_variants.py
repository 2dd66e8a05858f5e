"""Every architecture, converted and proven by the pipeline with the gates that apply when nobody sets any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints.variants import VARIANTS
from converter.pipeline.conversion import Conversion, convert
from validation.gates import SAME_AS_BUILT
from validation.limits import ANSWERS, DECODE, GRAPH, RELATIVE, UNROUNDED_DECODE, absolute
from validation.runners import find_runner

pytestmark = pytest.mark.slow


def relative(runtime: dict[str, Any]) -> dict[str, float]:
    """Limits of a model that predicts nothing, by what its runtime and the checkpoint's own rounding cost."""
    lost = runtime["mean_kld_same_weights"] + runtime["mean_kld_own_weights"]
    decode = 2 * lost + 1e-4
    if runtime.get("accuracy_level") == 0:  # chosen by the clock
        decode = min(decode, UNROUNDED_DECODE)
    return {"mean_kld": 1.1 * lost + 1e-4, "decode_mean_kld": decode}


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_is_exact_and_passes_the_default_gates(
    variant: str, checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {"cache": tmp_path / "cache", "baseline": "naive-q4_0"}
    model = str(checkpoint_factory(variant))
    outcome = convert(Conversion(model, ["gguf", "onnx"], tmp_path / "out", validation=settings))
    assert outcome.exit_status == 0
    experts = variant == "26b-a4b"
    for target, without in (("gguf", (*ANSWERS, *DECODE)), ("onnx", ANSWERS)):
        entry = outcome.report["targets"][target]
        gates = {gate["name"]: gate for gate in entry["gates"]}
        general = absolute({}, experts=experts, allowances=find_runner(target).allowances).values
        expected = {**general, **relative(entry["runtime"]), SAME_AS_BUILT: 0}
        expected = {name: limit for name, limit in expected.items() if name not in without}
        if target == "gguf" and not experts:  # what its GELU costs this model, four times
            expected[GRAPH] += 4 * entry["runtime"]["graph"]["mean_kld_of_float16_gelu"]
            assert expected[GRAPH] < 2e-5
        expected["same_top_p"] = gates["same_top_p"]["limit"]
        assert {name: gate["limit"] for name, gate in gates.items()} == pytest.approx(expected, rel=1e-9)
        assert all("does not predict this text" in gates[name]["note"] for name in gates if name in RELATIVE)
        assert entry["weights"]["exact_fraction"] == 1.0
        naive = entry["baseline"]["logits"]
        assert 0 < entry["logits"]["mean_kld"] <= expected["mean_kld"] < naive["mean_kld"] / 5
        assert naive["same_top_p"] < expected["same_top_p"] <= entry["logits"]["same_top_p"]
    levels = {one["accuracy_level"]: one for one in entry["alternatives"]}
    assert levels[0]["passed"]
    assert levels[0]["mean_kld"] < levels[4]["mean_kld"]
    assert levels[0]["decode_mean_kld"] < 1e-9
