"""Every seeded mistake gives an artifact of its own that its runtime still runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from derivations import DERIVATIONS, ENDS, GRAPH, PROMPTS, TOKENS, VALUES, Derivation

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.demo import DEMO
from targets.plan import find_target
from validation.runners import find_runner

CASES = [
    pytest.param(one, target, id=f"{one.name}-{target}")
    for one in DERIVATIONS
    for target in one.targets
    if target != "litert"  # an export takes a minute
]
#: Longer than twice the window.
SEQUENCE = [2, *range(300, 440)]

Open = Callable[[str], Checkpoint]
Right = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def opened(checkpoint_factory: Callable[..., Path]) -> Open:
    """``opened(model)``: a derivation's model, or the demo."""
    return lambda model: open_checkpoint(DEMO if model == "demo" else checkpoint_factory(model))


@pytest.fixture(scope="module")
def right(opened: Open, tmp_path_factory: pytest.TempPathFactory) -> Right:
    """``right(target, model)``: the artifact without a mistake."""
    made: dict[tuple[str, str], Path] = {}

    def artifact(target: str, model: str) -> Path:
        if (target, model) not in made:
            checkpoint, directory = opened(model), tmp_path_factory.mktemp(f"{target}-{model}")
            plan = find_target(target).plan(checkpoint, "model", {})
            find_target(target).write(checkpoint, plan, directory)
            made[target, model] = directory / plan.artifacts[0]
        return made[target, model]

    return artifact


def contents(artifact: Path) -> dict[str, bytes]:
    """Every file beside an artifact."""
    return {file.name: file.read_bytes() for file in sorted(artifact.parent.iterdir())}


def logits(target: str, artifact: Path, vocabulary: int, directory: Path) -> np.ndarray:
    output = directory / "logits.npy"
    choice = {"accuracy_level": 0} if target == "onnx" else {}
    find_runner(target).logits(
        artifact, [SEQUENCE], vocabulary, output, lambda done, total: None, choice=choice
    )
    return np.load(output)


def floats(target: str, artifact: Path, checkpoint: Checkpoint) -> dict[str, bytes]:
    """Every float tensor of an artifact, as it is read back."""
    stored = find_target(target).describe(artifact, checkpoint)
    return {
        name: stored[name].floats(0, weight.rows).tobytes()
        for name, weight in checkpoint.weights.items()
        if weight.lattice is None
    }


@pytest.mark.parametrize(("derivation", "target"), CASES)
def test_a_mistake_makes_another_artifact_that_runs(
    derivation: Derivation, target: str, opened: Open, right: Right, tmp_path: Path
) -> None:
    checkpoint, whole = opened(derivation.model), right(target, derivation.model)
    before = {file: file.read_bytes() for file in checkpoint.files}
    wrong = derivation.write(target, checkpoint, tmp_path)
    assert contents(wrong) != contents(whole)
    assert {file: file.read_bytes() for file in checkpoint.files} == before
    others = floats(target, wrong, checkpoint) != floats(target, whole, checkpoint)
    assert others == (derivation.gates[target] == VALUES)
    vocabulary = checkpoint.architecture.vocabulary
    found, expected = (logits(target, one, vocabulary, tmp_path) for one in (wrong, whole))
    assert np.isfinite(found).all()
    assert np.array_equal(found, expected) != (derivation.gates[target] in (GRAPH, VALUES))


def test_nothing_stays_seeded(right: Right, opened: Open, tmp_path: Path) -> None:
    for derivation in DERIVATIONS:
        with derivation.seeded():
            pass
    target = find_target("gguf")
    target.write(opened("demo"), target.plan(opened("demo"), "model", {}), tmp_path)
    assert (tmp_path / "gguf" / right("gguf", "demo").name).read_bytes() == right("gguf", "demo").read_bytes()


def test_the_mistakes_are_of_every_kind() -> None:
    names = [one.name for one in DERIVATIONS]
    assert len(set(names)) == len(names) >= 16
    gates = {gate for one in DERIVATIONS for gate in one.gates.values()}
    assert gates == {GRAPH, VALUES, TOKENS, PROMPTS, ENDS}
