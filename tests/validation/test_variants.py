"""Every architecture, converted and proven by the pipeline with the gates that apply when nobody sets any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from converter.demo.variants import VARIANTS
from converter.pipeline import Conversion, convert
from validation.gates import ANSWERS, DECODE, GRAPH, SAME_AS_BUILT
from validation.gates import limits as limits_of
from validation.runners import find_runner


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_is_exact_and_passes_the_default_gates(
    variant: str, checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {"cache": tmp_path / "cache"}
    model = str(checkpoint_factory(variant))
    outcome = convert(Conversion(model, ["gguf", "onnx"], tmp_path / "out", validation=settings))
    assert outcome.exit_status == 0
    experts = variant == "26b-a4b"
    for target, without in (("gguf", (*ANSWERS, *DECODE)), ("onnx", ANSWERS)):
        entry = outcome.report["targets"][target]
        limits = limits_of({}, experts=experts, allowances=find_runner(target).allowances)
        expected = {name: limit for name, limit in limits.items() if name not in without} | {SAME_AS_BUILT: 0}
        if target == "gguf" and not experts:  # what its GELU costs this model, four times
            expected[GRAPH] += 4 * entry["runtime"]["graph"]["mean_kld_of_float16_gelu"]
            assert expected[GRAPH] < 2e-5
        assert {gate["name"]: gate["limit"] for gate in entry["gates"]} == expected
        assert entry["weights"]["exact_fraction"] == 1.0
        assert 0 < entry["logits"]["mean_kld"] <= limits["mean_kld"]
    levels = {one["accuracy_level"]: one for one in entry["alternatives"]}
    assert levels[0]["passed"]
    assert levels[0]["mean_kld"] < levels[4]["mean_kld"]
    assert levels[0]["decode_mean_kld"] < 1e-9
