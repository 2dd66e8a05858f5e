"""What a stored form promises, kept by every one that is registered."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from converter.checkpoint.directory import Directory
from converter.checkpoint.opened import Checkpoint, open_checkpoint, open_description
from converter.checkpoint.stored import find_form, known_forms, whole_way
from converter.checkpoint.weight import EXACT
from converter.errors import CheckpointError
from converter.filenames import WEIGHTS
from support.forms import MAKERS


@pytest.fixture(params=MAKERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def source(name, form_factory) -> Path:
    return form_factory(name)


@pytest.fixture
def checkpoint(source) -> Checkpoint:
    return open_checkpoint(source)


def test_every_form_has_a_checkpoint_here(form_factory):
    assert {form.name for form in known_forms()} == MAKERS.keys()


def test_a_form_recognises_its_own_checkpoint_alone(name, checkpoint):
    assert checkpoint.form.name == name
    assert find_form(checkpoint.config).name == name
    others = [form for form in known_forms() if form.name != name and not form.last_resort]
    assert not any(form.recognises(checkpoint.config) for form in others)


def test_it_makes_every_weight_of_the_architecture_in_model_order(checkpoint):
    assert list(checkpoint.weights) == list(checkpoint.architecture.tensors)
    for key, weight in checkpoint.weights.items():
        assert weight.name == key
        assert weight.shape == checkpoint.architecture.tensors[key]


def test_rows_read_in_parts_are_the_rows_read_at_once(checkpoint):
    for weight in checkpoint.weights.values():
        whole = weight.floats(0, weight.rows)
        assert (whole.dtype, whole.shape) == (np.float32, (weight.rows, weight.columns))
        middle = weight.rows // 2
        parts = [weight.floats(0, middle), weight.floats(middle, weight.rows)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_codes_times_scales_are_the_numbers(checkpoint):
    """To the bit in float32 where the checkpoint stores codes, and else after rounding to bfloat16."""
    on_lattice = [weight for weight in checkpoint.weights.values() if weight.lattice is not None]
    assert len(on_lattice) > 10
    for weight in on_lattice:
        rows = weight.codes(0, weight.rows)
        width = 2 ** (weight.lattice.bits - 1)
        assert rows.codes.dtype == np.int8
        assert -width <= rows.codes.min() <= rows.codes.max() < width
        blocks = weight.lattice.blocks(weight.columns)
        assert rows.scales.shape == rows.status.shape == (weight.rows, blocks)
        assert np.all(rows.status == EXACT)
        product = rows.codes * np.repeat(rows.scales, weight.columns // blocks, axis=1)
        numbers = weight.floats(0, weight.rows)
        if not weight.is_packed:
            bits = product.view(np.uint32)
            product = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
        assert np.array_equal(product, numbers), weight.name


def test_what_describes_it_tells_the_form_without_weights(name, source, tmp_path):
    described = shutil.copytree(source, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    assert open_description(described).form.name == name


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_file_that_is_cut_off_is_named(source, tmp_path, share):
    directory = shutil.copytree(source, tmp_path / "model")
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=WEIGHTS):
        open_checkpoint(directory)


def test_it_knows_the_weight_and_the_shape_of_tensors_whose_names_no_architecture_tells(checkpoint, source):
    layout = checkpoint.form.layout(checkpoint.config)
    stored = Directory(source).tensors().tensors
    for name, weight in checkpoint.weights.items():
        whole = layout.weight_of(weight.source)
        assert whole.endswith(name)
        way = whole_way("", whole, stored, layout)
        assert weight.source in way.values()
        assert {layout.weight_of(one) for one in way.values()} == {whole}
        assert layout.shape({role: stored[one] for role, one in way.items()}) == weight.shape
