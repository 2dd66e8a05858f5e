"""Checkpoints in Gemma's mobile form as GGUF: types, codes and scales, and what llama.cpp makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from checkpoints.mobile import mobile_tensors, write_packed
from converter.checkpoint.opened import Checkpoint, open_checkpoint
from support.divergence import divergence_from_transformers
from support.tampering import GgufFile
from targets.gguf import target
from targets.gguf.widening import widen
from validation.exactness import measure
from validation.runtimes.llamacpp import runner

pytestmark = pytest.mark.slow

WIDE = {"hidden_size": 256}
#: Weights of the wide checkpoint by the bits of their codes and the type that holds them.
CELLS = {
    "layers.0.self_attn.q_proj.weight": (4, "Q4_0"),
    "layers.0.mlp.down_proj.weight": (4, "Q4_0"),
    "layers.5.mlp.down_proj.weight": (2, "TQ2_0"),
    "layers.5.mlp.up_proj.weight": (2, "TQ2_0"),
    "embed_tokens.weight": (2, "TQ2_0"),
    "lm_head.weight": (2, "TQ2_0"),
    "embed_tokens_per_layer.weight": (4, "Q4_0"),
    "per_layer_model_projection.weight": (8, "Q8_0"),
    "layers.3.per_layer_projection.weight": (8, "Q8_0"),
}


@pytest.fixture
def wide(mobile_factory, convert):
    """Rows of 256 values and more, so that codes of 2 bits are TQ2_0."""
    return convert(mobile_factory("text", WIDE))


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", CELLS)
def test_codes_are_those_of_the_checkpoint_and_scales_half_a_step_away(wide, name: str) -> None:
    """Read back by gguf-py's own reader and rules."""
    bits, expected = CELLS[name]
    (planned,) = (one for one in wide.plan.tensors if one.weight == name)
    tensor = tensors(wide.artifact)[planned.stored_as]
    assert (planned.type, tensor.tensor_type.name) == (expected, expected)
    assert wide.checkpoint.weights[name].lattice.bits == bits
    rows = wide.checkpoint.weights[name].codes(0, planned.shape[0])
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    blocks = values.reshape(*rows.scales.shape, -1)
    halves = rows.scales.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(blocks, rows.codes.reshape(blocks.shape) * halves[:, :, None])
    normal = rows.scales >= 2.0**-14
    assert np.abs(halves[normal] / rows.scales[normal] - 1).max() <= 2.0**-11


def test_two_bits_are_q4_0_where_rows_are_no_multiples_of_256(mobile_factory, convert) -> None:
    made = convert(mobile_factory("e2b"))
    types = {one.weight: (one.type, one.shape[-1]) for one in made.plan.tensors}
    assert types["embed_tokens.weight"] == types["lm_head.weight"] == ("Q4_0", 128)
    assert types["layers.5.mlp.up_proj.weight"] == ("Q4_0", 128)
    assert types["layers.5.mlp.down_proj.weight"] == ("TQ2_0", 512)
    assert {one.type for one in made.plan.tensors if len(one.shape) > 1} == {"Q4_0", "TQ2_0", "Q8_0"}


def test_several_blocks_in_a_row_keep_their_scales(mobile_factory, convert) -> None:
    made = convert(mobile_factory("text", WIDE, blocks=6))
    exactness = measure(made.checkpoint, target.describe(made.artifact, made.checkpoint))
    (table,) = (one for one in exactness.tensors if one.weight == "embed_tokens_per_layer.weight")
    assert (table.block, table.type, table.wrong) == (32, "Q4_0", 0)
    assert table.equal_codes == table.blocks == 6 * 1280


def test_a_tied_head_is_left_out_and_an_own_one_is_stored(mobile_factory, convert) -> None:
    assert "output.weight" not in tensors(convert(mobile_factory("text", WIDE, head="tied")).artifact)
    assert "output.weight" in tensors(convert(mobile_factory("text", WIDE, head="copied")).artifact)


@pytest.mark.parametrize("options", [{}, {"extremes": True}, {"head": "tied", "blocks": 6}])
def test_everything_is_as_planned_and_all_codes_are_equal(mobile_factory, convert, options) -> None:
    made = convert(mobile_factory("text", WIDE, **options))
    assert target.differences(made.artifact, made.checkpoint, made.plan) == []
    exactness = measure(made.checkpoint, target.describe(made.artifact, made.checkpoint))
    assert exactness.count("wrong") == 0
    assert exactness.count("equal_codes") == exactness.count("blocks")
    assert all(one.wrong == 0 for one in exactness.off_lattice)


