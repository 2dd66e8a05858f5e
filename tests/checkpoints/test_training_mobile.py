"""How the demonstration model in the mobile form is trained: from the base model, as it will be stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Gemma4ForCausalLM, PreTrainedModel

from checkpoints import DEMO_BASE
from checkpoints.measure import held_out_windows, load
from checkpoints.model import save_configuration
from checkpoints.quantisation import is_matrix
from checkpoints.train_mobile import SETTINGS, Grids, Rules, calibrate, save, widened
from converter.checkpoint.opened import open_checkpoint

TOKENIZER = DEMO_BASE / "tokenizer.json"


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return held_out_windows(DEMO_BASE, 2)[:, :65]


@pytest.fixture(scope="module")
def model() -> Gemma4ForCausalLM:
    return widened(DEMO_BASE, seed=4).eval()


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    place = tmp_path_factory.mktemp("rules")
    save_configuration(Tokenizer.from_file(str(TOKENIZER)), place, **SETTINGS)
    return Rules(json.loads((place / "config.json").read_text()))


def logits(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=windows).logits


@pytest.mark.slow
def test_the_wider_model_computes_what_the_base_does(model: Gemma4ForCausalLM, windows: torch.Tensor) -> None:
    torch.testing.assert_close(logits(model, windows), logits(load(DEMO_BASE), windows), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("model.embed_tokens.weight", 2),
        ("lm_head.weight", 2),
        ("model.embed_tokens_per_layer.weight", 4),
        ("model.layers.8.mlp.down_proj.weight", 2),
        ("model.layers.5.mlp.down_proj.weight", 4),
        ("model.layers.8.self_attn.q_proj.weight", 4),
        ("model.layers.0.per_layer_projection.weight", 8),
        ("model.per_layer_model_projection.weight", 8),
    ],
)
def test_a_matrix_is_trained_with_the_bits_of_the_published_scheme(
    rules: Rules, name: str, bits: int
) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(bits))
    codes, scale = rules.codes(name, weight)
    assert rules.bits(name) == bits
    assert float(codes.min()) >= -(2 ** (bits - 1))
    assert float(codes.max()) <= 2 ** (bits - 1) - 1
    assert len(codes.unique()) > (bits > 2) * 2 ** (bits - 2) + 2
    torch.testing.assert_close(rules.rounded(name, weight), codes * scale)


def test_gradients_pass_the_rounding_and_end_outside_of_a_grid(rules: Rules) -> None:
    weight = torch.randn(4, 64, requires_grad=True)
    rules.rounded("lm_head.weight", weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(4, 64))
    values = torch.tensor([-99.0, -1.28, 0.3, 1.27, 5.0], requires_grad=True)
    on_grid = Grids({"x": 0.01}).apply("x", values)
    on_grid.sum().backward()
    torch.testing.assert_close(on_grid.detach(), torch.tensor([-1.28, -1.28, 0.3, 1.27, 1.27]))
    assert values.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.slow
def test_what_is_saved_computes_what_was_trained(rules: Rules, windows: torch.Tensor, tmp_path: Path) -> None:
    """In transformers, with its grids; every scale of activations that it reads is there."""
    model, grids = widened(DEMO_BASE, seed=4).eval(), Grids()  # its own, since grids stay on it
    grids.attach(model)
    calibrate(model, grids, rules, [windows])
    save(model, grids, rules, Tokenizer.from_file(str(TOKENIZER)), tmp_path)
    weights = {name: rules.rounded(name, weight) for name, weight in model.named_parameters()}
    with torch.no_grad():
        arguments = {"input_ids": windows, "use_cache": False}
        trained = torch.func.functional_call(model, weights, kwargs=arguments).logits
    saved = load(tmp_path)
    torch.testing.assert_close(logits(saved, windows), trained, atol=1e-3, rtol=0)
    calibrated = {name: one for name, one in saved.named_parameters() if name.endswith("activation_scale")}
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], one) for name, one in calibrated.items())
    assert [name for name, one in calibrated.items() if not one] == ["lm_head.output_activation_scale"]
    assert len([name for name in stored if name.endswith("_cache_scale")]) == 2 * 6
    checkpoint = open_checkpoint(tmp_path)
    assert all(weight.lattice for weight in checkpoint.weights.values() if len(weight.shape) == 2)
    assert sum(is_matrix(name, one) for name, one in model.named_parameters()) > 60
