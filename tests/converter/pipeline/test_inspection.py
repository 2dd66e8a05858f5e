"""What an inspection says of the blocks of a plan: decided by the type that each weight will have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, OFF_LATTICE, Lattice, LatticeRows, Weight
from converter.cli.tables import print_inspection
from converter.pipeline.inspection import inspect
from converter.pipeline.opening import Model, open_model

MATRIX = "layers.0.mlp.down_proj.weight"


def coded(weight: Weight, bits: int, statuses: tuple[int, ...] = (EXACT,)) -> Weight:
    """A matrix of the shape of another one that is stored as codes of ``bits`` bits and scales in blocks of
    32. The blocks of a row have these ``statuses`` in turn, and the scales of those that need a float32 are
    no float16."""
    blocks = weight.columns // 32
    status = np.resize(np.array(statuses, np.uint8), (weight.rows, blocks))
    scales = np.where(status == NEEDS_F32_SCALE, np.float32(0.01), np.float32(np.float16(0.01)))
    half = 1 << (bits - 1)
    codes = np.random.default_rng(bits).integers(-half, half, (weight.rows, weight.columns)).astype(np.int8)

    def rows(start: int, stop: int) -> LatticeRows:
        return LatticeRows(codes[start:stop], scales[start:stop], status[start:stop])

    def floats(start: int, stop: int) -> NDArray[np.float32]:
        return codes[start:stop] * np.repeat(scales[start:stop], 32, axis=1)

    return replace(weight, stored=f"I{bits}", floats=floats, lattice=Lattice(bits, 32), codes=rows)


@pytest.fixture
def blocks_of(checkpoint_factory: Callable[..., Path]) -> Callable[..., dict[str, int]]:
    """The classes of a plan's blocks, for a checkpoint of which one matrix alone lies on a lattice."""

    def found(target: str, bits: int, statuses: tuple[int, ...] = (EXACT,), **options: Any) -> dict[str, int]:
        model = open_model(str(checkpoint_factory("text")))
        weights = {
            name: replace(weight, lattice=None, codes=None)
            for name, weight in model.checkpoint.weights.items()
        }
        weights[MATRIX] = coded(weights[MATRIX], bits, statuses)
        altered = Model(model.place, replace(model.checkpoint, weights=weights))
        inspection = inspect(altered, [target], options)
        print_inspection(inspection)
        blocks: dict[str, int] = inspection["targets"][target]["blocks"]
        return blocks

    return found


def test_codes_that_no_type_holds_are_not_exact(
    blocks_of: Callable[..., dict[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = blocks_of("litert", 8)
    assert found.pop("codes_not_held") > 0
    assert set(found.values()) == {0}
    assert "blocks have codes that no type holds, and become other numbers" in capsys.readouterr().out


def test_numbers_that_hold_every_value_make_every_block_exact(
    blocks_of: Callable[..., dict[str, int]],
) -> None:
    found = blocks_of("litert", 8, (EXACT, NEEDS_F32_SCALE, OFF_LATTICE), off_lattice="f32")
    assert found.pop("exact") > 0
    assert set(found.values()) == {0}


@pytest.mark.parametrize(("target", "scales"), [("gguf", "float16"), ("onnx", "float32")])
def test_the_scales_of_the_type_decide_about_codes_that_it_holds(
    target: str, scales: str, blocks_of: Callable[..., dict[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = blocks_of(target, 8, (EXACT, NEEDS_F32_SCALE, OFF_LATTICE))
    third = sum(found.values()) // 3
    narrow = third if scales == "float16" else 0
    assert found == {
        "exact": pytest.approx(2 * third - narrow, abs=1),
        "scale_not_representable": pytest.approx(narrow, abs=1),
        "codes_not_held": 0,
        "off_lattice": pytest.approx(third, abs=1),
    }
    told = capsys.readouterr().out
    assert ("float16 cannot hold: scales at most half a float16 step away" in told) == bool(narrow)
    assert "bf16 step" not in told


def test_the_step_of_a_checkpoint_of_numbers_is_one_of_bf16(
    checkpoint_factory: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    print_inspection(inspect(open_model(str(checkpoint_factory("text", "max7-f32"))), ["gguf"]))
    assert "float16 cannot hold: at most one bf16 step away" in capsys.readouterr().out
