"""LiteRT bundles of every kind of model, proven with the gates that apply when nobody sets any."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("litert_torch")
import torch
from safetensors.torch import load_file, save_file

from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from targets.litert.reading import LEFT_OUT
from targets.target import find_target
from validation.gates import SAME_AS_BUILT
from validation.limits import RELATIVE, absolute
from validation.logits import map_logits
from validation.metrics import compare
from validation.proof import validate
from validation.runtimes.litert import runner
from validation.runtimes.litert_session import open_decoder

# each proves a bundle that it may have to export itself
pytestmark = pytest.mark.slow

#: Schemes and layouts, so that their graphs are those of ``tests/targets/litert/export/test_graph.py``.
BUNDLES = {
    "demo": ("max7", "hub"),
    "e2b": ("extremum8", "transformers"),
    "26b-a4b": ("extremum8", "hub"),
    "12b": ("max7", "hub"),
    "gemma3": ("max7", "hub"),
}
TOKENS = [2, *(7 + 11 * i % 1200 for i in range(150))]


@pytest.fixture(scope="session")
def bundle(checkpoint_factory: Callable[..., Path], litert_bundle: Callable[..., Path]) -> Callable[..., Any]:
    """``bundle(variant, **options)`` is a checkpoint's directory and its bundle."""

    def make(variant: str, **options: object) -> tuple[Path, Path]:
        scheme, layout = BUNDLES[variant]
        other = {} if layout == "hub" else {"layout": layout}
        model = DEMO if variant == "demo" else checkpoint_factory(variant, scheme, **other)
        return model, litert_bundle(variant, scheme, layout, **options)

    return make


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference logits that these tests share."""
    return tmp_path_factory.mktemp("litert-reference")


@pytest.mark.parametrize("variant", sorted(BUNDLES))
def test_every_kind_of_model_is_exact_and_what_remains_is_the_runtimes(
    variant: str, bundle: Callable[..., tuple[Path, Path]], cache: Path, tmp_path: Path
) -> None:
    model, artifact = bundle(variant)
    entry = validate(open_checkpoint(model), "litert", artifact, scratch=tmp_path, cache=cache)["entry"]
    limits = absolute({}, experts=variant == "26b-a4b", allowances=runner.allowances).values
    gates = {gate["name"]: gate for gate in entry["gates"]}
    assert {name: gates[name]["limit"] for name in gates if name not in RELATIVE} == {
        **{name: limit for name, limit in limits.items() if name not in RELATIVE},
        SAME_AS_BUILT: 0,
    }
    assert set(RELATIVE) <= set(gates)
    if variant != "demo":
        assert all("does not predict this text" in gates[name]["note"] for name in RELATIVE)
    assert entry["passed"]
    assert entry["weights"]["exact_fraction"] == 1.0
    runtime, logits = entry["runtime"], entry["logits"]
    assert runtime["rounded_activations"] is True
    assert logits["mean_kld"] > 1e-5
    assert runtime["mean_kld_same_weights"] == pytest.approx(logits["mean_kld"], rel=0.3)
    assert runtime["decode"]["max_kld"] < 1e-9
    assert list(tmp_path.iterdir()) == []


def test_a_prefill_leaves_the_caches_that_decoding_does(
    bundle: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    decoder = open_decoder(bundle("demo")[1], tmp_path)
    whole, single = decoder.prefill(TOKENS), decoder.empty_cache()
    for position, token in enumerate(TOKENS):
        _, single = decoder.step(token, position, single)
    assert whole.keys() == single.keys()
    for name, cache in single.items():
        axis = 2 if name.startswith("kv_cache_k") else 3
        kept = [np.take(one, range(len(TOKENS)), axis) for one in (whole[name], cache)]
        assert np.abs(kept[1]).max(axis=(1, 5 - axis)).min() > 0
        np.testing.assert_allclose(*kept, atol=1e-4)


def test_externalised_embedders_give_the_same_logits(
    bundle: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    vocabulary = open_checkpoint(bundle("e2b")[0]).architecture.vocabulary
    made = []
    for options in ({}, {"externalize_embedder": True}):
        output = tmp_path / f"{len(made)}.npy"
        runtime = runner.logits(
            bundle("e2b", **options)[1], [TOKENS], vocabulary, output, lambda done, total: None
        )
        made.append(map_logits(output, len(TOKENS)))
    signatures = set(runtime.settings["signatures"])  # type: ignore[call-overload]
    assert {"decode", "decode_embedder", "decode_per_layer_embedder"} < signatures
    assert compare(made[0], made[1], np.full(len(TOKENS), -1)).mean_kld < 1e-9


@pytest.fixture(scope="module")
def constant(checkpoint_factory: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``constant(pattern, values)``: a model of as many layers, an even number, as there are values. All
    values of the tensors whose names match are that of their layer."""

    def make(pattern: str, values: tuple[float, ...]) -> Path:
        text = {
            "num_hidden_layers": len(values),
            "layer_types": ["sliding_attention", "full_attention"] * (len(values) // 2),
            "num_kv_shared_layers": len(values) - 2,
        }
        source = checkpoint_factory("e2b", text=text)
        directory = tmp_path_factory.mktemp("constant") / "model"
        shutil.copytree(source, directory)
        (file,) = directory.glob("*.safetensors")
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if found := re.search(rf"language_model\.layers\.([0-9]+)\.(?:{pattern})", name):
                tensors[name] = torch.full_like(tensor, values[int(found[1])])
        save_file(tensors, file, {"format": "pt"})
        return directory

    return make


def converted(model: Path, directory: Path) -> Path:
    checkpoint, target = open_checkpoint(model), find_target("litert")
    plan = target.plan(checkpoint, "model", {})
    target.write(checkpoint, plan, directory)
    return directory / plan.artifacts[0]


def test_scalars_and_vectors_that_the_converter_may_fold_are_proven(
    constant: Any, cache: Path, tmp_path: Path
) -> None:
    """A product with 1 is left out of the graph; 0, -1 and equal values are constants like others."""
    values = (0.5, 1.0, 0.0, -1.0)
    model = constant(r".*norm\.weight|layer_scalar", values)
    artifact = converted(model, tmp_path)
    entry = validate(open_checkpoint(model), "litert", artifact, scratch=tmp_path, cache=cache)["entry"]
    assert entry["passed"] is True
    formats = {
        one["name"]: one["format"]
        for one in entry["weights"]["per_tensor"]
        if one["name"].endswith("layer_scalar")
    }
    left_out = {f"layers.{layer}.layer_scalar" for layer, value in enumerate(values) if value == 1}
    assert {name for name, format in formats.items() if format == LEFT_OUT} == left_out


def test_a_factor_that_is_not_left_out_where_it_should_be_is_caught(
    constant: Any, cache: Path, tmp_path: Path
) -> None:
    right, wrong = (constant("layer_scalar", (first, 0.7)) for first in (1.0, 0.9))
    artifact = converted(wrong, tmp_path)
    entry = validate(open_checkpoint(right), "litert", artifact, scratch=tmp_path, cache=cache, foreign=True)[
        "entry"
    ]
    failed = {gate["name"] for gate in entry["gates"] if gate["passed"] is False}
    assert "graph_kld" in failed
