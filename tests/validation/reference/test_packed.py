"""The reference of a mobile checkpoint: transformers on its files, in float32, with grids and without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from checkpoints.mobile import mobile_tensors, write_packed
from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError, ValidationError
from converter.system.child import Worker
from support.errors import refusal_of
from targets.target import StoredTensor
from validation.own_weights import static_scales, write_checkpoint
from validation.reference.logits import Computation, reference_logits
from validation.reference.packed import round_to
from validation.reference.source import gridded_modules, reference_model
from validation.settings import Settings, prepare, reference_entry
from validation.text import Tokens

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
Floats = NDArray[np.float32]
SEQUENCES = [[2, *range(40, 80)], [2, 900, 5, 7, 11]]
SCALARS = ("input_activation_scale", "output_activation_scale")


def straight(directory: Path, change: Callable[[Any], object] = lambda model: None) -> Floats:
    """Logits by transformers alone, of a model that is changed before."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    change(model)
    with torch.inference_mode():
        return np.concatenate([model(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in SEQUENCES])


def without_grids(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith(SCALARS):
            parameter.data.zero_()


@pytest.fixture
def logits(worker: Worker, tmp_path: Path) -> Callable[..., Floats]:
    """``logits(directory, grids=False, max_memory=None)``: the reference's."""

    def compute(directory: Path, grids: bool = False, max_memory: int | None = None) -> Floats:
        model = reference_model(open_checkpoint(directory), tmp_path)
        computation = Computation(worker, grids=grids, max_memory=max_memory)
        return np.array(reference_logits(model, Tokens.of(SEQUENCES), computation, tmp_path))

    return compute


@pytest.fixture
def by_our_numbers(worker: Worker, tmp_path: Path) -> Callable[..., Floats]:
    """Logits of an unquantised checkpoint with the numbers that the form reads, of a model that is changed
    before."""

    def compute(directory: Path, change: Callable[[Any], object] = lambda model: None) -> Floats:
        checkpoint, place = open_checkpoint(directory), tmp_path / "numbers"
        place.mkdir(exist_ok=True)
        numbers = {
            name: StoredTensor(name, one.source, one.stored, one.shape, one.stored_bytes, one.floats)
            for name, one in checkpoint.weights.items()
        }
        write_checkpoint(checkpoint, numbers, place)
        return straight(place, change)

    return compute


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("text", {}),
        ("e2b", {}),
        ("text", {"extremes": True}),
        ("text", {"blocks": 6}),
        ("e2b", {"blocks": 6}),
        ("text", {"head": "tied"}),
        ("e2b", {"head": "tied"}),
        ("text", {"head": "numbers"}),
    ],
)
def test_logits_are_those_of_the_numbers_that_the_form_reads(
    variant: str,
    options: dict[str, Any],
    mobile_factory: Make,
    logits: Callable[..., Floats],
    by_our_numbers: Any,
) -> None:
    directory = mobile_factory(variant, **options)
    np.testing.assert_allclose(logits(directory), by_our_numbers(directory), atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "options"), [("text", {}), ("e2b", {"extremes": True}), ("text", {"head": "tied"})]
)
def test_numbers_with_the_checkpoint_s_scales_are_rounded_as_packed_modules_are(
    variant: str,
    options: dict[str, Any],
    mobile_factory: Make,
    logits: Callable[..., Floats],
    by_our_numbers: Any,
) -> None:
    """To the bit, as one unit in the last place may decide over a step of a grid."""
    directory = mobile_factory(variant, **options)
    scales = static_scales(open_checkpoint(directory))
    assert len(scales) == 25
    found = by_our_numbers(directory, lambda model: round_to(model, scales))
    np.testing.assert_array_equal(found, logits(directory, grids=True))
    with pytest.raises(ValidationError, match="no module elsewhere that could round"):
        by_our_numbers(directory, lambda model: round_to(model, {"elsewhere": ([1.0], [1.0])}))


