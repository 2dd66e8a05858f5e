"""Random checkpoints: files that transformers loads whole, and lattices that are what their names say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints.generate import write_checkpoint
from checkpoints.schemes import SCHEMES, random_rows
from checkpoints.variants import VARIANTS
from converter.checkpoint.architecture import FULL, SLIDING, read_architecture
from converter.checkpoint.lattice import bf16_bits, recover
from converter.checkpoint.weight import EXACT, OFF_LATTICE
from converter.errors import CheckpointError

pytestmark = pytest.mark.slow

Factory = Callable[..., Path]
ROWS, COLUMNS = 512, 256


@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_loads_every_tensor_and_misses_none(
    checkpoint_factory: Factory, variant: str, layout: str
) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(
        checkpoint_factory(variant, layout=layout), dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        logits = model(input_ids=torch.arange(5, 69)[None]).logits[0]
    probabilities = logits.softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1)
    assert 1 < entropy.median() < np.log(logits.shape[-1]) - 0.5, "neither certain nor flat"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_layers_with_their_own_keys_are_sliding_then_full(
    checkpoint_factory: Factory, variant: str
) -> None:
    config = json.loads((checkpoint_factory(variant) / "config.json").read_text())
    own = [layer.attention for layer in read_architecture(config).layers if layer.kv_source is None]
    assert own[-2:] == [SLIDING, FULL]


def test_variants_keep_what_is_particular_to_their_models(checkpoint_factory: Factory) -> None:
    models = {
        name: read_architecture(json.loads((checkpoint_factory(name) / "config.json").read_text()))
        for name in VARIANTS
    }
    assert models["e2b"].per_layer_input
    assert models["e4b"].per_layer_input
    assert models["e2b"].layers[-1].feed_forward == 2 * models["e2b"].layers[0].feed_forward
    assert models["e4b"].layers[-1].feed_forward == models["e4b"].layers[0].feed_forward
    assert models["26b-a4b"].experts
    for name in ("12b", "26b-a4b", "31b"):
        full, sliding = models[name].layers[-1], models[name].layers[0]
        assert full.key_is_value
        assert full.kv_heads < sliding.kv_heads
        assert full.head_dim == 2 * sliding.head_dim


@pytest.mark.parametrize("variant", ["e2b", "e4b", "26b-a4b", "31b", "12b", "gemma3"])
def test_multimodal_variants_carry_tensors_outside_the_text_model(
    checkpoint_factory: Factory, variant: str
) -> None:
    with safe_open(checkpoint_factory(variant) / "model.safetensors", "np") as file:
        names = list(file.keys())
    assert any("vision" in name for name in names)
    assert any("audio" in name for name in names) == (variant in ("e2b", "e4b", "12b"))
    if VARIANTS[variant].model_type == "gemma4":
        assert "model.vision_tower.encoder.layers.0.mlp.up_proj.input_max" in names


@pytest.mark.parametrize("scheme", ["max7", "max8", "extremum8", "learned"])
def test_schemes_with_bfloat16_scales_are_on_a_lattice_that_can_be_proven(scheme: str) -> None:
    values = random_rows(SCHEMES[scheme], ROWS, COLUMNS, 0.05, (1,))
    found = recover(bf16_bits(values))
    assert (found.status == EXACT).all()


def test_every_hard_kind_of_block_occurs() -> None:
    blocks = random_rows(SCHEMES["max7"], ROWS, COLUMNS, 0.05, (1,)).reshape(-1, 32)
    distinct = np.array([len(set(block)) for block in blocks])
    assert (distinct == 1).any()
    assert (distinct == 2).any()
    assert (distinct == 3).any()
    assert ((blocks > 0).any(1) & (blocks >= 0).all(1) & (distinct > 3)).any()
    assert ((blocks < 0).any(1) & (blocks <= 0).all(1) & (distinct > 3)).any()
    assert not np.signbit(blocks[blocks == 0]).any(), "no negative zeros"


def test_extremum8_has_scales_of_either_sign() -> None:
    blocks = random_rows(SCHEMES["extremum8"], ROWS, COLUMNS, 0.05, (1,)).reshape(-1, 32)
    extremum = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    assert 0.4 < (extremum > 0).mean() < 0.6


def test_only_extremum8_always_gives_the_extremum_code_minus_eight() -> None:
    def share(scheme: str) -> float:
        found = recover(bf16_bits(random_rows(SCHEMES[scheme], ROWS, COLUMNS, 0.05, (1,))))
        codes = found.codes.reshape(-1, 32)
        lone = np.abs(codes).max(1) < 7  # zero blocks, and blocks reduced by a common divisor
        return float((codes.min(1) == -8)[~lone].mean())

    assert share("extremum8") > 0.99
    assert share("max7") == 0.0
    assert share("learned") < 0.7


def test_latent_weights_are_on_no_lattice() -> None:
    found = recover(bf16_bits(random_rows(None, ROWS, COLUMNS, 0.05, (1,))))
    assert (found.status == OFF_LATTICE).mean() > 0.99


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "a", "e2b", shards=2, threads=1)
    second = write_checkpoint(tmp_path / "b", "e2b", shards=2, threads=3)
    other = write_checkpoint(tmp_path / "c", "e2b", shards=2, seed=1)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    shard = "model-00001-of-00002.safetensors"
    assert (first / shard).read_bytes() != (other / shard).read_bytes()


def test_shards_hold_what_one_file_holds(checkpoint_factory: Factory) -> None:
    whole, parts = checkpoint_factory("e2b"), checkpoint_factory("e2b", shards=3)
    places = json.loads((parts / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(places.values())) == 3
    with safe_open(whole / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(places)
        for name, shard in places.items():
            with safe_open(parts / shard, "pt") as part:
                assert torch.equal(part.get_tensor(name), file.get_tensor(name))


@pytest.mark.parametrize("stored", ["F16", "F32"])
def test_other_types_hold_the_same_values(checkpoint_factory: Factory, stored: str) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    with safe_open(checkpoint_factory("text") / "model.safetensors", "pt") as file:
        expected = file.get_tensor(name)
    with safe_open(checkpoint_factory("text", stored=stored) / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor(name), expected.to(file.get_tensor(name).dtype))


def test_an_untied_head_is_a_tensor_of_its_own(checkpoint_factory: Factory) -> None:
    directory = checkpoint_factory("gemma3-text", tied=False)
    _, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert "lm_head.weight" in file.keys()  # noqa: SIM118 (not a mapping)


def test_a_scaled_checkpoint_names_every_token(checkpoint_factory: Factory) -> None:
    directory = checkpoint_factory("e2b", scale=0.02)
    config = json.loads((directory / "config.json").read_text())["text_config"]
    assert config["num_hidden_layers"] == 35
    assert config["num_kv_shared_layers"] == 20
    assert config["vocab_size"] == len(AutoTokenizer.from_pretrained(directory))


def test_unknown_names_and_impossible_overrides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown 'max9'"):
        write_checkpoint(tmp_path, "e2b", "max9")
    with pytest.raises(ValueError, match="not for 31b"):
        write_checkpoint(tmp_path, "31b", scale=0.1)
    with pytest.raises(CheckpointError, match="hidden_size"):
        write_checkpoint(tmp_path, "e2b", text={"hidden_size": 0})


def test_benchmarks_find_the_generator_by_themselves(tmp_path: Path) -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    (tmp_path / "script.py").write_text(
        f"import sys; sys.path.insert(0, {str(benchmarks)!r})\n"
        "from pathlib import Path\n"
        "from generator import generate\n"
        "generate(Path('made'), 'text', '--scheme', 'max8')\n"
        "from checkpoints.schemes import SCHEMES\n"
        "assert 'max8' in SCHEMES\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, check=True)
    again = write_checkpoint(tmp_path / "again", "text", "max8")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {path.name for path in again.iterdir()}
    assert (tmp_path / "made/model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
