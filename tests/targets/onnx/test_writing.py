"""What onnxruntime makes of the written data, and the parallel writer's behaviour."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converter.checkpoint.lattice import bf16_bits, bf16_floats, recover
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.weight import NEEDS_F32_SCALE
from converter.errors import CheckpointError, DestinationError, TargetError
from support.onnx_weights import DATA, computed, planned, write
from targets.gguf.storage import Q4_0, Q8_0
from targets.onnx.layout import lay_out
from targets.onnx.storage import Storage, expert_name, stored_name
from targets.onnx.writing import write_data
from targets.storing import is_matrix

pytestmark = pytest.mark.slow

ROUTER = ".router.proj.weight"


def by_initializer(checkpoint):
    """Name of an initializer, and the checkpoint's rows that it holds."""
    for name, weight in checkpoint.weights.items():
        rows = weight.rows // weight.shape[0] if len(weight.shape) == 3 else weight.rows
        for start in range(0, weight.rows, rows):
            part = expert_name(name, start // rows) if len(weight.shape) == 3 else name
            yield stored_name(part), weight, start, start + rows


def scale_times_code(weight, start, stop):
    rows = weight.codes(start, stop)
    return rows.codes * np.repeat(rows.scales, 32, axis=1)


def vocabulary(checkpoint):
    return checkpoint.weights["embed_tokens.weight"].rows


@pytest.mark.parametrize("scales", ["FLOAT", "FLOAT16"])
@pytest.mark.parametrize(
    ("variant", "scheme"),
    [("e2b", "max7"), ("26b-a4b", "learned"), ("gemma3", "extremum8"), ("12b", "max8")],
)
def test_onnxruntime_computes_with_scale_times_code(variant, scheme, scales, checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory(variant, scheme))
    made = write(checkpoint, tmp_path, Storage(scales=scales))
    assert made.written.rounded == 0
    found = computed(made.path, vocabulary(checkpoint))
    for name, weight, start, stop in by_initializer(checkpoint):
        expected = weight.floats(start, stop)
        if weight.codes and not weight.name.endswith(ROUTER):
            expected = scale_times_code(weight, start, stop)
        np.testing.assert_array_equal(found[name].reshape(expected.shape), expected, err_msg=name)
    head = found["model.lm_head.weight"]
    np.testing.assert_array_equal(head, found["model.embed_tokens.weight"])


def test_scales_may_be_negative(checkpoint_factory):
    weight = open_checkpoint(checkpoint_factory("gemma3", "extremum8")).weights["embed_tokens.weight"]
    assert weight.codes(0, weight.rows).scales.min() < 0  # so that the test above shows what it says


def test_a_lattice_with_float32_scales_is_exact_with_float32_scales(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text", "learned-f32"))
    made = write(checkpoint, tmp_path)
    assert made.written.rounded == 0
    found = computed(made.path, vocabulary(checkpoint))
    needed = 0
    for name, weight, start, stop in by_initializer(checkpoint):
        values = bf16_floats(bf16_bits(found[name].reshape(-1, weight.columns)))
        np.testing.assert_array_equal(values, weight.floats(start, stop), err_msg=name)
        needed += np.count_nonzero(weight.codes(start, stop).status == NEEDS_F32_SCALE) if weight.codes else 0
    assert needed
    kept = write(checkpoint, tmp_path / "half", Storage(scales="FLOAT16"))
    assert kept.written.rounded == needed
    assert kept.written.blocks == made.written.blocks


@pytest.mark.parametrize(("option", "ggml"), [("q8_0", Q8_0), ("q4_0", Q4_0)])
@pytest.mark.parametrize("scales", ["FLOAT", "FLOAT16"])
def test_matrices_on_no_lattice_are_rounded_to_codes(option, ggml, scales, checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("26b-a4b", "latent"))
    made = write(checkpoint, tmp_path, Storage(scales=scales, off_lattice=option))
    assert (made.written.blocks, made.written.off_lattice) == (0, {})
    found = computed(made.path, vocabulary(checkpoint))
    for name, weight, start, stop in by_initializer(checkpoint):
        if is_matrix(weight):
            rows = ggml.rounded(weight.floats(start, stop))
            codes, factors = rows.codes, rows.scales
            np.testing.assert_array_equal(found[name], codes * np.repeat(factors, 32, axis=1), err_msg=name)


@pytest.mark.parametrize(("option", "relative"), [("bf16", 0), ("f16", 2.0**-11), ("f32", 0)])
def test_matrices_on_no_lattice_are_kept_as_numbers(option, relative, checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text", "latent"))
    made = write(checkpoint, tmp_path, Storage(off_lattice=option))
    found = computed(made.path, vocabulary(checkpoint))
    for name, weight, start, stop in by_initializer(checkpoint):
        expected = weight.floats(start, stop)
        away = np.abs(found[name].reshape(expected.shape) - expected)
        assert np.all(away <= np.maximum(relative * np.abs(expected), 2.0**-25 * (relative > 0))), name


def test_norms_are_stored_as_the_checkpoint_has_them(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("gemma3"))
    assert checkpoint.architecture.norm_offset == 1
    found = computed(write(checkpoint, tmp_path).path, vocabulary(checkpoint))
    norm = checkpoint.weights["norm.weight"]
    np.testing.assert_array_equal(found["model.norm.weight"], norm.floats(0, 1)[0])


def test_another_graph_can_be_run_on_the_same_data(checkpoint_factory, tmp_path):
    """A graph that is loaded from bytes finds the data in the directory that a session option names."""
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    made = write(checkpoint, tmp_path / "a")
    (tmp_path / "b").mkdir()
    moved = made.path.rename(tmp_path / "b" / "model.onnx")
    found = computed(moved, vocabulary(checkpoint), folder=tmp_path / "a")
    weight = checkpoint.weights["embed_tokens.weight"]
    np.testing.assert_array_equal(
        found["model.embed_tokens.weight"], scale_times_code(weight, 0, weight.rows)
    )


def test_accuracy_level_4_stays_close(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    exact = computed(write(checkpoint, tmp_path / "0").path, vocabulary(checkpoint))
    for scales in ("FLOAT", "FLOAT16"):
        made = write(checkpoint, tmp_path / scales, Storage(scales=scales), level=4)
        for name, values in computed(made.path, vocabulary(checkpoint)).items():
            np.testing.assert_allclose(values, exact[name], rtol=1e-5, atol=1e-6, err_msg=name)


def data(checkpoint, path, storage=Storage(), progress=lambda count: None):  # noqa: B008
    layout = lay_out([planned(weight, storage) for weight in checkpoint.weights.values()], storage)
    return write_data(path, layout, checkpoint.weights, storage, progress)


def scaled(checkpoint, name, factor):
    """``checkpoint`` with every value of one matrix multiplied by a power of two."""
    weight = checkpoint.weights[name]

    def floats(start, stop):
        return weight.floats(start, stop) * np.float32(factor)

    def codes(start, stop):
        return recover(bf16_bits(floats(start, stop)))

    changed = replace(weight, floats=floats, codes=codes if weight.codes else None)
    return replace(checkpoint, weights={**checkpoint.weights, name: changed})


def test_scales_beyond_float16_are_refused_in_float16_only(checkpoint_factory, tmp_path):
    checkpoint = scaled(open_checkpoint(checkpoint_factory("text")), "embed_tokens.weight", 2.0**30)
    with pytest.raises(
        TargetError, match=r"embed_tokens\.weight: .*INT4's float16 scales; use --onnx-scales f32"
    ):
        data(checkpoint, tmp_path / DATA, Storage(scales="FLOAT16"))
    assert data(checkpoint, tmp_path / DATA).off_lattice == {}


@pytest.mark.parametrize("option", ["q8_0", "f16", "q4_0"])
def test_values_beyond_float16_on_no_lattice_are_refused(option, checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text", "latent"))
    checkpoint = scaled(checkpoint, "embed_tokens.weight", 2.0**60)
    with pytest.raises(TargetError, match=r"embed_tokens\.weight: .*try --off-lattice bf16") as error:
        data(checkpoint, tmp_path / DATA, Storage(off_lattice=option))
    assert "\n" not in str(error.value)


def test_a_norm_beyond_float16_is_refused_with_float16_activations(checkpoint_factory, tmp_path):
    checkpoint = scaled(open_checkpoint(checkpoint_factory("text")), "norm.weight", 2.0**20)
    with pytest.raises(TargetError, match=r"norm\.weight: .* FLOAT16; use --onnx-dtype float32"):
        data(checkpoint, tmp_path / DATA, Storage("FLOAT16", "FLOAT16"))


def test_a_float32_value_beyond_bfloat16_is_refused(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text", "latent"))
    name = "layers.0.mlp.up_proj.weight"
    weight = checkpoint.weights[name]
    largest = replace(
        weight, floats=lambda start, stop: np.full((stop - start, weight.columns), 3.4e38, np.float32)
    )
    checkpoint = replace(checkpoint, weights={**checkpoint.weights, name: largest})
    with pytest.raises(TargetError, match=r"up_proj\.weight: .* BFLOAT16; try --off-lattice f32"):
        data(checkpoint, tmp_path / DATA, Storage(off_lattice="bf16"))


def test_blocks_that_turn_out_to_be_off_the_lattice_are_counted(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    weight = checkpoint.weights["embed_tokens.weight"]

    def codes(start, stop):
        values = weight.floats(start, stop).copy()
        if start == 0:
            values[1, :32] = np.random.default_rng(0).normal(size=32)
        return recover(bf16_bits(values))

    weights = {**checkpoint.weights, weight.name: replace(weight, codes=codes)}
    for scales in ("FLOAT", "FLOAT16"):
        written = data(replace(checkpoint, weights=weights), tmp_path / DATA, Storage(scales=scales))
        assert written.off_lattice == {"embed_tokens.weight": 1}


def test_the_same_input_gives_the_same_bytes_however_it_is_read(checkpoint_factory, tmp_path):
    for name, options in (("a", {}), ("b", {}), ("c", {"shards": 3})):
        data(open_checkpoint(checkpoint_factory("e2b", **options)), tmp_path / name)
    first = (tmp_path / "a").read_bytes()
    assert (tmp_path / "b").read_bytes() == first
    assert (tmp_path / "c").read_bytes() == first


def test_an_earlier_longer_file_leaves_nothing_behind(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    data(checkpoint, tmp_path / "new")
    (tmp_path / "old").write_bytes(bytes((tmp_path / "new").stat().st_size + 1000))
    data(checkpoint, tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == (tmp_path / "new").read_bytes()


def test_progress_adds_up_to_the_bytes_of_the_checkpoint(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("31b"))
    counts: list[int] = []
    data(checkpoint, tmp_path / DATA, progress=counts.append)
    assert sum(counts) == sum(2 * weight.size for weight in checkpoint.weights.values())


def test_a_failure_while_reading_stops_every_thread_and_is_the_one_raised(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))

    def broken(start: int, stop: int) -> np.ndarray:
        raise CheckpointError("shard: tensor x is cut off")

    weights = {**checkpoint.weights}
    weights["norm.weight"] = replace(weights["norm.weight"], floats=broken)
    before = threading.active_count()
    with pytest.raises(CheckpointError, match="tensor x is cut off"):
        data(replace(checkpoint, weights=weights), tmp_path / DATA)
    assert threading.active_count() == before


def test_a_full_disk_is_noticed_before_anything_is_written(checkpoint_factory, tmp_path):
    memory = Path("/dev/shm")
    directory = memory if memory.is_dir() else tmp_path
    status = os.statvfs(directory)
    path = directory / f"qatconvert-{os.getpid()}.data"
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    layout = lay_out([planned(weight, Storage()) for weight in checkpoint.weights.values()], Storage())
    counts: list[int] = []
    try:
        with pytest.raises(DestinationError, match=r"disk is full.*bytes are needed"):
            write_data(
                path,
                replace(layout, size=(status.f_blocks + 1) * status.f_frsize),
                checkpoint.weights,
                Storage(),
                counts.append,
            )
    finally:
        path.unlink()
    assert not counts


def test_weights_lie_where_the_layout_says_beyond_4_gigabytes(checkpoint_factory, tmp_path):
    """A sparse file: only the last weight has a place of its own, far out."""
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    weight = checkpoint.weights["embed_tokens.weight"]
    layout = lay_out([planned(weight, Storage())], Storage())
    near = layout.places[weight.name]
    far = 5 << 30
    place = replace(near, offset=far + near.offset, scales_offset=far + near.scales_offset)
    path, size = tmp_path / DATA, far + layout.size
    with path.open("wb") as stream:
        stream.truncate(size)
    moved = replace(layout, places={weight.name: place}, size=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(os, "posix_fallocate", raising=False)  # a system that gives a file its length alone
        write_data(path, moved, {weight.name: weight}, Storage(), lambda count: None)
    data(replace(checkpoint, weights={weight.name: weight}), tmp_path / "near")
    with path.open("rb") as stream:
        stream.seek(far)
        assert stream.read() == (tmp_path / "near").read_bytes()


def test_memory_does_not_grow_with_the_model(checkpoint_factory, tmp_path):
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from converter.checkpoint.opened import open_checkpoint\n"
        "sys.path.append(sys.argv[3]); from support.onnx_weights import planned\n"
        "from targets.onnx.layout import lay_out\n"
        "from targets.onnx.storage import Storage; from targets.onnx.writing import write_data\n"
        "c, s = open_checkpoint(Path(sys.argv[1])), Storage()\n"
        "layout = lay_out([planned(w, s) for w in c.weights.values()], s)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_data(Path(sys.argv[2]), layout, c.weights, s, lambda count: None)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    directory = checkpoint_factory("e2b", scale=0.15)
    size = (directory / "model.safetensors").stat().st_size
    arguments = [
        sys.executable,
        "-c",
        script,
        str(directory),
        str(tmp_path / DATA),
        str(Path(__file__).parents[2]),
    ]
    grown = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout) * 1024
    assert grown < 40e6 < size / 3, grown
