"""A stored form names its parameters, settles head and embedding, and is one module and one registration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from converter.checkpoint.opened import Checkpoint, open_checkpoint, open_description
from converter.checkpoint.safetensors import Shard, SourceTensor
from converter.checkpoint.stored import find_form, known_forms
from converter.checkpoint.stored.modules import Head, named_scales, same_bits, settle_head
from converter.checkpoint.weight import Lattice, Scales
from converter.errors import CheckpointError
from support.distributions import write_distribution
from support.errors import refusal_of
from support.outside import packed_forms, register
from targets.target import find_target

Make = Callable[..., Path]
Tensors = dict[str, NDArray[np.generic]]
EMBEDDING = "model.embed_tokens.weight"
(PACKED,) = packed_forms().values()
METHOD = PACKED.METHOD


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.fixture
def make(registered: None, checkpoint_factory: Make, tmp_path: Path) -> Callable[..., Path]:
    """``make(change, shards=..., dtype=...)``: a packed checkpoint, its tensors changed before."""

    def write(
        change: Callable[[Tensors], object] = lambda tensors: None, shards: int = 1, dtype: str = "float16"
    ) -> Path:
        source = checkpoint_factory("text")
        tensors = PACKED.tensors_of(source, dtype)
        change(tensors)
        return PACKED.write_packed(source, tmp_path / "packed", tensors, shards)

    return write


refusal = partial(refusal_of, CheckpointError)


def add_head(tensors: Tensors, step: int = 0) -> None:
    """A packed head, the embedding's own tensors but for ``step`` in its last byte."""
    head = tensors[f"{EMBEDDING}_packed"].copy()
    head[-1, -1] ^= np.uint8(step)
    tensors["lm_head.weight_packed"] = head
    tensors["lm_head.weight_scale"] = tensors[f"{EMBEDDING}_scale"]


# registration


def test_the_shipped_form_is_registered_by_its_name() -> None:
    assert {form.name for form in known_forms()} >= {"bf16-lattice"}
    assert [form.name for form in known_forms() if form.last_resort] == ["bf16-lattice"]


def test_a_form_that_recognises_the_checkpoint_goes_before_the_last_resort(registered: None) -> None:
    assert find_form({"quantization_config": {"quant_method": METHOD}}).name == METHOD
    assert find_form({}).name == "bf16-lattice"


def test_two_forms_that_recognise_one_checkpoint_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path, "one", "other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=f"the stored forms '{METHOD}' and '{METHOD}' recognise it"):
        find_form({"quantization_config": {"quant_method": METHOD}})


def test_what_no_form_recognises_is_named_with_all_that_are_read(registered: None) -> None:
    with pytest.raises(CheckpointError, match="'other', which is not read") as caught:
        find_form({"quantization_config": {"quant_method": "other"}})
    for form in known_forms():
        assert form.describes in str(caught.value)


def add_form(site: Path, name: str, raised: str) -> Path:
    """Register, by a distribution in ``site``, a form that raises the expression ``raised``."""
    code = f"""
        from converter.checkpoint.stored import Form
        from converter.errors import CheckpointError

        def recognises(config):
            raise {raised}

        FORM = Form("{name}", "", recognises, lambda config: None)
    """
    group = {"qatconvert.forms": {name: f"{name}_form:FORM"}}
    return write_distribution(site, "other", group, {f"{name}_form": code})