@pytest.mark.parametrize("variant", ["text", "e2b"])
def test_logits_with_grids_and_without_are_transformers_own(
    variant: str, mobile_factory: Make, logits: Callable[..., Floats]
) -> None:
    directory = mobile_factory(variant)
    plain, gridded = logits(directory), logits(directory, grids=True)
    np.testing.assert_array_equal(plain, straight(directory, without_grids))
    np.testing.assert_array_equal(gridded, straight(directory))
    assert np.abs(plain - gridded).max() > 0.1


def test_weights_that_do_not_fit_in_memory_are_said_to(
    mobile_factory: Make, logits: Callable[..., Floats]
) -> None:
    """transformers 5.23 reads no packed weights as they are needed."""
    line = refusal_of(ValidationError, logits, mobile_factory("text"), max_memory=500_000)
    assert "transformers reads packed weights as a whole: they take" in line


def test_scales_that_a_checkpoint_does_not_have_round_nothing(
    checkpoint_factory: Make, mobile_factory: Make, tmp_path: Path, logits: Callable[..., Floats]
) -> None:
    """transformers leaves them as what lay in memory."""
    source = checkpoint_factory("text")
    tensors, config = mobile_tensors(source)
    fewer = {name: one for name, one in tensors.items() if not name.endswith(SCALARS) or one > 0}
    assert len(fewer) < len(tensors)
    directory = write_packed(source, tmp_path / "fewer", fewer, config)
    np.testing.assert_array_equal(logits(directory, True), logits(mobile_factory("text"), True))
    none = {name: one for name, one in tensors.items() if not name.endswith(SCALARS)}
    directory = write_packed(source, tmp_path / "none", none, config)
    np.testing.assert_array_equal(logits(directory, True), logits(mobile_factory("text"), False))
    assert not gridded_modules(open_checkpoint(directory))


def test_an_embedding_is_copied_for_a_tied_head_that_is_not_stored(
    checkpoint_factory: Make, mobile_factory: Make, tmp_path: Path, logits: Callable[..., Floats]
) -> None:
    source = checkpoint_factory("text")
    tensors, config = mobile_tensors(source, head="tied")
    for name in [name for name in tensors if name.startswith("lm_head")]:
        del tensors[name]
    directory = write_packed(source, tmp_path / "bare", tensors, config)
    np.testing.assert_allclose(logits(directory), logits(mobile_factory("text", head="tied")), atol=1e-5)


def test_a_weight_that_is_missing_is_still_named(
    checkpoint_factory: Make, tmp_path: Path, worker: Worker
) -> None:
    source = checkpoint_factory("text")
    checkpoint = open_checkpoint(source)
    tensors, config = mobile_tensors(source)
    directory = write_packed(source, tmp_path / "whole", tensors, config)
    model = reference_model(open_checkpoint(directory), tmp_path)
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    write_packed(source, tmp_path / "fewer", tensors, config)
    (directory / "model.safetensors").write_bytes((tmp_path / "fewer" / "model.safetensors").read_bytes())
    compute = partial(reference_logits, model, Tokens.of(SEQUENCES), Computation(worker), tmp_path)
    assert "has no model.layers.0.mlp.up_proj.weight_scale" in refusal_of(ValidationError, compute)
    assert checkpoint.form.name == "bf16-lattice"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_reference_is_float32_alone(dtype: str, mobile_factory: Make, worker: Worker) -> None:
    checkpoint = open_checkpoint(mobile_factory("text"))
    with (
        pytest.raises(UsageError, match=f"--reference-dtype {dtype}: transformers would round the scales"),
        prepare(checkpoint, Settings(reference_dtype=dtype), worker=worker),
    ):
        pass


@pytest.mark.parametrize(("activations", "told"), [(True, {"activation_grids": False}), (False, {})])
def test_the_report_says_that_the_reference_is_without_grids(
    activations: bool, told: dict[str, bool], mobile_factory: Make, worker: Worker
) -> None:
    checkpoint = open_checkpoint(mobile_factory("text", activations=activations))
    with prepare(checkpoint, Settings(positions=64), worker=worker) as prepared:
        found = reference_entry(prepared)
    assert {key: value for key, value in found.items() if key == "activation_grids"} == told
