"""Gates: which limits apply, and what passes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from converter.errors import UsageError
from targets.target import Difference
from validation.exactness import NAN_ULP, TensorExactness, WeightExactness
from validation.gates import (
    MAY_NOT_RUN,
    Gate,
    check_unrun,
    judge,
    judge_built,
    judge_engine,
    judge_graph,
    not_run,
    noted,
    verdict,
)
from validation.limits import DENSE, EXPERTS, KNOWN, TEXT, WEIGHTS, absolute
from validation.limits import ENGINE as ENGINE_GATES
from validation.metrics import LogitMetrics, compare


def limits(given: Mapping[str, float], **options: Any) -> Mapping[str, float]:
    return absolute(given, **options).values


def tensor(exact: int, blocks: int = 10_000, block: int | None = 32, **fields: Any) -> TensorExactness:
    values = (block or 32) * blocks
    counts = (blocks, exact) if block is not None else (0, 0)
    plain = TensorExactness("w", "w", "Q4_0", block, values, 32 * exact, *counts, 0, 0.0)
    return replace(plain, **fields)


def weights(exact: int, blocks: int = 10_000, ulp: int = 0) -> WeightExactness:
    """A lattice weight whose other blocks are wrong."""
    return WeightExactness((tensor(exact, blocks, max_ulp=ulp, wrong=blocks - exact, coded=True),))


def named(gates: Sequence[Gate], name: str) -> Gate:
    (gate,) = (gate for gate in gates if gate.name == name)
    return gate


@pytest.fixture(scope="module")
def equal() -> LogitMetrics:
    logits = np.arange(12, dtype=np.float32).reshape(3, 4)
    return compare(logits, logits, np.array([1, 2, -1]))


@pytest.mark.parametrize("table", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_no_share_of_wrong_blocks_or_values_is_small_enough(table: Mapping[str, float]) -> None:
    assert (table["exact_fraction"], table["exact_values"]) == (1.0, 1.0)


@pytest.mark.parametrize(("exact", "passed"), [(10_000_000, True), (9_999_999, False)])
def test_one_wrong_block_of_ten_million_fails(exact: int, passed: bool, equal: LogitMetrics) -> None:
    gate = named(judge(limits({}), weights(exact, 10_000_000), equal), "exact_fraction")
    assert (gate.value, gate.passed) == (exact / 10_000_000, passed)


def test_one_wrong_value_of_a_float_tensor_fails_and_is_named(equal: LogitMetrics) -> None:
    floats = tensor(0, 10_000_000, block=None, weight="norm", wrong=1)
    gate = named(judge(limits({}), WeightExactness((tensor(9), floats)), equal), "exact_values")
    assert not gate.passed
    assert gate.note == "1 value is not what the checkpoint's become; the first in norm"


@pytest.mark.parametrize(
    ("exact", "blocks", "ulp", "note"),
    [
        (7_462, 10_000, 1, "2,538 blocks are not exact; largest error 1 bf16 ulp"),
        (99, 100, 70, "1 block is not exact; largest error 70 bf16 ulp"),
        (10_000, 10_000, 0, ""),
    ],
)
def test_a_failed_exactness_gate_says_how_much_is_not_exact(
    exact: int, blocks: int, ulp: int, note: str, equal: LogitMetrics
) -> None:
    assert judge(limits({}), weights(exact, blocks, ulp=ulp), equal)[0].note == note


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"max_ulp": 19_462_144, "precision": "f32"}, "largest error 19462144 f32 ulp"),
        ({"max_ulp": NAN_ULP["bf16"] + 1, "precision": "f32"}, "largest error 65281 f32 ulp"),
        ({"max_ulp": NAN_ULP["bf16"]}, "largest error 65280 bf16 ulp"),
        ({"max_ulp": NAN_ULP["bf16"], "nan_values": 1}, "1 value is no number"),
        ({"max_ulp": NAN_ULP["f32"], "precision": "f32", "nan_values": 1_234}, "1,234 values are no numbers"),
    ],
)
def test_the_note_of_a_wrong_block_names_the_precision_and_what_is_no_number(
    fields: dict[str, Any], error: str, equal: LogitMetrics
) -> None:
    wrong = tensor(1, 2, wrong=1, coded=True, **fields)
    gate = judge(limits({}), WeightExactness((wrong,)), equal)[0]
    assert gate.note == f"1 block is not exact; {error}"


def test_the_note_counts_errors_of_each_precision_apart(equal: LogitMetrics) -> None:
    two = (tensor(1, 2, wrong=1, max_ulp=3), tensor(1, 2, wrong=1, max_ulp=900, precision="f32"))
    gate = judge(limits({}), WeightExactness(two), equal)[0]
    assert gate.note == "2 blocks are not exact; largest error 3 bf16 ulp, 900 f32 ulp"


def test_blocks_that_no_artifact_can_hold_do_not_count_as_wrong(equal: LogitMetrics) -> None:
    some = tensor(6_000, not_representable=3_990, off_lattice=10, max_ulp=1, coded=True)
    gate = judge(limits({}), WeightExactness((some,)), equal)[0]
    assert (gate.name, gate.value, gate.passed) == ("exact_fraction", 1.0, True)
    assert gate.note == (
        "3,990 blocks are not counted, whose scale the artifact's type cannot hold; "
        "10 blocks are not counted, which lie on no lattice in the checkpoint"
    )
    worse = WeightExactness((replace(some, wrong=1, exact_blocks=5_999),))
    assert not judge(limits({}), worse, equal)[0].passed


@pytest.mark.parametrize(("off", "passed"), [(10, True), (11, False)])
def test_a_thousandth_of_the_trained_blocks_may_lie_on_no_lattice(
    off: int, passed: bool, equal: LogitMetrics
) -> None:
    found = WeightExactness((tensor(10_000 - off, off_lattice=off, coded=True), tensor(5, 10, off_lattice=5)))
    gate = named(judge(limits({}), found, equal), "on_lattice_fraction")
    assert (gate.value, gate.passed) == (pytest.approx(1 - off / 10_000), passed)
    assert ("--off-lattice" in gate.note) is not passed


def test_a_matrix_that_should_be_coded_and_lies_on_no_lattice_counts_with_all_its_values(
    equal: LogitMetrics,
) -> None:
    whole = tensor(0, 10_000, block=None, coded=True)
    for found in (WeightExactness((whole,)), WeightExactness((tensor(10_000, coded=True), whole))):
        assert not named(judge(limits({}), found, equal), "on_lattice_fraction").passed
        accepted = judge(limits({}, off_lattice=True), found, equal)
        assert named(accepted, "on_lattice_fraction").passed


def test_divergence_is_a_greatest_and_agreement_a_least_value(equal: LogitMetrics) -> None:
    bounds = limits({"mean_kld": 0.01, "same_top_p": 0.9})
    for metrics, expected in (
        (replace(equal, mean_kld=0.01, same_top_p=0.9), [True, True, True]),
        (replace(equal, mean_kld=0.0101, same_top_p=0.9), [True, False, True]),
        (replace(equal, mean_kld=0.0, same_top_p=0.89), [True, True, False]),
    ):
        judged = judge(bounds, weights(10_000), metrics)
        names = ("exact_fraction", "mean_kld", "same_top_p")
        assert [named(judged, name).passed for name in names] == expected


def test_limits_can_be_set_for_every_figure(equal: LogitMetrics) -> None:
    assert limits({})["mean_kld"] < limits({}, experts=True)["mean_kld"]
    bounds = limits({"exact_fraction": 0.5, "max_kld": 1.0, "ppl": 1.5})
    assert set(bounds) <= set(KNOWN)
    found = {gate.name: gate.passed for gate in judge(bounds, weights(6_000), equal)}
    assert found == {
        "exact_fraction": True,
        "exact_values": True,
        "on_lattice_fraction": True,
        "mean_kld": True,
        "same_top_p": True,
        "max_kld": True,
        "ppl": False,
    }


def test_decoding_is_judged_where_the_runtime_measures_it(equal: LogitMetrics) -> None:
    bounds = limits({"decode_mean_kld": 0.01})
    assert "decode_mean_kld" not in {gate.name for gate in judge(bounds, weights(10_000), equal)}
    for value, passed in ((0.01, True), (0.0101, False), (None, False)):
        gate = judge(bounds, weights(10_000), equal, {"mean_kld": value, "max_kld": value})[-1]
        assert (gate.name, gate.limit, gate.value, gate.passed) == ("decode_mean_kld", 0.01, value, passed)
        assert gate.note == ("" if value else "NaN or infinite logits, decoding token by token")


def test_decoding_without_rounding_has_less_room(equal: LogitMetrics) -> None:
    measured: dict[str, float | None] = {"mean_kld": 2e-3, "max_kld": 2e-3}
    assert judge(limits({}), weights(10_000), equal, measured)[-1].passed
    gate = judge(limits({}), weights(10_000), equal, measured, rounded=False)[-1]
    assert (gate.limit, gate.passed) == (1e-3, False)
    narrow = limits({"decode_mean_kld": 1e-6})
    assert judge(narrow, weights(10_000), equal, measured, rounded=False)[-1].limit == 1e-6


def test_a_logit_that_is_not_finite_fails_every_gate_of_the_logits() -> None:
    good = np.ones((4, 3), np.float32)
    bad = good.copy()
    bad[2, 1] = np.nan
    tokens = np.zeros(4, np.int64)
    for metrics, whose in (
        (compare(good, bad, tokens), "artifact"),
        (compare(bad, good, tokens), "reference"),
    ):
        judged = judge(limits({}), weights(10_000), metrics)
        assert all(named(judged, name).passed for name in WEIGHTS)
        others = [gate for gate in judged if gate.name not in WEIGHTS]
        assert not any(gate.passed for gate in others)
        assert all(gate.value is None for gate in others)
        assert {gate.note for gate in others} == {
            f"NaN or infinite logits of the {whose} at 1 of 4 positions"
        }


@pytest.mark.parametrize(
    ("value", "passed"), [(1e-4, True), (1.1e-4, False), (math.nan, False), (math.inf, False)]
)
def test_the_graph_has_a_narrow_gate(value: float, passed: bool) -> None:
    gate = judge_graph(limits({})["graph_kld"], value)
    assert (gate.name, gate.passed) == ("graph_kld", passed)
    assert bool(gate.note) is not passed


def test_only_what_decides_something_fails_an_artifact_that_is_not_as_built() -> None:
    named_otherwise = Difference("general.name", "a", "b", deciding=False)
    window = Difference("gemma4.attention.sliding_window", "64", "65")
    assert judge_built([]).passed
    assert judge_built([named_otherwise]).passed
    gate = judge_built([named_otherwise, window, window])
    assert (gate.name, gate.limit, gate.value, gate.passed) == ("same_as_built", 0, 2, False)
    assert gate.note == "gemma4.attention.sliding_window: expected 64, found 65 (and 1 more)"


def test_a_gate_that_did_not_run_proves_nothing() -> None:
    passed, failed = Gate("a", 1, 1, True), Gate("b", 1, 2, False)
    unrun = not_run("graph_kld", 1e-4, "no room", ())
    assert (unrun.passed, unrun.note, unrun.allowed) == (None, "did not run: no room", False)
    assert verdict([passed]) is True
    assert verdict([passed, unrun]) is None
    assert verdict([unrun, failed, passed]) is False
    allowed = not_run("graph_kld", 1e-4, "no room", ("graph_kld",))
    assert verdict([passed, allowed]) is None
    assert allowed.entry()["allowed"] is True


def test_only_gates_that_may_not_run_can_be_allowed_not_to() -> None:
    check_unrun(MAY_NOT_RUN)
    with pytest.raises(UsageError, match="gate 'exact_fraction' always runs"):
        check_unrun(["exact_fraction"])


def test_what_is_said_of_a_limit_goes_behind_what_is_said_of_the_value() -> None:
    gates = noted([Gate("a", 1, 1, True), Gate("b", 1, 2, False, "too far")], {"b": "narrow", "c": "x"})
    assert [gate.note for gate in gates] == ["", "too far; narrow"]


def greedy(largest: float, gap: float | None, equal: int = 3) -> dict[str, object]:
    """What an engine's texts were, of which one leaves the reference's."""
    texts = [{"divergence": None}, {"divergence": {"gap": gap}}]
    return {"largest_gap": largest, "characters": 90, "equal_characters": equal, "texts": texts}


ENGINE = {
    "tokenizer": {"texts": 4, "equal": 4, "equal_fraction": 1.0},
    "prompts": {
        "chats": 4,
        "equal": 4,
        "equal_fraction": 1.0,
        "refused": 0,
        "difference": None,
        "runtime_limits": [],
    },
    "ends": {"equal_fraction": 1.0, "missing": [], "extra": [], "lost": []},
    "greedy": greedy(0.5, 0.5),
    "scores": {"mean_abs": 0.05},
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
    assert [gate.name for gate in gates] == list(ENGINE_GATES)
    assert [gate.name for gate in gates if not gate.passed] == failed


def test_without_answers_the_text_side_alone_is_judged() -> None:
    read = {key: ENGINE[key] for key in TEXT.values()}
    assert [gate.name for gate in judge_engine(limits({}), read)] == list(TEXT)
    without = judge_engine(limits({}), {**read, "prompts": None})  # a checkpoint without a chat template
    assert [gate.name for gate in without] == ["engine_same_tokens", "engine_same_ends"]


LIMIT = {"text": "a", "token": 1, "checkpoint": [5], "engine": [6]}


@pytest.mark.parametrize(
    ("gate", "value", "passed", "note"),
    [
        (
            "engine_same_tokens",
            {"texts": 4, "equal": 3, "equal_fraction": 1.0, "runtime_limits": [LIMIT]},
            True,
            "not counted: 1 text that the runtime reads otherwise by itself",
        ),
        (
            "engine_same_tokens",
            {"texts": 4, "equal": 4, "equal_fraction": 0.8, "hidden": {"wrong": [{"text": "<x>"}]}},
            False,
            "token '<x>' is hidden or shown, which it is not to be",
        ),
        (
            "engine_same_prompts",
            {
                "chats": 4,
                "equal": 2,
                "equal_fraction": 0.5,
                "difference": {"chat": "one turn", "error": "it fails"},
                "runtime_limits": [],
            },
            False,
            "2 of 4 chats become another prompt: one turn: it fails",
        ),
        (
            "engine_same_ends",
            {"equal_fraction": 0.3, "missing": [{"id": 1, "text": "<eos>"}], "lost": []}
            | {"extra": [{"id": 3, "text": "<unk>"}]},
            False,
            "goes on after 1 ('<eos>'); ends at 3 ('<unk>'), which the checkpoint does not",
        ),
    ],
)
def test_a_gate_of_the_text_side_says_what_differs(
    gate: str, value: dict[str, object], passed: bool, note: str
) -> None:
    judged = {one.name: one for one in judge_engine(limits({}), {**ENGINE, TEXT[gate]: value})}
    assert (judged[gate].passed, judged[gate].note) == (passed, note)