def test_a_form_that_fails_takes_no_other_checkpoint_away(
    checkpoint_factory: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(add_form(tmp_path, "failing", r"ValueError('no\nsuch key')"))
    assert open_checkpoint(checkpoint_factory("text")).form.name == "bf16-lattice"
    told = r"the form failing of other 1\.0 fails on it: ValueError: no such key$"
    with pytest.raises(CheckpointError, match=told):
        find_form({"quantization_config": {"quant_method": "other"}})


def test_what_a_form_says_of_a_checkpoint_is_said(
    checkpoint_factory: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(add_form(tmp_path, "refusing", "CheckpointError('config.json: bits is 3')"))
    with pytest.raises(CheckpointError, match=r"^config\.json: bits is 3$"):
        open_checkpoint(checkpoint_factory("text"))


# parameters


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_codes_and_scales_are_those_stored(make: Callable[..., Path], dtype: str) -> None:
    kept: Tensors = {}
    checkpoint = open_checkpoint(make(kept.update, dtype=dtype))
    assert checkpoint.form.name == METHOD
    assert list(checkpoint.weights) == list(checkpoint.architecture.tensors)
    matrices = [weight for weight in checkpoint.weights.values() if weight.is_packed]
    assert len(matrices) > 10
    for weight in matrices:
        assert weight.lattice == Lattice(4, 128)
        assert weight.codes is not None
        rows = weight.codes(0, weight.rows)
        name = weight.source.removesuffix("_packed")
        np.testing.assert_array_equal(rows.codes, PACKED.unpacked(kept[f"{name}_packed"]))
        np.testing.assert_array_equal(rows.scales, kept[f"{name}_scale"].astype(np.float32))
    assert checkpoint.weights["norm.weight"].stored == "F32"


@pytest.mark.parametrize("opening", [open_checkpoint, open_description])
def test_a_sharded_index_is_understood_by_the_same_names(
    make: Callable[..., Path], opening: Callable[[Path], Checkpoint]
) -> None:
    directory = make(add_head, shards=3)
    assert opening(directory).form.name == METHOD
    if opening is open_description:
        for file in directory.glob("*.safetensors"):
            file.unlink()
        assert opening(directory).weights == {}


@pytest.mark.parametrize("opening", [open_checkpoint, open_description])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight_scale"),
            "tensor 'layers.1.mlp.up_proj.weight_scale' is missing",
        ),
        (
            lambda t: (t.pop(f"{EMBEDDING}_scale"), t.pop(f"{EMBEDDING}_packed")),
            "tensor 'embed_tokens.weight' is missing",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight_zero_point": np.zeros(1, np.uint8)}),
            "tensor 'model.layers.0.mlp.up_proj.weight_zero_point' is unexpected",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight": np.zeros((256, 128), np.float32)}),
            "weight 'layers.0.mlp.up_proj.weight' is stored twice, as layers.0.mlp.up_proj.weight_packed, "
            "layers.0.mlp.up_proj.weight_scale and as layers.0.mlp.up_proj.weight",
        ),
        (
            lambda t: t.update({"lm_head.weight_packed": t[f"{EMBEDDING}_packed"]}),
            "tensor 'lm_head.weight_packed' is unexpected",
        ),
        (
            lambda t: (add_head(t), t.pop(f"{EMBEDDING}_scale")),
            f"tensor '{EMBEDDING}_packed' is unexpected",
        ),
    ],
)
def test_what_belongs_to_no_weight_or_is_half_there_is_named(
    make: Callable[..., Path],
    opening: Callable[[Path], Checkpoint],
    change: Callable[[Tensors], object],
    message: str,
) -> None:
    assert message in refusal(opening, make(change, shards=2))


