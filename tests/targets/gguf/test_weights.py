"""What is in the written file, read back by gguf-py, against the checkpoint."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import gguf
import numpy as np
import pytest

from converter.checkpoint.lattice import bf16_bits, bf16_floats, recover
from converter.checkpoint.opened import open_checkpoint
from converter.errors import CheckpointError, TargetError
from targets.gguf import target

EXACT_SCHEMES = ["max7", "max8", "extremum8", "learned"]
VARIANTS = ["e2b", "e4b", "12b", "26b-a4b", "31b", "text", "gemma3", "gemma3-text"]


def stored(made):
    return target.describe(made.artifact, made.checkpoint)


def as_bf16(values):
    """Rounded to bfloat16, as floats, so that zeros of either sign are equal."""
    return bf16_floats(bf16_bits(values))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_reads_back_bit_for_bit(variant, checkpoint_factory, convert):
    made = convert(checkpoint_factory(variant))
    found = stored(made)
    assert list(found) == list(made.checkpoint.weights)
    for name, weight in made.checkpoint.weights.items():
        ours = found[name].floats(0, weight.rows)
        if name in made.checkpoint.architecture.norms:
            # llama.cpp wants 1 + weight in float32, which is what the model multiplies with
            np.testing.assert_allclose(ours, weight.floats(0, weight.rows), rtol=0, atol=2.0**-23)
        else:
            np.testing.assert_array_equal(as_bf16(ours), weight.floats(0, weight.rows), err_msg=name)


@pytest.mark.parametrize("scheme", EXACT_SCHEMES)
def test_every_lattice_matrix_is_q4_0_and_exact(scheme, checkpoint_factory, convert):
    made = convert(checkpoint_factory("e2b", scheme))
    assert made.plan.warnings == ()
    for tensor in made.plan.tensors:
        assert tensor.type == ("Q4_0" if len(tensor.shape) > 1 else "F32"), tensor
        assert tensor.exact
    for name, one in stored(made).items():
        weight = made.checkpoint.weights[name]
        np.testing.assert_array_equal(as_bf16(one.floats(0, weight.rows)), weight.floats(0, weight.rows))


def test_dequantised_values_are_scale_times_code(checkpoint_factory, convert):
    made = convert(checkpoint_factory("26b-a4b", "learned"))
    found = stored(made)
    for name, weight in made.checkpoint.weights.items():
        if weight.codes and found[name].type == "Q4_0":
            rows = weight.codes(0, weight.rows)
            expected = rows.codes * np.repeat(rows.scales, 32, axis=1)
            np.testing.assert_array_equal(found[name].floats(0, weight.rows), expected)


def test_float32_scales_cost_at_most_one_bfloat16_step(checkpoint_factory, convert):
    made = convert(checkpoint_factory("text", "learned-f32"))
    for name, one in stored(made).items():
        weight = made.checkpoint.weights[name]
        ours = bf16_bits(one.floats(0, weight.rows)).astype(np.int32)
        assert np.abs(ours - bf16_bits(weight.floats(0, weight.rows)).astype(np.int32)).max() <= 1


def test_the_router_stays_float32(checkpoint_factory, convert):
    formats = {one.weight: one.type for one in convert(checkpoint_factory("26b-a4b")).plan.tensors}
    assert formats["layers.0.router.proj.weight"] == "F32"
    assert formats["layers.0.experts.gate_up_proj"] == "Q4_0"


@pytest.mark.parametrize("option", ["q8_0", "bf16", "f16", "q4_0"])
def test_matrices_on_no_lattice_take_the_type_asked_for(option, checkpoint_factory, convert, llama):
    made = convert(checkpoint_factory("text", "latent"), off_lattice=option)
    assert {one.type for one in made.plan.tensors if len(one.shape) > 1} == {option.upper()}
    assert made.plan.warnings[0].startswith("gguf: 100.00% of the weights")
    limit = {"q8_0": 5e-3, "bf16": 0, "f16": 1e-3, "q4_0": 0.14}[option]
    for name, one in stored(made).items():
        weight = made.checkpoint.weights[name]
        values = weight.floats(0, weight.rows)
        assert np.abs(one.floats(0, weight.rows) - values).max() <= limit * np.abs(values).max(), name
    assert llama(made.artifact)


def test_rows_that_do_not_divide_into_blocks_keep_the_checkpoint_s_type(checkpoint_factory, convert, llama):
    made = convert(checkpoint_factory("text", "latent", text={"intermediate_size": 200}))
    formats = {one.weight: one.type for one in made.plan.tensors}
    assert formats["layers.0.mlp.down_proj.weight"] == "BF16"
    assert formats["layers.0.mlp.up_proj.weight"] == "Q8_0"
    (warning,) = made.plan.warnings
    assert "6 keep the checkpoint's type, as their rows are no multiple of 32" in warning
    assert llama(made.artifact)


def test_blocks_that_turn_out_to_be_off_the_lattice_are_counted(checkpoint_factory, tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for file in checkpoint_factory("text").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    checkpoint = open_checkpoint(directory)
    weight = checkpoint.weights["embed_tokens.weight"]
    # the opened checkpoint judged this matrix by a sample; change one block behind its back
    data = bytearray((directory / "model.safetensors").read_bytes())
    row = weight.floats(1, 2)
    place = data.find(bf16_bits(row).tobytes())
    noise = np.random.default_rng(0).normal(size=32).astype(np.float32)
    data[place : place + 64] = bf16_bits(noise).tobytes()
    (directory / "model.safetensors").write_bytes(data)
    written = target.write(checkpoint, target.plan(checkpoint, "m", {}), tmp_path / "out")
    assert written.blocks is not None
    assert (written.blocks.off_lattice, written.blocks.rounded_scales) == (1, 0)
    assert written.blocks.exact == written.blocks.blocks - 1
    assert written.warnings == [
        f"gguf: embed_tokens.weight: 1 blocks ({32 / weight.size:.2%} of its weights) lie on no lattice and "
        "are rounded to the nearest"
    ]


def scaled(checkpoint, name, factor):
    """``checkpoint`` with every value of one lattice matrix multiplied by a power of two."""
    weight = checkpoint.weights[name]

    def floats(start, stop):
        return weight.floats(start, stop) * np.float32(factor)

    def codes(start, stop):
        return recover(bf16_bits(floats(start, stop)))

    return replace(
        checkpoint, weights={**checkpoint.weights, name: replace(weight, floats=floats, codes=codes)}
    )


def test_scales_below_float16_are_told(checkpoint_factory, tmp_path):
    checkpoint = scaled(open_checkpoint(checkpoint_factory("text")), "embed_tokens.weight", 2.0**-20)
    (warning,) = target.write(checkpoint, target.plan(checkpoint, "m", {}), tmp_path).warnings
    assert re.fullmatch(
        r"gguf: \d+ of \d+ blocks have a scale that float16 does not hold and that is rounded", warning
    )


def test_scales_beyond_float16_are_refused(checkpoint_factory, tmp_path):
    checkpoint = scaled(open_checkpoint(checkpoint_factory("text")), "embed_tokens.weight", 2.0**30)
    with pytest.raises(TargetError, match=r"embed_tokens\.weight: .* beyond the range of Q4_0's float16"):
        target.write(checkpoint, target.plan(checkpoint, "m", {}), tmp_path)


@pytest.mark.parametrize("option", ["q8_0", "f16", "q4_0"])
def test_values_beyond_float16_on_no_lattice_are_refused(option, checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text", "latent"))
    checkpoint = scaled(checkpoint, "embed_tokens.weight", 2.0**60)
    plan = target.plan(checkpoint, "m", {"off_lattice": option})
    with pytest.raises(TargetError, match=r"embed_tokens\.weight: .*try --off-lattice bf16"):
        target.write(checkpoint, plan, tmp_path)


def test_the_same_input_gives_the_same_bytes(checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory("e2b"))
    again = open_checkpoint(checkpoint_factory("e2b"))
    target.write(again, target.plan(again, "model", {}), tmp_path)
    assert (tmp_path / made.plan.artifacts[0]).read_bytes() == made.artifact.read_bytes()


def test_shards_do_not_change_the_bytes(checkpoint_factory, convert):
    whole, sharded = (convert(checkpoint_factory("e2b", shards=count)) for count in (1, 3))
    assert whole.artifact.read_bytes() == sharded.artifact.read_bytes()


def test_progress_adds_up_to_the_bytes_of_the_checkpoint(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("31b"))
    told: list[tuple[str, int, int]] = []
    target.write(checkpoint, target.plan(checkpoint, "m", {}), tmp_path, lambda *step: told.append(step))
    total = sum(2 * weight.size for weight in checkpoint.weights.values())
    assert told[-1] == ("writing gguf", total, total)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})


def test_the_plan_s_bytes_are_the_file_s(checkpoint_factory, convert):
    made = convert(checkpoint_factory("e2b"))
    reader = gguf.GGUFReader(made.artifact)
    sizes = {one.name: (int(one.n_bytes), one.tensor_type.name) for one in reader.tensors}
    assert sizes == {one.stored_as: (one.bytes, one.type) for one in made.plan.tensors}
    assert 4.5 < made.plan.bits_per_weight < 4.8


def test_the_conversion_imports_neither_torch_nor_transformers(checkpoint_factory, tmp_path):
    script = (
        "import sys; from pathlib import Path; from converter.checkpoint.opened import open_checkpoint\n"
        "from targets.gguf import target; c = open_checkpoint(Path(sys.argv[1]))\n"
        "target.write(c, target.plan(c, 'm', {}), Path(sys.argv[2]))\n"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules), sorted(sys.modules)"
    )
    arguments = [sys.executable, "-c", script, str(checkpoint_factory("e2b")), str(tmp_path)]
    subprocess.run(arguments, check=True)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_one_line(share, checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory("text"))
    data = made.artifact.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.gguf.*GGUF") as error:
        target.describe(path, made.checkpoint)
    assert "\n" not in str(error.value)


def test_a_file_of_another_model_is_refused(checkpoint_factory, convert):
    small, large = convert(checkpoint_factory("31b")), convert(checkpoint_factory("e2b"))
    with pytest.raises(CheckpointError, match=r"is missing|has shape"):
        target.describe(small.artifact, large.checkpoint)
