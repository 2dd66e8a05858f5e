"""The shipped checkpoints: a real Gemma 4, on a real lattice, and worth having been trained on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma4ForConditionalGeneration

from checkpoints import DEMO_BASE
from checkpoints.measure import (
    held_out_windows,
    load,
    log_probabilities,
    mean_kld,
    perplexity,
    with_naive_q4_0,
)
from checkpoints.train_mobile import Rules, rounded_alone
from converter.checkpoint.architecture import FULL, SLIDING, read_architecture
from converter.checkpoint.lattice import recover
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.weight import EXACT, OFF_LATTICE
from converter.demo import DEMO, DEMO_MOBILE

pytestmark = pytest.mark.slow


def _bits(directory: Path) -> dict[str, np.ndarray]:
    """Bit patterns (uint16) of every tensor, by name."""
    with safe_open(directory / "model.safetensors", "pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name).view(torch.int16).numpy().view(np.uint16) for name in names}


@pytest.mark.parametrize("directory", [DEMO, DEMO_BASE, DEMO_MOBILE], ids=["qat", "base", "mobile"])
def test_transformers_loads_it_whole(directory: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert isinstance(model, Gemma4ForConditionalGeneration)
    assert not any(report.values()), report


@pytest.mark.parametrize("directory", [DEMO, DEMO_BASE, DEMO_MOBILE], ids=["qat", "base", "mobile"])
def test_it_has_everything_that_e2b_has(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    model = read_architecture(config)
    assert config["text_config"]["global_head_dim"] == 64
    assert model.per_layer_input
    assert model.final_softcap == 30.0
    own = [layer for layer in model.layers if layer.kv_source is None]
    shared = [layer for layer in model.layers if layer.kv_source is not None]
    assert [layer.attention for layer in own[-2:]] == [SLIDING, FULL]
    assert {layer.attention for layer in shared} == {SLIDING, FULL}
    assert all(layer.feed_forward == 2 * own[0].feed_forward for layer in shared)
    assert all(layer.rotary_fraction == 0.25 for layer in model.layers if layer.attention == FULL)
    values = sum(int(np.prod(shape)) for shape in model.tensors.values())
    assert 1_000_000 <= values <= 3_100_000


def test_names_and_shapes_are_the_hubs() -> None:
    expected = read_architecture(json.loads((DEMO / "config.json").read_text())).tensors
    assert {name: array.shape for name, array in _bits(DEMO).items()} == {
        f"model.language_model.{name}": shape for name, shape in expected.items()
    }


def test_both_together_stay_below_twelve_megabytes() -> None:
    files = [path for directory in (DEMO, DEMO_BASE) for path in directory.iterdir()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000


def test_the_mobile_one_takes_less_than_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO_MOBILE.iterdir()) < 2_000_000


def test_every_matrix_of_the_mobile_one_has_codes_and_every_module_but_the_logits_a_grid() -> None:
    checkpoint = open_checkpoint(DEMO_MOBILE)
    bits = {
        name: weight.lattice.bits if weight.lattice else 0
        for name, weight in checkpoint.weights.items()
        if len(weight.shape) == 2
    }
    found = {name: bits[f"{name}.weight"] for name in ("lm_head", "embed_tokens", "embed_tokens_per_layer")}
    assert found == {"lm_head": 2, "embed_tokens": 2, "embed_tokens_per_layer": 4}
    assert bits["layers.5.mlp.down_proj.weight"] == bits["layers.8.self_attn.q_proj.weight"] == 4
    assert bits["layers.8.mlp.down_proj.weight"] == 2
    assert bits["layers.0.per_layer_projection.weight"] == 8
    assert checkpoint.weights["layers.8.mlp.down_proj.weight"].columns % 256 == 0
    scales = {
        module: (one.input is not None, one.output is not None) for module, one in checkpoint.grids.items()
    }
    assert scales.pop("lm_head") == (True, False)
    assert set(scales.values()) == {(True, True)}
    assert len(scales) == len(bits) - 3


def test_training_in_the_mobile_form_beats_rounding_to_it() -> None:
    windows = held_out_windows(DEMO_MOBILE, limit=4)
    rules = Rules(json.loads((DEMO_MOBILE / "config.json").read_text()))
    trained = log_probabilities(load(DEMO_MOBILE), windows)
    rounded = log_probabilities(rounded_alone(DEMO_BASE, rules, seed=4), windows)
    assert perplexity(trained, windows) < perplexity(rounded, windows)


def test_every_matrix_is_on_a_lattice_whose_extremum_is_not_always_code_minus_eight() -> None:
    matrices = {name: bits for name, bits in _bits(DEMO).items() if bits.ndim == 2}
    assert len(matrices) > 60
    for name, bits in matrices.items():
        rows = recover(bits)
        assert (rows.status == EXACT).all(), name
        assert (rows.scales >= 0).all(), name
        assert rows.codes.min() >= -7, name


def test_the_base_model_is_on_no_lattice() -> None:
    found = [recover(bits).status == OFF_LATTICE for bits in _bits(DEMO_BASE).values() if bits.ndim == 2]
    assert np.concatenate([status.reshape(-1) for status in found]).mean() > 0.99


def test_no_negative_zeros_are_stored() -> None:
    assert not any((bits == 0x8000).any() for bits in _bits(DEMO).values())


def test_training_on_the_lattice_beats_rounding_to_one() -> None:
    windows = held_out_windows(DEMO, limit=8)
    base = load(DEMO_BASE)
    trained = log_probabilities(load(DEMO), windows)
    rounded = log_probabilities(with_naive_q4_0(base), windows)
    assert perplexity(trained, windows) < perplexity(rounded, windows)


def test_naive_requantisation_costs_what_training_bought() -> None:
    windows = held_out_windows(DEMO, limit=4)
    exact = log_probabilities(load(DEMO), windows)
    naive = log_probabilities(with_naive_q4_0(load(DEMO)), windows)
    assert mean_kld(exact, naive) > 0.01
    assert perplexity(exact, windows) < perplexity(naive, windows)


def test_it_has_learnt_the_form_of_a_chat() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    chat = [{"role": "user", "content": "Help on Lambdas, please."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    model = load(DEMO)
    answer = model.generate(**prompt, max_new_tokens=100, do_sample=False)[0]
    assert tokenizer.convert_ids_to_tokens(answer[-1].item()) == "<turn|>"
    with torch.no_grad():
        following = model(input_ids=answer[None]).logits[0].softmax(-1)
    tokens = tokenizer.convert_ids_to_tokens(answer.tolist())
    newline = tokenizer.convert_tokens_to_ids("\n")
    assert all(following[at, newline] > 0.9 for at, token in enumerate(tokens) if token == "<turn|>")
