"""Which way to run an artifact is kept, of several that were measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.target import Plan, PlannedFile
from validation.choice import Refusal, Trial, alternatives, best, surprising, with_lost_cache
from validation.exactness import WeightExactness
from validation.gates import Gate, not_run
from validation.limits import Limits
from validation.metrics import LogitMetrics, compare
from validation.runners import Runtime
from validation.subject import Subject

_ROW = np.arange(8, dtype=np.float32).reshape(2, 4)
METRICS: LogitMetrics = compare(_ROW, _ROW, np.array([1, -1]))


def trial(level: int, speed: float | None, *, passed: bool = True, mean_kld: float = 1e-3) -> Trial:
    decode = (
        None
        if speed is None
        else {
            "mean_kld": 1e-4,
            "tokens_per_second": speed,
            "fastest_tokens_per_second": speed,
        }
    )
    return Trial(
        {"accuracy_level": level},
        Subject(Path("model.onnx"), Plan("onnx", (PlannedFile("model.onnx"),), ()), {}, WeightExactness(())),
        Runtime("onnxruntime", "1", {} if decode is None else {"decode": decode}),
        Path(f"{level}.npy"),
        replace(METRICS, mean_kld=mean_kld),
        None,
        Limits({}),
        (Gate("mean_kld", 0.01, mean_kld if math.isfinite(mean_kld) else None, passed),),
    )


def level(*trials: Trial) -> object:
    return best(trials).choice["accuracy_level"]


def test_the_preferred_way_is_kept_unless_another_is_more_than_a_tenth_faster() -> None:
    assert level(trial(4, 100), trial(0, 90)) == 4
    assert level(trial(4, 100), trial(0, 105)) == 4
    assert level(trial(4, 100), trial(0, 110)) == 4
    assert level(trial(4, 100), trial(0, 110.1)) == 0


def test_a_way_that_fails_its_gates_is_not_kept_however_fast() -> None:
    assert level(trial(4, 1000, passed=False), trial(0, 10)) == 0
    assert level(trial(4, 10), trial(0, 1000, passed=False)) == 4


def test_if_none_passes_the_closest_to_the_reference_is_kept() -> None:
    far, near = trial(4, 100, passed=False, mean_kld=0.3), trial(0, 10, passed=False, mean_kld=0.1)
    assert level(far, near) == 0
    assert level(near, far) == 0
    assert level(trial(4, 100, passed=False, mean_kld=math.nan), near) == 0


def test_a_gate_that_did_not_run_says_nothing_for_a_way() -> None:
    """Nothing is known of either then, and the closer one is kept."""
    unjudged = (not_run("mean_kld", None, "nothing to go by", ()),)
    fast, near = (replace(one, gates=unjudged) for one in (trial(4, 100, mean_kld=0.3), trial(0, 10)))
    assert level(fast, near) == 0
    assert [one["passed"] for one in alternatives([fast, near], near)] == [None, None]


def test_without_a_speed_the_preferred_way_is_kept() -> None:
    assert level(trial(4, None), trial(0, None)) == 4


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.booleans(), st.floats(0, 1)), min_size=1, max_size=6))
def test_what_is_kept_passes_if_any_does_and_is_the_first_of_them_or_clearly_faster(
    drawn: list[tuple[float, bool, float]],
) -> None:
    tried = [
        trial(index, speed, passed=passed, mean_kld=kld) for index, (speed, passed, kld) in enumerate(drawn)
    ]
    kept = best(tried)
    passing = [one for one in tried if one.passed]
    if passing:
        assert kept.passed
        assert not any(one.speed > 1.1 * kept.speed for one in after(kept, passing))
        assert kept is passing[0] or kept.speed > 1.1 * passing[0].speed
    else:
        assert kept.mean_kld == min(one.mean_kld for one in tried)


def after(one: Trial, trials: list[Trial]) -> list[Trial]:
    return trials[trials.index(one) + 1 :]


def test_the_report_lists_every_way_with_its_figures_and_why_one_does_not_run() -> None:
    preferred, exact = trial(4, 100, passed=False, mean_kld=math.nan), trial(0, 50)
    entries = alternatives([preferred, exact, Refusal({"accuracy_level": 2}, "cannot run it")], exact)
    assert [(one["accuracy_level"], one["chosen"], one["passed"]) for one in entries] == [
        (4, False, False),
        (0, True, True),
        (2, False, False),
    ]
    assert entries[0]["mean_kld"] is None
    assert entries[1] == {
        "accuracy_level": 0,
        "chosen": True,
        "passed": True,
        "mean_kld": 1e-3,
        "same_top_p": 1.0,
        "max_abs": 0.0,
        "decode_mean_kld": 1e-4,
        "decode_tokens_per_second": 50.0,
        "gates": [{"name": "mean_kld", "limit": 0.01, "value": 1e-3, "passed": True}],
    }
    assert entries[2]["error"] == "cannot run it"
    json.dumps(entries, allow_nan=False)


@pytest.mark.parametrize("settings", [{}, {"kv_cache": "f32"}])
def test_a_runtime_that_does_not_decode_has_no_speed(settings: dict[str, object]) -> None:
    one = replace(trial(4, None), runtime=Runtime("llama.cpp", "1", settings))
    assert one.decode is None
    assert one.speed == 0


def test_more_runs_count_at_their_fastest() -> None:
    """What slowed the first run down is not held against the preferred way."""
    slow, other = trial(4, 50), trial(0, 100)
    assert surprising([slow, other])
    again = replace(slow, again=(Runtime("onnxruntime", "1", {"decode": {"fastest_tokens_per_second": 95}}),))
    assert again.speed == 95
    assert not surprising([again, other])
    assert level(again, other) == 4


def test_a_cache_that_is_lost_without_rounding_fails_every_way_to_run_the_graph() -> None:
    """At level 4 the same fault is within what rounding costs."""
    fault = Gate("decode_mean_kld", 1e-3, 4e-3, False)
    rounded = trial(4, 100)
    rounded = replace(rounded, gates=(*rounded.gates, Gate("decode_mean_kld", 0.01, 5e-3, True)))
    settings = {"decode": {"fastest_tokens_per_second": 50}, "rounded_activations": False}
    exact = replace(trial(0, 50), runtime=Runtime("onnxruntime", "1", settings))
    exact = replace(exact, gates=(*exact.gates, fault))
    refusal = Refusal({"accuracy_level": 1}, "no such kernel")
    assert rounded.passed
    judged = with_lost_cache([rounded, refusal, exact])
    assert judged[1] is refusal
    assert [one.passed for one in judged if isinstance(one, Trial)] == [False, False]
    assert all(fault in one.gates for one in judged if isinstance(one, Trial))
    sound = replace(exact, gates=(Gate("decode_mean_kld", 1e-3, 1e-11, True),))
    assert with_lost_cache([rounded, sound]) == [rounded, sound]
