"""The first layers of every kind of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints.generate import configuration
from checkpoints.variants import E2B_FULL_SIZE, TEN_LAYERS, VARIANTS
from converter.checkpoint.architecture import Architecture, read_architecture
from converter.checkpoint.excerpt import Excerpt, find_excerpt
from converter.checkpoint.opened import open_checkpoint

FULL_EVERY_FIFTH = [*["sliding_attention"] * 4, "full_attention"]
FULL_EVERY_SIXTH = [*["sliding_attention"] * 5, "full_attention"]


def architecture(variant: str, layout: str = "hub", **text: object) -> Architecture:
    return read_architecture(configuration(VARIANTS[variant], layout, None, text))


def kinds(model: Architecture) -> set[object]:
    return {(replace(one, index=0, kv_source=None), one.kv_source is None) for one in model.layers}


@pytest.mark.parametrize(
    ("variant", "text", "told"),
    [
        ("e2b", TEN_LAYERS, "layers 0-5 and 9 of 10"),
        ("e4b", {}, "layers 0-3 and 5 of 6"),
        ("e2b", {**E2B_FULL_SIZE, "layer_types": FULL_EVERY_FIFTH * 7}, "layers 0-4, 15 and 19 of 35"),
        ("26b-a4b", {"num_hidden_layers": 30, "layer_types": FULL_EVERY_SIXTH * 5}, "layers 0-5 of 30"),
        ("31b", {"num_hidden_layers": 60, "layer_types": FULL_EVERY_SIXTH * 10}, "layers 0-5 of 60"),
        ("gemma3", {"num_hidden_layers": 12, "layer_types": FULL_EVERY_SIXTH * 2}, "layers 0-5 of 12"),
    ],
)
def test_it_is_the_shortest_beginning_with_every_kind_and_the_first_that_share(
    variant: str, text: dict[str, Any], told: str
) -> None:
    assert str(find_excerpt(architecture(variant, **text))) == told


@pytest.mark.parametrize("variant", ["12b", "31b", "gemma3"])
def test_a_model_of_which_no_layer_can_be_left_out_has_none(variant: str) -> None:
    assert find_excerpt(architecture(variant)) is None


@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize(
    ("variant", "text"),
    [
        ("e2b", {}),
        ("text", {}),
        ("12b", {"num_hidden_layers": 12, "layer_types": FULL_EVERY_SIXTH * 2}),
        ("26b-a4b", {"num_hidden_layers": 12, "layer_types": FULL_EVERY_SIXTH * 2}),
    ],
)
def test_its_configuration_has_the_kept_layers(
    variant: str, layout: str, text: dict[str, Any], checkpoint_factory: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory(variant, layout=layout, text=text))
    whole = checkpoint.architecture
    excerpt = find_excerpt(whole)
    assert excerpt is not None
    before = json.dumps(checkpoint.config)
    cut = read_architecture(excerpt.config(checkpoint.config, whole))
    assert json.dumps(checkpoint.config) == before
    assert kinds(cut) == kinds(whole)
    for place, (layer, one) in enumerate(zip(excerpt.layers, cut.layers, strict=True)):
        other = whole.layers[layer]
        assert one == replace(other, index=place, kv_source=one.kv_source)
        assert (one.kv_source is None) == (other.kv_source is None)
    same = (
        "hidden",
        "norm_eps",
        "sliding_window",
        "final_softcap",
        "experts",
        "per_layer_input",
        "vocabulary",
    )
    assert all(getattr(cut, name) == getattr(whole, name) for name in same)


def test_sharing_layers_read_from_the_last_of_their_kind() -> None:
    whole = architecture("e2b", **TEN_LAYERS)
    excerpt = find_excerpt(whole)
    assert excerpt is not None
    cut = read_architecture(excerpt.config(configuration(VARIANTS["e2b"], "hub", None, TEN_LAYERS), whole))
    assert [one.kv_source for one in cut.layers] == [None] * 5 + [3, 4]


def test_a_layer_stands_in_for_the_one_that_is_as_far_from_the_last_of_its_kind() -> None:
    kinds = ("sliding", "sliding", "full") * 3
    excerpt = Excerpt((0, 1, 2, 6, 8), 9, 6, kinds)
    assert [excerpt.stand_in(layer) for layer in range(6)] == [None, None, None, 0, 1, 2]


def test_rows_and_columns_of_the_kept_layers() -> None:
    excerpt = Excerpt((0, 1, 3), 4, 4, ("sliding",) * 4)
    whole = np.arange(4 * 5 * 8).reshape(4 * 5, 8)
    kept = [*range(10), *range(15, 20)]
    rows = excerpt.rows(lambda start, stop: whole[start:stop], 5)
    for start, stop in [(0, 15), (3, 11), (9, 10), (10, 15)]:
        assert np.array_equal(rows(start, stop), whole[kept][start:stop])
    columns = excerpt.columns(lambda start, stop: whole[start:stop])
    assert np.array_equal(columns(2, 7), whole[2:7, [0, 1, 2, 3, 6, 7]])
