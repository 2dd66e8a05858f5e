"""Every seeded mistake fails a gate, also where the artifact is not compared with what is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from support.derivations import BUILT, DERIVATIONS, ENDS, GRAPH, PROMPTS, TOKENS, VALUES, Derivation
from targets.onnx import comparison
from targets.target import find_target
from validation.proof import Artifact, prove
from validation.reference.ahead import Identity
from validation.settings import Prepared, Settings, prepare

pytestmark = pytest.mark.slow

CASES = [
    pytest.param(derivation, target, id=f"{derivation.name}-{target}")
    for derivation in DERIVATIONS
    for target, gate in derivation.gates.items()
    if gate != BUILT and target != "litert"
]
#: LiteRT's graphs take long to export, so of its mistakes this one is tried here, in a model of two layers, a
#: kind of attention each.  What the mask hides is tried in ``tests/validation/test_excerpt.py``; that right
#: graphs pass, in every kind of model, is in ``tests/validation/test_litert.py``.
LITERT = ("rotated-pairs",)
TWO_LAYERS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
#: Gates that say nothing of how well a random model is computed with rounded activations.
SHARP = {GRAPH, VALUES, TOKENS, PROMPTS, ENDS}
SHALLOW = {"demo": ("e2b", {**TWO_LAYERS, "num_kv_shared_layers": 0})}

Make = Callable[[str], Prepared]


@pytest.fixture(scope="module", autouse=True)
def _graphs_built_once() -> Iterator[None]:
    """The right ONNX graph of a model, with which each mistake's is compared, takes seconds to build."""
    made: dict[str, bytes] = {}
    original = comparison.serialized_graph

    def serialized(*arguments: Any) -> bytes:
        key = repr(arguments)
        if key not in made:
            made[key] = original(*arguments)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "serialized_graph", serialized)
        yield


@pytest.fixture(scope="module")
def prepared(
    checkpoint_factory: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Make]:
    """What a proof of a model needs, the shipped one or a variant's, made once for all mistakes."""
    cache = tmp_path_factory.mktemp("reference-cache")
    made: dict[str, Prepared] = {}
    with ExitStack() as stack:

        def make(model: str) -> Prepared:
            if model not in made:
                if model.startswith("shallow "):
                    variant, text = SHALLOW[model.removeprefix("shallow ")]
                    directory = checkpoint_factory(variant, text=text)
                else:
                    directory = DEMO if model == "demo" else checkpoint_factory(model)
                checkpoint = open_checkpoint(directory)
                settings = Settings(foreign=True, cache=cache)
                made[model] = stack.enter_context(prepare(checkpoint, settings))
            return made[model]

        yield make


def failing(prepared: Prepared, target: str, artifact: Path) -> dict[str, Any]:
    """The gates that an artifact fails, by name, with their values; all have run."""
    checkpoint = prepared.checkpoint
    plan = find_target(target).plan(checkpoint, "model", {})
    identity = Identity(lambda: [str(checkpoint.source.directory())])  # known to this cache alone
    gates = prove(prepared, Artifact(artifact, plan), identity=identity).entry["gates"]
    assert None not in [gate["passed"] for gate in gates]
    return {gate["name"]: gate["value"] for gate in gates if not gate["passed"]}


@pytest.mark.parametrize(("derivation", "target"), CASES)
def test_a_mistake_fails_a_gate(derivation: Derivation, target: str, prepared: Make, tmp_path: Path) -> None:
    model = prepared(derivation.model)
    artifact = derivation.write(target, model.checkpoint, tmp_path)
    assert derivation.gates[target] in failing(model, target, artifact)


@pytest.mark.slow
@pytest.mark.parametrize(
    "derivation", [pytest.param(one, id=one.name) for one in DERIVATIONS if one.name in LITERT]
)
def test_a_mistake_in_litert_fails_a_gate(derivation: Derivation, prepared: Make, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    model = prepared(f"shallow {derivation.model}")
    artifact = derivation.write("litert", model.checkpoint, tmp_path)
    assert set(failing(model, "litert", artifact)) & SHARP == {GRAPH}


@pytest.mark.parametrize(
    ("derivation", "target"),
    [
        pytest.param(derivation, target, id=f"{derivation.name}-{target}")
        for derivation in DERIVATIONS
        for target, gate in derivation.gates.items()
        if gate not in (GRAPH, VALUES) and target != "litert"
    ],
)
def test_what_changes_no_logit_is_caught_by_the_comparison_too(
    derivation: Derivation, target: str, prepared: Make, tmp_path: Path
) -> None:
    """Tokens, prompts and ends of answers; and an epsilon that costs less than float arithmetic does."""
    model = prepared(derivation.model)
    judged = replace(model, settings=replace(model.settings, foreign=False))
    artifact = derivation.write(target, model.checkpoint, tmp_path)
    assert {BUILT, derivation.gates[target]} <= set(failing(judged, target, artifact))


def test_the_mistakes_are_of_every_kind() -> None:
    names = [one.name for one in DERIVATIONS]
    assert len(set(names)) == len(names) >= 16
    gates = {gate for one in DERIVATIONS for gate in one.gates.values()}
    assert gates == {GRAPH, VALUES, TOKENS, PROMPTS, ENDS, BUILT}


@pytest.mark.parametrize("target", ["gguf", "onnx"])
@pytest.mark.parametrize("model", sorted({derivation.model for derivation in DERIVATIONS}))
def test_without_a_mistake_nothing_fails(model: str, target: str, prepared: Make, tmp_path: Path) -> None:
    right = prepared(model)
    format = find_target(target)
    plan = format.plan(right.checkpoint, "model", {})
    format.write(right.checkpoint, plan, tmp_path)
    assert failing(right, target, tmp_path / plan.artifacts[0]) == {}
