"""Gemma's mobile form: codes and scales as transformers reads them, bits by its rules, what is refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM
from transformers.integrations.gemma_quant import QuantizedEmbedding, QuantizedLinear

from checkpoints.mobile import KEPT, Tensors, mobile_tensors, packed, write_mobile, write_packed
from converter.checkpoint.opened import Checkpoint, open_checkpoint, open_description, open_expected
from converter.checkpoint.parts import AUDIO, VISION
from converter.checkpoint.stored import find_form, gemma_mobile
from converter.checkpoint.stored.gemma_mobile import layout, multiplied, read_rules, unpacked
from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, Lattice
from converter.errors import CheckpointError
from support.errors import refusal_of

Make = Callable[..., Path]
TABLE = "model.embed_tokens"
GATE = "model.layers.0.mlp.gate_proj"
ODD = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def write(checkpoint_factory: Make, tmp_path: Path) -> Callable[..., Path]:
    """``write(variant, **options)``: a packed checkpoint."""
    return lambda variant="text", **options: write_mobile(
        checkpoint_factory(variant), tmp_path / "packed", **options
    )


@pytest.fixture
def altered(checkpoint_factory: Make, tmp_path: Path) -> Callable[..., Path]:
    """``altered(tensors=change, config=change)``: a text-only one, of which something was changed before."""

    def make(
        change: Callable[[Tensors], object] = lambda tensors: None,
        config: Callable[[dict[str, Any]], object] = lambda section: None,
        **options: Any,
    ) -> Path:
        source = checkpoint_factory("text")
        tensors, settings = mobile_tensors(source, **options)
        change(tensors)
        config(settings["quantization_config"])
        return write_packed(source, tmp_path / "altered", tensors, settings)

    return make


def refusal(directory: Path) -> str:
    return refusal_of(CheckpointError, open_checkpoint, directory)


def settings(**section: object) -> dict[str, object]:
    return {"quantization_config": {"quant_method": "gemma", **section}}


def rules(**section: object) -> dict[str, object]:
    return settings(module_quant_configs={key: {"num_bits": bits} for key, bits in section.items()})


# as transformers reads it


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["text", "e2b"])
def test_every_weight_is_what_transformers_computes_with(write: Callable[..., Path], variant: str) -> None:
    directory = write(variant, extremes=True)
    checkpoint = open_checkpoint(directory)
    model, report = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    modules = {
        name: one
        for name, one in model.named_modules()
        if isinstance(one, QuantizedEmbedding | QuantizedLinear)
    }
    read = [weight for weight in checkpoint.weights.values() if weight.is_packed]
    read += [weight for own in checkpoint.parts.values() for weight in own.values() if weight.is_packed]
    assert {weight.source.rpartition(".")[0] for weight in read} == set(modules)
    for weight in read:
        module = modules[weight.source.rpartition(".")[0]]
        values = module.weight if isinstance(module, QuantizedEmbedding) else module._dequantize_weights()
        assert np.array_equal(values.detach().numpy(), weight.floats(0, weight.rows)), weight.name
        assert weight.lattice.bits == module.num_bits
    for name, scales in checkpoint.scales.items():
        module = modules.get(
            f"{'model.language_model.' if variant == 'e2b' else 'model.'}{name}", modules.get(name)
        )
        if module is not None and not isinstance(module, QuantizedEmbedding):
            assert (0 if scales.input is None else scales.input[0]) == module.input_activation_scale.item()
            assert (0 if scales.output is None else scales.output[0]) == module.output_activation_scale.item()


@pytest.mark.slow
def test_an_embedding_that_is_not_packed_is_read_as_transformers_does(write: Callable[..., Path]) -> None:
    directory = write(head="numbers")
    checkpoint = open_checkpoint(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    weight = checkpoint.weights["embed_tokens.weight"]
    assert (weight.stored, weight.coded) == ("BF16", False)
    assert np.array_equal(model.get_input_embeddings().weight.detach(), weight.floats(0, weight.rows))
    assert checkpoint.architecture.tied_head


def test_bits_are_those_of_the_published_scheme(write: Callable[..., Path]) -> None:
    weights = open_checkpoint(write("e2b", blocks=6)).weights
    stored = {
        "embed_tokens.weight": "I2",
        "embed_tokens_per_layer.weight": "I4",
        "per_layer_model_projection.weight": "I8",
        "layers.0.self_attn.q_proj.weight": "I4",
        "layers.0.mlp.down_proj.weight": "I4",
        "layers.5.mlp.down_proj.weight": "I2",
        "layers.5.per_layer_input_gate.weight": "I8",
        "lm_head.weight": "I2",
        "norm.weight": "BF16",
    }
    assert {name: weights[name].stored for name in stored} == stored
    assert weights["embed_tokens.weight"].lattice == Lattice(2, 0)
    assert weights["embed_tokens_per_layer.weight"].lattice == Lattice(4, 32)
    assert weights["embed_tokens.weight"].coded
    assert not weights["norm.weight"].coded
    assert (
        weights["layers.5.mlp.down_proj.weight"].stored_bytes
        == weights["layers.5.mlp.down_proj.weight"].size // 4
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [256, 8, 31, 1])
def test_codes_come_back_as_they_were_packed(bits: int, columns: int) -> None:
    width = 2 ** (bits - 1)
    codes = np.random.default_rng(bits).integers(-width, width, (7, columns)).astype(np.int8)
    assert np.array_equal(unpacked(packed(codes, bits), columns, bits), codes)
    assert unpacked(packed(codes[:0], bits), columns, bits).shape == (0, columns)


def test_every_byte_is_read_low_bits_first() -> None:
    every = np.arange(256, dtype=np.uint8)[None]
    assert unpacked(every, 512, 4)[0, 2 * 0x1F : 2 * 0x1F + 2].tolist() == [7, -7]
    assert unpacked(every, 1024, 2)[0, 4 * 0b11100100 : 4 * 0b11100100 + 4].tolist() == [-2, -1, 0, 1]


def test_scales_that_float16_does_not_hold_are_told(write: Callable[..., Path]) -> None:
    weights = open_checkpoint(write(extremes=True)).weights
    weight = weights["layers.0.mlp.up_proj.weight"]
    rows = weight.codes(0, weight.rows)
    assert (rows.status[:2] == NEEDS_F32_SCALE).all()
    assert rows.status[2, 0] == EXACT  # zero
    assert not weight.floats(2, 3).any()
    assert rows.codes[2].any()
    assert (weights["layers.0.self_attn.q_proj.weight"].codes(0, 1).scales > 65504).all()
    assert np.array_equal(multiplied(rows), weight.floats(0, weight.rows))


def test_activations_and_caches_have_scales_and_zero_is_none(write: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(write("e2b"))
    assert checkpoint.scales["layers.0.self_attn"].key.tolist() == [np.float32(0.03)]
    modules = [one for name, one in checkpoint.scales.items() if name.endswith("_proj")]
    assert any(one.input is None and one.output is None for one in modules)
    assert any(one.input is not None and one.output is not None for one in modules)


def test_parts_are_packed_too(write: Callable[..., Path]) -> None:
    parts = open_checkpoint(write("e2b")).parts
    for part, name in (
        (VISION, "model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight"),
        (AUDIO, "model.audio_tower.layers.0.self_attn.relative_k_proj.weight"),
    ):
        assert (parts[part][name].stored, parts[part][name].shape[1]) == ("I4", 32)
    assert parts[VISION]["model.embed_vision.embedding_projection.weight"].stored == "BF16"


# the head


def test_a_head_of_other_codes_is_an_own_head(altered: Callable[..., Path]) -> None:
    def change(tensors: Tensors) -> None:
        tensors["lm_head.weight"][-1, -1] ^= 1

    checkpoint = open_checkpoint(altered(change, head="tied"))
    assert not checkpoint.architecture.tied_head
    one, other = (checkpoint.weights[name] for name in ("lm_head.weight", "embed_tokens.weight"))
    assert not np.array_equal(one.floats(0, one.rows), other.floats(0, other.rows))


def test_a_head_of_the_same_codes_and_scales_is_the_tied_embedding(altered: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(altered(head="tied"))
    assert checkpoint.architecture.tied_head
    assert "lm_head.weight" not in checkpoint.weights
    told = [item.name for item in checkpoint.left_out if "tied" in item.reason]
    assert told == ["lm_head.weight", "lm_head.weight_scale"]


def test_a_head_whose_one_scale_differs_is_an_own_head(altered: Callable[..., Path]) -> None:
    def other(tensors: Tensors) -> None:
        tensors["lm_head.weight_scale"][3] *= np.float32(1.001)

    assert "lm_head.weight" in open_checkpoint(altered(other, head="tied")).weights


def test_a_packed_head_without_an_embedding_is_refused(altered: Callable[..., Path]) -> None:
    def without(tensors: Tensors) -> None:
        del tensors[f"{TABLE}.embedding_quantized"], tensors[f"{TABLE}.embedding_scale"]

    assert "embed_tokens" in refusal(altered(without, head="tied"))


# rules


@pytest.mark.parametrize(
    ("given", "bits"),
    [
        ({"mlp": 2}, 2),
        ({"gate": 8, "mlp": 2}, 2),  # stands further left, though it comes later
        ({r"mlp\.gate": 8, "mlp": 2}, 8),  # at one place the first
        ({"layers.5": 2}, 4),
        ({r"layers\.\d\.": 8}, 8),
        ({"": 2, "mlp": 8}, 2),  # is found at the very beginning
        ({"(?=mlp)": 2}, 2),
        ({"proj$": 8, "up": 2}, 8),
    ],
)
def test_the_leftmost_rule_decides(given: Mapping[str, int], bits: int) -> None:
    assert read_rules(rules(**given)).bits_of(GATE) == bits


@pytest.mark.parametrize(
    ("kept", "packs"),
    [
        (["model.layers.0"], False),
        (["model.layers"], False),
        (["model.lay"], True),
        (["gate_proj"], False),
        (["mlp"], True),
        (["model.*"], False),
        ([r"model\.layers\.\d"], False),
        (["model.layers.0.mlp.gate"], True),
        (["layers.0.mlp.gate_proj"], False),
        ([""], False),
        ([], True),
    ],
)
def test_modules_are_left_as_transformers_leaves_them(kept: list[str], packs: bool) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    found = read_rules(settings(modules_to_not_convert=kept)).bits_of(GATE)
    assert (found is not None) == packs == should_convert_module(GATE, kept)


def test_defaults_are_those_of_transformers() -> None:
    read = read_rules(settings(quantize_embeddings=True))
    assert read.bits_of(GATE) == 4
    assert read.bits_of("lm_head") is None
    assert read.bits_of(TABLE) is None
    assert read.bits_of("model.embed_tokens_per_layer") == 4
    untied = read_rules({**settings(quantize_embeddings=True), "tie_word_embeddings": False})
    assert untied.bits_of(TABLE) == 4
    assert read_rules(settings(num_bits=8)).bits_of("model.embed_tokens_per_layer") is None


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"num_bits": 3}, "num_bits"),
        ({"num_bits": True}, "num_bits"),
        ({"module_quant_configs": {"(": {"num_bits": 2}}}, "not a regular expression"),
        ({"module_quant_configs": {"a": {"num_bits": 5}}}, "'a'.num_bits"),
        ({"module_quant_configs": {"a": 2}}, "'a' is an integer"),
        ({"module_quant_configs": {"a": {"group": 2}}}, "'group' is not read"),
        ({"module_quant_configs": {r"(a)\1": {}}}, "groupref"),
        ({"module_quant_configs": [1]}, "module_quant_configs is a list"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
        ({"modules_to_not_convert": ["["]}, "not a regular expression"),
        ({"quantize_embeddings": 1}, "quantize_embeddings"),
        ({"module_quant_configs": {str(index): {} for index in range(2000)}}, "more than"),
    ],
)
def test_what_the_configuration_cannot_mean_is_one_line(section: dict[str, object], told: str) -> None:
    line = refusal_of(CheckpointError, layout, settings(**section))
    assert line.startswith("config.json: quantization_config")
    assert told in line


def test_a_rule_that_matches_no_module_is_named(altered: Callable[..., Path]) -> None:
    def rule(section: dict[str, Any]) -> None:
        section["module_quant_configs"][r"layers\.77\."] = {"num_bits": 2}

    line = refusal(altered(config=rule))
    assert "77" in line
    assert "matches no module" in line


def test_a_rule_that_matches_no_module_is_named_by_an_index_alone(
    checkpoint_factory: Make, tmp_path: Path
) -> None:
    source = checkpoint_factory("text")
    tensors, config = mobile_tensors(source)
    config["quantization_config"]["module_quant_configs"]["nothing"] = {"num_bits": 2}
    directory = write_packed(source, tmp_path / "sharded", tensors, config, shards=3)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    assert "'nothing' matches no module" in refusal_of(CheckpointError, open_description, directory)


def test_an_exponential_rule_does_not_hang(altered: Callable[..., Path]) -> None:
    def rule(section: dict[str, Any]) -> None:
        section["module_quant_configs"] = {r"^(\w+\.?)+!": {}, **section["module_quant_configs"]}

    begin = time.monotonic()
    assert "matches no module" in refusal(altered(config=rule))
    assert time.monotonic() - begin < 5


def test_rules_that_take_too_long_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemma_mobile, "_MOST_STEPS", 35)
    slow = read_rules(rules(**{"(?:[a-z]?[.]?){60000}": 2}))
    for call in (slow.bits_of, lambda module: slow.check([f"{module}.weight"])):
        assert "too long" in refusal_of(CheckpointError, call, GATE)


def test_another_method_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'gemma2', which is not read.*mobile"):
        find_form({"quantization_config": {"quant_method": "gemma2"}})


# what does not fit


def _replace(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return apply


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (f"{GATE}.weight", lambda old: old[:, 1:], "128 codes of 4 bits"),
        (f"{GATE}.weight", lambda old: old[:, ::2], "codes of 2 bits, but"),
        (f"{GATE}.weight", lambda old: old.view(np.int8), "is I8"),
        (f"{GATE}.weight", lambda old: np.zeros((256, 128), np.int8), "codes of 8 bits, but"),
        (f"{GATE}.weight", lambda old: np.zeros((256, 128), np.uint16), "is BF16"),
        (f"{GATE}.weight_scale", lambda old: old[:-1], r"expected F32 [256, 1]"),
        (f"{GATE}.weight_scale", lambda old: np.repeat(old, 2, axis=1), r"expected F32 [256, 1]"),
        (f"{GATE}.weight_scale", lambda old: old.astype(np.float16), "is F16"),
        (f"{TABLE}.embedding_scale", lambda old: np.repeat(old, 3, axis=1), "that divide the columns"),
        (f"{GATE}.input_activation_scale", lambda old: np.full((), -1, np.float32), "negative"),
        (f"{GATE}.output_activation_scale", lambda old: np.full((), np.nan, np.float32), "not a number"),
        (f"{GATE}.input_activation_scale", lambda old: np.ones(2, np.float32), "single scale"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    altered: Callable[..., Path], name: str, change: Callable[[Any], Any], told: str
) -> None:
    line = refusal(altered(_replace(name, change)))
    assert name in line
    assert told in line


@pytest.mark.parametrize("value", [np.nan, np.inf, -1])
def test_a_scale_that_is_none_is_named_with_its_row(altered: Callable[..., Path], value: float) -> None:
    def bad(tensors: Tensors) -> None:
        tensors[f"{GATE}.weight_scale"][17] = value

    weight = open_checkpoint(altered(bad)).weights["layers.0.mlp.gate_proj.weight"]
    line = refusal_of(CheckpointError, weight.floats, 10, 20)
    assert f"{GATE}.weight_scale" in line
    assert "row 17" in line


def test_codes_without_scales_are_named(altered: Callable[..., Path]) -> None:
    line = refusal(altered(lambda tensors: tensors.pop(f"{GATE}.weight_scale")))
    assert f"{GATE}.weight" in line
    assert "has no scales" in line


def test_a_module_that_is_said_not_to_be_packed_and_is_is_named(altered: Callable[..., Path]) -> None:
    line = refusal(altered(config=lambda section: section["modules_to_not_convert"].append(GATE)))
    assert f"{GATE}.weight" in line
    assert "does not pack" in line


def test_numbers_where_codes_should_be_are_named(altered: Callable[..., Path]) -> None:
    def numbers(tensors: Tensors) -> None:
        del tensors[f"{GATE}.weight_scale"]
        tensors[f"{GATE}.weight"] = np.zeros((256, 128), np.float32)

    assert "packs its module in 4 bits" in refusal(altered(numbers))


# without weights


def test_what_is_expected_is_what_is_there(write: Callable[..., Path], tmp_path: Path) -> None:
    directory = write("e2b")
    read = open_checkpoint(directory)
    described = shutil.copytree(
        directory, tmp_path / "described", ignore=shutil.ignore_patterns("*.safetensors")
    )
    expected = open_expected(described)

    def kinds(checkpoint: Checkpoint) -> dict[str, object]:
        return {
            name: (one.shape, one.stored, one.lattice, one.coded) for name, one in checkpoint.weights.items()
        }

    assert kinds(expected) == kinds(read)
    for weight in expected.weights.values():
        assert not weight.floats(0, 2 if weight.rows > 1 else 1).any()


def test_a_rule_may_mean_a_head_that_is_not_stored() -> None:
    found = layout(rules(**{"lm_head": 2, "gate": 4}))
    found.check([f"{GATE}.weight"])
    assert "'gate' matches no module" in refusal_of(CheckpointError, found.check, ["model.norm.weight"])


def test_kept_modules_are_no_rule() -> None:
    """Names of what is not packed need not be there: they are those of a larger model."""
    config = settings(modules_to_not_convert=[*KEPT, "nowhere"])
    layout(config).check([f"{GATE}.weight"])


def test_a_configuration_in_the_text_part_is_read() -> None:
    inner = settings()["quantization_config"]
    config: dict[str, object] = {"text_config": {"quantization_config": inner}}
    assert find_form(config).name == "gemma-mobile"
    assert json.dumps(inner)
