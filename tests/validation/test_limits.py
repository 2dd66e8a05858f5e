"""Which limits apply: absolute ones for a model that predicts the text, relative ones for any other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from converter.errors import UsageError
from validation.limits import (
    CHANCE,
    DENSE,
    EXPERTS,
    KNOWN,
    OWN_NOTE,
    RELATIVE,
    Limits,
    OwnLoss,
    absolute,
    check,
    in_force,
)
from validation.metrics import LogitMetrics, compare
from validation.runners import find_runner

#: What naive rounding costs Gemma 3 270M: least mean KLD, most same top tokens over both scale schemes.
NAIVE = {"mean_kld": 0.2277, "same_top_p": 0.7090}
#: The most that a right artifact loses there, by target.
RIGHT = {
    "gguf": {"mean_kld": 0.0046, "same_top_p": 0.9297},
    "onnx": {"mean_kld": 0.0044, "same_top_p": 0.9414, "decode_mean_kld": 0.0035},
}
VOCABULARY = 1000
RANDOM = 5.0 * VOCABULARY

_ROW = np.arange(8, dtype=np.float32).reshape(2, 4)
EQUAL: LogitMetrics = compare(_ROW, _ROW, np.array([1, -1]))


def loss(mean_kld: float, other_top: float = 0.0, mean_abs: float = 0.0) -> LogitMetrics:
    return replace(EQUAL, mean_kld=mean_kld, same_top_p=1 - other_top, mean_abs_log_p=mean_abs)


LOSS = OwnLoss(loss(0.01, 0.1, 0.05))


def of_random(limits: Limits, own: OwnLoss | str = LOSS, perplexity: float = RANDOM) -> Limits:
    return in_force(limits, perplexity, VOCABULARY, own)


@pytest.mark.parametrize("table", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_no_limit_is_wider_than_naive_rounding_needs(table: Mapping[str, float]) -> None:
    assert table["mean_kld"] < NAIVE["mean_kld"] / 2
    assert table["same_top_p"] > NAIVE["same_top_p"]


@pytest.mark.parametrize("target", sorted(RIGHT))
def test_a_right_artifact_of_a_real_model_has_room_and_at_most_as_much_again(target: str) -> None:
    limits, right = absolute({}, allowances=find_runner(target).allowances).values, RIGHT[target]
    for name in (name for name in right if name != "same_top_p"):
        assert 1.5 * right[name] < limits[name] <= 2 * right[name]
    lost = 1 - right["same_top_p"]
    assert 1.5 * lost < 1 - limits["same_top_p"] <= 2.1 * lost


def test_a_runtimes_limits_are_for_dense_models_and_yield_to_the_user() -> None:
    allowances = {"mean_kld": 0.5}
    assert absolute({}, allowances=allowances).values == {**DENSE, "mean_kld": 0.5}
    assert absolute({}, experts=True, allowances=allowances).values == EXPERTS
    assert absolute({"mean_kld": 0.1}, allowances=allowances).values["mean_kld"] == 0.1


@pytest.mark.parametrize(("name", "limit"), [("speed", 1.0), ("mean_kld", math.nan), ("max_kld", math.inf)])
def test_an_unknown_gate_and_a_limit_that_is_none_are_usage_errors(name: str, limit: float) -> None:
    with pytest.raises(UsageError, match=name):
        check({name: limit})
    with pytest.raises(UsageError, match=name):
        absolute({name: limit})


def test_no_user_may_loosen_what_is_built() -> None:
    with pytest.raises(UsageError, match="unknown gate 'same_as_built'"):
        absolute({"same_as_built": 5})


def test_a_checkpoint_narrows_limits_and_widens_none() -> None:
    wide = {"mean_kld": 100.0, "same_top_p": 0.0, "exact_fraction": 0.0, "graph_kld": 1.0}
    assert absolute({}, own=wide) == absolute({})
    narrow = {"mean_kld": 1e-4, "same_top_p": 0.99, "max_kld": 0.5}
    found = absolute({}, own={**wide, **narrow})
    assert found.values == {**DENSE, **narrow}
    assert found.notes == dict.fromkeys(narrow, OWN_NOTE)
    assert absolute({"mean_kld": 0.5}, own=narrow).values["mean_kld"] == 0.5


@pytest.mark.parametrize(
    ("gate", "wide"), [(name, 0.0 if DENSE.get(name) in (1.0, 0.999) else 1e9) for name in KNOWN]
)
def test_there_is_no_gate_that_a_checkpoint_can_widen(gate: str, wide: float) -> None:
    for value in (wide, -wide, -1e9, 1e9):
        before, after = absolute({}).values, absolute({}, own={gate: value}).values
        for name, limit in before.items():
            least = name in ("same_top_p", "on_lattice_fraction") or name.startswith(("exact", "engine_same"))
            assert after[name] >= limit if least else after[name] <= limit


def test_a_model_that_predicts_the_text_has_absolute_limits() -> None:
    limits = absolute({})
    for perplexity in (1.0, CHANCE * VOCABULARY, math.nan):
        assert of_random(limits, perplexity=perplexity) is limits


def test_a_model_that_does_not_is_judged_by_what_its_runtime_loses() -> None:
    found = of_random(absolute({}))
    assert found.values["mean_kld"] == pytest.approx(1.1 * 0.01 + 1e-4)
    assert found.values["same_top_p"] == pytest.approx(1 - 1.1 * 0.1 - 0.01)
    assert found.values["decode_mean_kld"] == pytest.approx(2 * 0.01 + 1e-4)
    assert found.values["engine_mean_abs"] == pytest.approx(1.1 * 0.05 + 0.01)
    assert found.values["engine_gap"] == pytest.approx(6 * 0.05 + 0.1)
    assert set(found.notes) == set(RELATIVE)
    assert found.notes["mean_kld"] == (
        "limit: 1.1 x mean_kld_same_weights + 1e-4, since the reference does not predict this text "
        "(perplexity 5,000, of 1,000 tokens)"
    )
    for name in DENSE.keys() - set(RELATIVE):
        assert found.values[name] == DENSE[name]


def test_what_the_checkpoints_own_rounding_costs_is_allowed_to_exact_weights() -> None:
    found = of_random(absolute({}), OwnLoss(loss(0.01, 0.1), loss(0.002, 0.03)))
    assert found.values["mean_kld"] == pytest.approx(1.1 * 0.012 + 1e-4)
    assert found.values["same_top_p"] == pytest.approx(1 - 1.1 * 0.13 - 0.01)
    assert "1.1 x (mean_kld_same_weights + mean_kld_own_weights) + 1e-4" in found.notes["mean_kld"]
    assert found.notes["same_top_p"].startswith(
        "limit: 1 - 1.1 x (1 - same_top_p_same_weights + 1 - same_top_p_own_weights) - 0.01, since "
    )


def test_logits_that_are_not_finite_leave_the_general_limit() -> None:
    found = of_random(absolute({}), OwnLoss(loss(math.nan, math.nan, math.nan)))
    assert (found.values, found.notes) == (DENSE, {})


def test_what_the_user_set_is_absolute_and_what_the_checkpoint_narrows_stays_narrow() -> None:
    given = of_random(absolute({"mean_kld": 0.5}))
    assert given.values["mean_kld"] == 0.5
    assert "mean_kld" not in given.notes
    narrow = of_random(absolute({}, own={"mean_kld": 1e-5, "same_top_p": 0.87}))
    assert (narrow.values["mean_kld"], narrow.notes["mean_kld"]) == (1e-5, OWN_NOTE)
    assert narrow.values["same_top_p"] == pytest.approx(0.88)  # the relative limit is the narrower one


def test_without_logits_of_its_own_weights_such_a_model_has_nothing_to_be_judged_by() -> None:
    found = of_random(absolute({"mean_kld": 0.5}), "no room")
    assert found.values["mean_kld"] == 0.5
    assert set(found.lacking) == set(RELATIVE) - {"mean_kld"}
    assert not set(found.lacking) & set(found.values)
    assert found.lacking["same_top_p"].startswith("no room, and the limit would be relative to them, since ")


def test_an_engines_scores_are_judged_by_what_the_runtime_loses_on_the_same_tokens() -> None:
    logits = np.zeros((4, 8), np.float32)
    other = logits.copy()
    other[:, 0] += np.array([0, 1, 2, 3], np.float32)
    own = OwnLoss(compare(logits, other, np.array([0, 0, 0, -1])), scored=np.array([1, 2]))
    surprises = [math.log(8), *(math.log((math.exp(step) + 7) / math.exp(step)) for step in (1, 2))]
    expected = sum(surprises[0] - one for one in surprises[1:]) / 2
    found = of_random(absolute({}), own)
    assert found.values["engine_mean_abs"] == pytest.approx(1.1 * expected + 0.01)
    assert found.values["engine_gap"] == pytest.approx(6 * 2 / 3 * expected + 0.1)  # over all three
    assert found.notes["engine_mean_abs"].startswith(
        "limit: 1.1 x mean_abs_log_p_same_weights of the scored tokens + 0.01, since "
    )
