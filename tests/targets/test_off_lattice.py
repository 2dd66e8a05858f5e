"""The option for matrices whose codes no type holds is read, and found again, alike for every target."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from converter.checkpoint.weight import Lattice, LatticeRows, Weight
from converter.errors import UsageError
from targets.gguf.storage import OFF_LATTICE, holdings
from targets.litert import storage as litert
from targets.off_lattice import inferred_off_lattice, read_off_lattice
from targets.onnx import storage as onnx

HELD = {option: holdings(option) for option in OFF_LATTICE}


@pytest.mark.parametrize("types", [OFF_LATTICE, onnx.OFF_LATTICE, litert.OFF_LATTICE])
def test_every_target_knows_the_same_values_in_the_same_order(types: Mapping[str, str]) -> None:
    assert list(types) == ["q8_0", "bf16", "f16", "q4_0", "f32"]


def test_the_first_value_is_the_default() -> None:
    types = {"f16": "HALF", "f32": "SINGLE"}
    assert read_off_lattice({}, "t", types) == "f16"
    assert read_off_lattice({"off_lattice": None}, "t", types) == "f16"
    assert read_off_lattice({"off_lattice": "F32"}, "t", types) == "f32"


def test_another_value_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError) as error:
        read_off_lattice({"off_lattice": "Q2"}, "t", {"f16": "HALF", "f32": "SINGLE"})
    assert str(error.value) == "off-lattice type 'q2' is unknown to t; known: f16, f32"


def weight(name: str, *, lattice: Lattice | None = None) -> Weight:
    def floats(start: int, stop: int) -> np.ndarray:
        return np.zeros((stop - start, 64), np.float32)

    def codes(start: int, stop: int) -> LatticeRows:
        raise AssertionError("no rows are read")

    return Weight(name, name, (4, 64), "BF16", floats, lattice, codes if lattice else None)


def test_the_value_is_inferred_from_most_matrices_that_are_not_held() -> None:
    weights = [
        weight("a"),
        weight("b"),
        weight("c"),
        *(weight(f"on{i}", lattice=Lattice(4, 32)) for i in range(5)),
    ]
    types = {"a": "BF16", "b": "F16", "c": "BF16", **{f"on{i}": "Q4_0" for i in range(5)}}
    assert inferred_off_lattice(weights, types, HELD) == "bf16"


def test_the_default_is_inferred_where_nothing_tells() -> None:
    assert inferred_off_lattice([weight("a")], {}, HELD) == "q8_0"
    assert inferred_off_lattice([weight("a"), weight("b")], {"a": "F16", "b": "Q8_0"}, HELD) == "q8_0"
