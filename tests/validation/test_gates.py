"""Gates: which limits apply, and what passes them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from converter.errors import UsageError
from validation.gates import DENSE, EXPERTS, KNOWN, judge, judge_engine, limits
from validation.metrics import LogitMetrics, compare
from validation.weights import NAN_ULP, TensorExactness, WeightExactness


def weights(exact: int, blocks: int = 10_000, block: int | None = 32, ulp: int = 0) -> WeightExactness:
    return WeightExactness(
        (TensorExactness("w", "w", "Q4_0", block, 32 * blocks, 32 * exact, blocks, exact, ulp, 0.0),)
    )


@pytest.fixture(scope="module")
def equal() -> LogitMetrics:
    logits = np.arange(12, dtype=np.float32).reshape(3, 4)
    return compare(logits, logits, np.array([1, 2, -1]))


def test_the_exactness_gate_is_9999_of_10000_blocks() -> None:
    assert DENSE["exact_fraction"] == EXPERTS["exact_fraction"] == 0.9999


@pytest.mark.parametrize(("exact", "passed"), [(10_000, True), (9_999, True), (9_998, False)])
def test_exactness_is_a_least_share(exact: int, passed: bool, equal: LogitMetrics) -> None:
    gate = judge(limits({}), weights(exact), equal)[0]
    assert (gate.name, gate.value, gate.passed) == ("exact_fraction", exact / 10_000, passed)


@pytest.mark.parametrize(
    ("exact", "blocks", "ulp", "note"),
    [
        (7_462, 10_000, 1, "2538 blocks are not exact; largest error 1 bf16 ulp"),
        (99, 100, 70, "1 block is not exact; largest error 70 bf16 ulp"),
        (0, 2, NAN_ULP, "2 blocks are not exact; values that are no numbers"),
        (9_999, 10_000, 1, ""),
    ],
)
def test_a_failed_exactness_gate_says_how_much_is_not_exact(
    exact: int, blocks: int, ulp: int, note: str, equal: LogitMetrics
) -> None:
    assert judge(limits({}), weights(exact, blocks, ulp=ulp), equal)[0].note == note


def test_divergence_is_a_greatest_and_agreement_a_least_value(equal: LogitMetrics) -> None:
    bounds = limits({"mean_kld": 0.01, "same_top_p": 0.9})
    for metrics, expected in (
        (replace(equal, mean_kld=0.01, same_top_p=0.9), [True, True, True]),
        (replace(equal, mean_kld=0.0101, same_top_p=0.9), [True, False, True]),
        (replace(equal, mean_kld=0.0, same_top_p=0.89), [True, True, False]),
    ):
        assert [gate.passed for gate in judge(bounds, weights(10_000), metrics)] == expected


def test_limits_can_be_set_for_every_figure(equal: LogitMetrics) -> None:
    assert limits({})["mean_kld"] < limits({}, experts=True)["mean_kld"]
    bounds = limits({"exact_fraction": 0.5, "max_kld": 1.0, "ppl": 1.5})
    assert set(bounds) <= set(KNOWN)
    found = {gate.name: gate.passed for gate in judge(bounds, weights(6_000), equal)}
    assert found == {
        "exact_fraction": True,
        "mean_kld": True,
        "same_top_p": True,
        "max_kld": True,
        "ppl": False,
    }


def test_decoding_is_judged_where_the_runtime_measures_it(equal: LogitMetrics) -> None:
    bounds = limits({"decode_mean_kld": 0.01})
    assert [gate.name for gate in judge(bounds, weights(10_000), equal)] == list(bounds)[:3]
    for value, passed in ((0.01, True), (0.0101, False), (None, False)):
        gate = judge(bounds, weights(10_000), equal, {"mean_kld": value, "max_kld": value})[-1]
        assert (gate.name, gate.limit, gate.value, gate.passed) == ("decode_mean_kld", 0.01, value, passed)
        assert gate.note == ("" if value else "NaN or infinite logits, decoding token by token")


def test_decoding_without_rounding_has_less_room(equal: LogitMetrics) -> None:
    measured = {"mean_kld": 2e-3, "max_kld": 2e-3}
    assert judge(limits({}), weights(10_000), equal, measured)[-1].passed
    gate = judge(limits({}), weights(10_000), equal, measured, rounded=False)[-1]
    assert (gate.limit, gate.passed) == (1e-3, False)
    narrow = limits({"decode_mean_kld": 1e-6})
    assert judge(narrow, weights(10_000), equal, measured, rounded=False)[-1].limit == 1e-6


@pytest.mark.parametrize(("name", "limit"), [("speed", 1.0), ("mean_kld", math.nan), ("max_kld", math.inf)])
def test_an_unknown_gate_and_a_limit_that_is_none_are_usage_errors(name: str, limit: float) -> None:
    with pytest.raises(UsageError, match=name):
        limits({name: limit})


def test_a_logit_that_is_not_finite_fails_every_gate_of_the_logits() -> None:
    good = np.ones((4, 3), np.float32)
    bad = good.copy()
    bad[2, 1] = np.nan
    tokens = np.zeros(4, np.int64)
    for metrics, whose in (
        (compare(good, bad, tokens), "artifact"),
        (compare(bad, good, tokens), "reference"),
    ):
        exact, *others = judge(limits({}), weights(10_000), metrics)
        assert exact.passed
        assert not any(gate.passed for gate in others)
        assert all(gate.value is None for gate in others)
        assert {gate.note for gate in others} == {
            f"NaN or infinite logits of the {whose} at 1 of 4 positions"
        }


def test_a_checkpoint_without_a_lattice_passes_the_exactness_gate_and_says_why(equal: LogitMetrics) -> None:
    gate = judge(limits({}), weights(0, block=None), equal)[0]
    assert gate.passed
    assert gate.value is None
    assert gate.entry()["note"] == "no weight of this checkpoint lies on a lattice"


def test_a_runtimes_allowance_is_for_dense_models_and_yields_to_the_user() -> None:
    allowances = {"mean_kld": 0.5}
    assert limits({}, allowances=allowances) == {**DENSE, "mean_kld": 0.5}
    assert limits({}, experts=True, allowances=allowances) == EXPERTS
    assert limits({"mean_kld": 0.1}, allowances=allowances)["mean_kld"] == 0.1


def greedy(largest: float, gap: float | None, equal: int = 3) -> dict[str, object]:
    """What an engine's texts were, of which one leaves the reference's."""
    texts = [{"divergence": None}, {"divergence": {"gap": gap}}]
    return {"largest_gap": largest, "characters": 90, "equal_characters": equal, "texts": texts}


ENGINE = {
    "tokenizer": {"texts": 4, "equal": 4, "equal_fraction": 1.0},
    "greedy": greedy(0.5, 0.5),
    "scores": {"mean_abs": 0.1},
}


@pytest.mark.parametrize(
    ("part", "value", "failed"),
    [
        ("tokenizer", {"texts": 4, "equal": 4, "equal_fraction": 1.0}, []),
        ("tokenizer", {"texts": 4, "equal": 3, "equal_fraction": 0.75}, ["engine_same_tokens"]),
        ("greedy", greedy(1.1, 1.1), ["engine_gap"]),
        ("greedy", greedy(0.0, None), []),
        ("greedy", greedy(0.0, None, equal=0), ["engine_gap"]),
        ("greedy", greedy(0.5, 0.5, equal=0), []),
        ("scores", {"mean_abs": 0.3}, ["engine_mean_abs"]),
        ("scores", {"mean_abs": None}, ["engine_mean_abs"]),
        ("scores", None, ["engine_mean_abs"]),
    ],
)
def test_the_gates_of_an_engine(part: str, value: object, failed: list[str]) -> None:
    gates = judge_engine(limits({}), {**ENGINE, part: value})
    assert [gate.name for gate in gates] == ["engine_same_tokens", "engine_gap", "engine_mean_abs"]
    assert [gate.name for gate in gates if not gate.passed] == failed
