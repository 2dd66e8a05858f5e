"""Every architecture, converted and proven by the pipeline with the gates that apply when nobody sets any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from converter.demo.variants import VARIANTS
from converter.pipeline import Conversion, convert
from validation.gates import DECODE, DENSE, ENGINE, EXPERTS


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_is_exact_and_passes_the_default_gates(
    variant: str, checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {"cache": tmp_path / "cache", "same_weights": False}
    model = str(checkpoint_factory(variant))
    outcome = convert(Conversion(model, ["gguf", "onnx"], tmp_path / "out", validation=settings))
    assert outcome.exit_status == 0
    limits = EXPERTS if variant == "26b-a4b" else DENSE
    limits = {name: limit for name, limit in limits.items() if name not in ENGINE}
    undecoded = {name: limit for name, limit in limits.items() if name not in DECODE}
    for target, expected in (("gguf", undecoded), ("onnx", limits)):
        entry = outcome.report["targets"][target]
        assert {gate["name"]: gate["limit"] for gate in entry["gates"]} == expected
        assert entry["weights"]["exact_fraction"] == 1.0
        assert 0 < entry["logits"]["mean_kld"] <= limits["mean_kld"]
    levels = {one["accuracy_level"]: one for one in entry["alternatives"]}
    assert levels[0]["passed"]
    assert levels[0]["mean_kld"] < levels[4]["mean_kld"]
    assert levels[0]["decode_mean_kld"] < 1e-9
