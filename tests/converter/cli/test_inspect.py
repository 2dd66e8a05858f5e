"""``qatconvert inspect``: what a checkpoint is, without writing anything."""

from __future__ import annotations

import json

import pytest


def inspected(qatconvert, *words) -> dict:
    done = qatconvert("inspect", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_demo_is_on_its_lattice_from_end_to_end(qatconvert, tmp_path):
    found = inspected(qatconvert, "gemma4-demo")
    assert found["architecture"]["family"] == "gemma4"
    assert 1e6 < found["parameters"] < 3e6
    assert found["lattice"]["matrices"] == found["lattice"]["of"]
    assert found["lattice"]["exact_fraction"] == 1.0
    assert 4.5 <= found["targets"]["gguf"]["bits_per_weight"] < 4.7
    schemes = {weight["scheme"] for weight in found["weights"] if weight["lattice"]}
    assert "extremum/-8" not in schemes
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        ("max7", "max/7"),
        ("max8", "max/8"),
        ("extremum8", "extremum/-8"),
        ("learned", "learned"),
        ("max7-f32", "max/7, f32 scales"),
    ],
)
def test_every_scheme_is_found_and_named(qatconvert, checkpoint_factory, scheme, name):
    found = inspected(qatconvert, checkpoint_factory("text", scheme))
    by_size = sorted((weight for weight in found["weights"] if weight["lattice"]), key=lambda w: -w["blocks"])
    assert by_size[0]["scheme"] == name
    assert (by_size[0]["exact_fraction"] == 1.0) == ("f32" not in scheme)
    assert (by_size[0]["negative_scales"] > 0) == (scheme == "extremum8")


def test_the_plan_counts_blocks_whose_scale_a_target_cannot_hold(qatconvert, checkpoint_factory):
    model = checkpoint_factory("text", "max7-f32")
    found = inspected(qatconvert, model, "-t", "gguf", "-t", "onnx")
    gguf, onnx = (found["targets"][name]["blocks"] for name in ("gguf", "onnx"))
    assert gguf["scale_not_representable"] > 0
    assert onnx == {
        "exact": sum(gguf.values()),
        "scale_not_representable": 0,
        "codes_not_held": 0,
        "off_lattice": 0,
    }
    table = qatconvert("inspect", model, "-t", "gguf").stdout
    assert f"{gguf['scale_not_representable']:,} blocks have a scale that float16 cannot hold" in table


def test_a_plain_checkpoint_is_recognised_and_the_warning_names_the_share(qatconvert, checkpoint_factory):
    found = inspected(qatconvert, checkpoint_factory("text", "latent"), "--off-lattice", "bf16")
    assert found["lattice"]["matrices"] == 0
    matrices = [weight["name"] for weight in found["weights"] if weight["matrix"]]
    formats = {tensor["weight"]: tensor["format"] for tensor in found["targets"]["gguf"]["tensors"]}
    assert {formats[name] for name in matrices} == {"BF16"}
    assert any("100.00% of the weights" in line for line in found["targets"]["gguf"]["warnings"])


def test_tensors_that_are_not_converted_are_listed(qatconvert, checkpoint_factory):
    found = inspected(qatconvert, checkpoint_factory("e2b"))
    reasons = {item["name"]: item["reason"] for item in found["left_out"]}
    assert any("vision" in name for name in reasons)
    assert any("audio" in name for name in reasons)
    assert all(reasons.values())


def test_the_memory_of_caches_that_are_allocated_at_once_is_told(qatconvert):
    """6 layers of the demo have a cache of their own: 4 of 32 and 2 of 64, with one KV head, of float32."""
    found = inspected(qatconvert, "gemma4-demo")["targets"]
    size = 2048 * (4 * 32 + 2 * 64) * 2 * 4
    assert found["onnx"]["kv_cache"] == {"tokens": 2048, "bytes": size}
    assert "kv_cache" not in found["gguf"]
    table = qatconvert("inspect", "gemma4-demo", "-t", "onnx").stdout
    assert f"KV cache  {size / 1e6:.2f} MB for 2,048 tokens, allocated at once" in table
