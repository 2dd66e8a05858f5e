"""Every seeded mistake fails a gate, also where the artifact is not compared with what is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from derivations import DERIVATIONS, GRAPH, VALUES, Derivation

from converter.checkpoint import open_checkpoint
from converter.demo import DEMO
from targets.plan import find_target
from validation.preparation import Prepared, Settings, prepare
from validation.validation import prove

#: LiteRT's graphs take a minute to export each, so of its mistakes these are tried here.
LITERT = ("window-65",)
CASES = [
    pytest.param(derivation, target, id=f"{derivation.name}-{target}")
    for derivation in DERIVATIONS
    for target, gate in derivation.gates.items()
    if gate in (GRAPH, VALUES) and (target != "litert" or derivation.name in LITERT)
]

Make = Callable[[str], Prepared]


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
                checkpoint = open_checkpoint(DEMO if model == "demo" else checkpoint_factory(model))
                settings = Settings(foreign=True, cache=cache)
                made[model] = stack.enter_context(prepare(checkpoint, settings))
            return made[model]

        yield make


def failing(prepared: Prepared, target: str, artifact: Path) -> dict[str, Any]:
    """The gates that an artifact does not pass, by name, with their values."""
    checkpoint = prepared.checkpoint
    plan = find_target(target).plan(checkpoint, "model", {})
    source = {"files": [str(checkpoint.path)]}  # known to this cache alone
    gates = prove(prepared, target, artifact, plan, source=source).entry["gates"]
    return {gate["name"]: gate["value"] for gate in gates if not gate["passed"]}


@pytest.mark.parametrize(("derivation", "target"), CASES)
def test_a_mistake_fails_a_gate(derivation: Derivation, target: str, prepared: Make, tmp_path: Path) -> None:
    model = prepared(derivation.model)
    artifact = derivation.write(target, model.checkpoint, tmp_path)
    assert derivation.gates[target] in failing(model, target, artifact)


@pytest.mark.parametrize("target", ["gguf", "onnx"])
@pytest.mark.parametrize("model", sorted({derivation.model for derivation in DERIVATIONS}))
def test_without_a_mistake_nothing_fails(model: str, target: str, prepared: Make, tmp_path: Path) -> None:
    right = prepared(model)
    format = find_target(target)
    plan = format.plan(right.checkpoint, "model", {})
    format.write(right.checkpoint, plan, tmp_path)
    assert failing(right, target, tmp_path / plan.artifacts[0]) == {}