def test_a_shape_that_does_not_fit_is_refused_before_it_is_read(make: Callable[..., Path]) -> None:
    def cut(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.up_proj.weight_packed"] = np.zeros((1, 1 << 20), np.uint8)

    assert "'model.layers.0.mlp.up_proj.weight_packed' is U8 [1, 1048576]" in refusal(
        open_checkpoint, make(cut)
    )


def test_zero_points_are_refused(make: Callable[..., Path]) -> None:
    directory = make(shards=2)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["symmetric"] = False
    (directory / "config.json").write_text(json.dumps(config))
    for opening in (open_checkpoint, open_description):
        assert "asks for zero points, which are not read" in refusal(opening, directory)


def test_packed_keys_of_layers_that_share_them_are_left_out(make: Callable[..., Path]) -> None:
    names = [f"model.layers.5.self_attn.k_proj.weight_{part}" for part in ("packed", "scale")]

    def add(tensors: Tensors) -> None:
        tensors.update({name: np.zeros((32, 64), np.uint8) for name in names})

    checkpoint = open_checkpoint(make(add))
    assert checkpoint.architecture.layers[5].kv_source is not None
    assert {item.name: item.reason for item in checkpoint.left_out} == dict.fromkeys(
        names, "keys and values of this layer come from an earlier layer"
    )


def test_clippable_linears_lose_their_inner_name_packed_too(make: Callable[..., Path]) -> None:
    def clip(tensors: Tensors) -> None:
        for part in ("packed", "scale"):
            array = tensors.pop(f"model.layers.0.mlp.up_proj.weight_{part}")
            tensors[f"model.layers.0.mlp.up_proj.linear.weight_{part}"] = array

    weight = open_checkpoint(make(clip)).weights["layers.0.mlp.up_proj.weight"]
    assert weight.source == "model.layers.0.mlp.up_proj.linear.weight_packed"


# head and embedding


def test_a_packed_head_that_equals_the_embedding_is_left_out(make: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(make(add_head))
    assert checkpoint.architecture.tied_head
    assert "lm_head.weight" not in checkpoint.weights
    assert {item.name: item.reason for item in checkpoint.left_out} == dict.fromkeys(
        ("lm_head.weight_packed", "lm_head.weight_scale"), "equal to the embedding it is tied to"
    )


@pytest.mark.parametrize("part", ["codes", "scales", "numbers"])
def test_a_packed_head_that_differs_unties_the_model(make: Callable[..., Path], part: str) -> None:
    def differ(tensors: Tensors) -> None:
        add_head(tensors, step=1 if part == "codes" else 0)
        if part == "scales":
            tensors["lm_head.weight_scale"] = tensors["lm_head.weight_scale"] * np.float16(1.5)
        if part == "numbers":  # the same codes are no embedding of numbers
            del tensors[f"{EMBEDDING}_packed"], tensors[f"{EMBEDDING}_scale"]
            tensors[EMBEDDING] = np.ones((1280, 128), np.float32)

    checkpoint = open_checkpoint(make(differ))
    assert not checkpoint.architecture.tied_head
    assert list(checkpoint.weights)[-1] == "lm_head.weight"
    assert checkpoint.weights["lm_head.weight"].source == "lm_head.weight_packed"
    assert checkpoint.weights["embed_tokens.weight"].source.startswith(EMBEDDING)
    assert checkpoint.left_out == ()


@pytest.mark.parametrize("opening", [open_checkpoint, open_description])
def test_a_packed_head_that_is_stored_alone_is_the_embedding_too(
    make: Callable[..., Path], opening: Callable[[Path], Checkpoint]
) -> None:
    def alone(tensors: Tensors) -> None:
        add_head(tensors)
        del tensors[f"{EMBEDDING}_packed"], tensors[f"{EMBEDDING}_scale"]

    checkpoint = opening(make(alone, shards=2))
    assert checkpoint.architecture.tied_head
    if checkpoint.weights:
        assert checkpoint.weights["embed_tokens.weight"].source == "lm_head.weight_packed"


def test_heads_are_compared_byte_for_byte_and_without_reading_rows(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(9 << 20)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    def tensor(file: str, dtype: str = "F8_E4M3") -> SourceTensor:
        return SourceTensor("t", dtype, (1, 9 << 20), Shard(tmp_path / file), 0, 9 << 20)

    assert same_bits(tensor("a"), tensor("a"))
    assert not same_bits(tensor("a"), tensor("b"))
    assert not same_bits(tensor("a"), tensor("a", "I8"))
    assert settle_head({"w": tensor("a")}, {"w": tensor("a")}) is Head.EQUAL
    assert settle_head({"w": tensor("a")}, {"v": tensor("a")}) is Head.OWN
    assert settle_head({"w": tensor("a")}, None) is Head.BOTH


# scales of activations and caches


def test_scales_of_activations_and_caches_have_a_place(make: Callable[..., Path]) -> None:
    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.up_proj.input_scale"] = np.array([0.5], np.float32)
        tensors["model.layers.1.self_attn.k_scale"] = np.array([0.25, 0.75], np.float16)
        tensors["model.layers.1.self_attn.v_scale"] = np.array(2.0, np.float32)

    found = open_checkpoint(make(add)).scales
    assert list(found) == ["layers.0.mlp.up_proj", "layers.1.self_attn"]
    first, second = found.values()
    assert isinstance(first, Scales)
    assert (first.output, first.key, second.input) == (None, None, None)
    for scale, expected in ((first.input, [0.5]), (second.key, [0.25, 0.75]), (second.value, [2.0])):
        assert scale is not None
        assert (scale.dtype, scale.tolist()) == (np.float32, expected)


def test_the_shipped_form_has_no_such_scales(checkpoint_factory: Make) -> None:
    assert open_checkpoint(checkpoint_factory("text")).scales == {}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([np.inf], np.float32), "has a value that is infinite or not a number"),
        (np.array([1], np.int8), "has dtype I8, expected one of BF16, F16, F32"),
        (np.ones((1 << 20) + 1, np.float16), "has 1048577 scales, which are too many"),
    ],
)
def test_a_scale_that_is_none_is_refused(
    make: Callable[..., Path], array: NDArray[np.generic], message: str
) -> None:
    directory = make(lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.input_scale": array}))
    assert f"'model.layers.0.mlp.up_proj.input_scale' {message}" in refusal(open_checkpoint, directory)
    assert named_scales("a", {}) == Scales()


# conversion


def test_packed_codes_reach_a_gguf_as_they_are(make: Callable[..., Path], tmp_path: Path) -> None:
    kept: Tensors = {}
    checkpoint = open_checkpoint(make(kept.update))
    target = find_target("gguf")
    plan = target.plan(checkpoint, "m", {})
    assert target.write(checkpoint, plan, tmp_path / "out").warnings == []
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / plan.artifacts[0]).tensors}
    compared = 0
    for planned in plan.tensors:
        weight = checkpoint.weights.get(planned.weight or "")
        if weight is None or not weight.is_packed:
            continue
        assert (planned.type, planned.exact) == ("Q4_0", True)
        blocks = stored[planned.stored_as].data.reshape(weight.rows, -1, 18)
        name = weight.source.removesuffix("_packed")
        # a block of 32: its float16 scale, then codes plus 8, the first half in the low bits
        nibbles = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1).astype(np.int8) - 8
        np.testing.assert_array_equal(
            nibbles.reshape(weight.shape), PACKED.unpacked(kept[f"{name}_packed"]), err_msg=name
        )
        scales = blocks[..., :2].copy().view(np.float16)[..., 0]
        np.testing.assert_array_equal(scales, np.repeat(kept[f"{name}_scale"], 4, axis=1))
        compared += weight.size
    assert compared > 0.8 * checkpoint.parameters
    described = target.describe(tmp_path / "out" / plan.artifacts[0], checkpoint)
    weight = checkpoint.weights["layers.0.mlp.up_proj.weight"]
    np.testing.assert_array_equal(described[weight.name].floats(0, 4), weight.floats(0, 4))


def test_an_unregistered_form_is_not_read(make: Callable[..., Path], tmp_path: Path) -> None:
    directory = make()
    shutil.rmtree(tmp_path / "site")
    assert f"quant_method '{METHOD}', which is not read" in refusal(open_checkpoint, directory)