def test_scales_beyond_float16_are_told_and_kept_in_float32(mobile_factory, convert) -> None:
    made = convert(mobile_factory("text", WIDE, extremes=True))
    queries = "layers.0.self_attn.q_proj.weight"
    (planned,) = (one for one in made.plan.tensors if one.weight == queries)
    assert (planned.type, planned.exact) == ("F32", True)
    beyond, small, *_ = made.plan.warnings
    assert beyond.startswith(f"gguf: {queries}: its scales are outside float16's range")
    assert "become 0" in small
    stored = target.describe(made.artifact, made.checkpoint)[queries]
    weight = made.checkpoint.weights[queries]
    np.testing.assert_array_equal(stored.floats(0, weight.rows), weight.floats(0, weight.rows))


# activations


def test_static_scales_are_recorded_and_said_not_to_be_applied(wide) -> None:
    fields = {
        name: field.contents()
        for name, field in gguf.GGUFReader(wide.artifact).fields.items()
        if name.startswith("qatconvert.")
    }
    scales = wide.checkpoint.scales
    for kind, role in (
        ("input_scales", "input"),
        ("output_scales", "output"),
        ("key_cache_scales", "key"),
        ("value_cache_scales", "value"),
    ):
        expected = {name: getattr(one, role) for name, one in scales.items()}
        recorded = dict(
            zip(fields[f"qatconvert.{kind}.modules"], fields[f"qatconvert.{kind}.values"], strict=True)
        )
        assert recorded == {name: one[0] for name, one in expected.items() if one is not None}
    (line,) = (line for line in wide.plan.warnings if "static scales" in line)
    count = len(fields["qatconvert.input_scales.modules"])
    assert line == (
        f"gguf: {count} modules and 3 caches of attentions have static scales of activations, which the file "
        "records (qatconvert.*) and llama.cpp does not apply"
    )


def test_a_checkpoint_without_calibration_records_nothing(mobile_factory, convert) -> None:
    made = convert(mobile_factory("text", WIDE, activations=False))
    assert not [name for name in gguf.GGUFReader(made.artifact).fields if name.startswith("qatconvert.")]
    assert not [line for line in made.plan.warnings if "static scales" in line]


def test_a_scale_of_a_module_that_the_model_does_not_have_is_not_recorded(
    checkpoint_factory, tmp_path
) -> None:
    """Exports may hold keys and values of layers that share others'."""
    tensors, config = mobile_tensors(checkpoint_factory("text"))
    place = "model.layers.5.self_attn.k_proj"
    for name in ("weight", "weight_scale", "input_activation_scale"):
        tensors[f"{place}.{name}"] = tensors[f"model.layers.0.self_attn.k_proj.{name}"]
    directory = write_packed(checkpoint_factory("text"), tmp_path / "more", tensors, config)
    checkpoint = open_checkpoint(directory)
    assert "layers.5.self_attn.k_proj" in checkpoint.scales
    plan = target.plan(checkpoint, "model", {})
    target.write(checkpoint, plan, tmp_path)
    field = gguf.GGUFReader(tmp_path / plan.artifacts[0]).fields["qatconvert.input_scales.modules"]
    assert not [name for name in field.contents() if "layers.5.self_attn.k_proj" in name]


# what is wrong


def _changed(name: str, change: Callable[[bytearray], None]) -> Callable[[GgufFile], None]:
    def apply(file: GgufFile) -> None:
        for index, (own, dims, kind, data) in enumerate(file.tensors):
            if own == name:
                other = bytearray(data)
                change(other)
                assert other != data
                file.tensors[index] = (own, dims, kind, bytes(other))

    return apply


def _one_code(data: bytearray) -> None:
    data[5] ^= 1


def _sign(data: bytearray) -> None:
    data[65] ^= 0x80  # of the first block's scale, which stands behind its codes


def _one_scale(data: bytearray) -> None:
    data[64] ^= 1


def _all_signs(data: bytearray) -> None:
    for place in range(65, len(data), 66):
        data[place] ^= 0x80


def _order(data: bytearray) -> None:
    """Values in the order of Q2_K's bytes: four that follow each other in one."""
    blocks = np.frombuffer(bytes(data), np.uint8).reshape(-1, 66).copy()
    codes = blocks[:, :64].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    codes = codes.reshape(-1, 64, 4) << np.array([0, 2, 4, 6], np.uint8)
    blocks[:, :64] = np.bitwise_or.reduce(codes, axis=2)
    data[:] = blocks.tobytes()


def _recorded_scale(file: GgufFile) -> None:
    for index, (key, value) in enumerate(file.keys):
        if key == "qatconvert.input_scales.values":
            file.keys[index] = (key, value[:-1] + bytes([value[-1] ^ 1]))


@pytest.mark.parametrize(
    "change",
    [
        *(
            _changed("blk.5.ffn_down.weight", one)
            for one in (_one_code, _one_scale, _sign, _all_signs, _order)
        ),
        _changed("blk.5.attn_q.weight", _one_code),
        _changed("per_layer_model_proj.weight", _one_code),
        _changed("output.weight", _all_signs),
        _recorded_scale,
    ],
    ids=["code", "scale", "sign", "all signs", "order", "4 bits", "8 bits", "head", "recorded scale"],
)
def test_a_wrong_artifact_is_told(wide, tmp_path: Path, change: Callable[[GgufFile], None]) -> None:
    file = GgufFile.read(wide.artifact)
    change(file)
    path = tmp_path / wide.artifact.name
    file.write(path)
    told = target.differences(path, wide.checkpoint, wide.plan)
    assert [one for one in told if one.deciding]
    if change is not _recorded_scale:
        exactness = measure(wide.checkpoint, target.describe(path, wide.checkpoint))
        assert exactness.count("wrong") > 0


#: Mean KLD of llama.cpp from transformers, of these random weights: with the file's weights as floats, whose
#: scales are float16's, and as it ships, where llama.cpp rounds activations to 8 bits.
UNROUNDED, AS_IT_IS = 5e-4, 2e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("text", {"text": WIDE}),
        ("text", {"text": WIDE, "head": "copied"}),
        ("text", {"text": WIDE, "head": "numbers"}),
        ("text", {"text": WIDE, "extremes": True}),
        ("e2b", {}),
    ],
)
def test_llama_cpp_computes_what_transformers_does(
    mobile_factory, convert, tmp_path: Path, variant: str, options
) -> None:
    made = convert(mobile_factory(variant, activations=False, **options))
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < AS_IT_IS
    widened = tmp_path / "widened.gguf"
    widen(made.artifact, widened, lambda done, total: None)
    assert divergence_from_transformers(made.checkpoint, widened, runner, tmp_path) < UNROUNDED


@pytest.mark.slow
def test_llama_cpp_runs_a_tied_head_of_2_bits(mobile_factory, convert, tmp_path: Path) -> None:
    """transformers loads no packed embedding that a head is tied to: here the head is a copy for it."""
    tied = convert(mobile_factory("text", WIDE, activations=False, head="tied"))
    copied = open_checkpoint(mobile_factory("text", WIDE, activations=False, head="copied"))
    assert tensors(tied.artifact)["token_embd.weight"].tensor_type.name == "TQ2_0"
    assert divergence_from_transformers(copied, tied.artifact, runner, tmp_path) < AS_IT_IS


@pytest.mark.slow
@pytest.mark.parametrize("change", [_all_signs, _order], ids=["all signs", "order"])
@pytest.mark.parametrize("name", ["blk.5.ffn_down.weight", "output.weight", "token_embd.weight"])
def test_llama_cpp_computes_something_else_from_a_wrong_artifact(
    mobile_factory, convert, tmp_path: Path, name: str, change: Callable[[bytearray], None]
) -> None:
    made = convert(mobile_factory("text", WIDE, activations=False))
    file = GgufFile.read(made.artifact)
    _changed(name, change)(file)
    file.write(tmp_path / "other.gguf")
    limit = 2 * AS_IT_IS
    assert divergence_from_transformers(made.checkpoint, tmp_path / "other.gguf", runner, tmp_path) > limit


def test_codes_of_another_checkpoint_are_wrong(wide) -> None:
    name = "layers.5.mlp.down_proj.weight"
    weight = wide.checkpoint.weights[name]
    other: Checkpoint = replace(
        wide.checkpoint, weights={name: wide.checkpoint.weights["layers.4.mlp.down_proj.weight"]}
    )
    stored = target.describe(wide.artifact, replace(wide.checkpoint, weights={name: weight}))
    other = replace(other, weights={name: replace(other.weights[name], name=name)})
    assert measure(other, stored).count("wrong") == weight.rows
