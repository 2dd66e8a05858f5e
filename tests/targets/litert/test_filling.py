"""Weights written into TFLite graphs, and what LiteRT's interpreter computes with them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.checkpoint.weight import (
    EXACT,
    NEEDS_F32_SCALE,
    OFF_LATTICE,
    Lattice,
    LatticeRows,
    Weight,
)
from converter.errors import CheckpointError, DestinationError, TargetError
from support.litert_graph import graph, run
from targets.litert.filling import fill
from targets.litert.reading import describe_models, open_models

MATRIX = "layers.0.mlp.down_proj.weight"
EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"


def lattice(name, shape, scales=None, codes=None, status=EXACT, seed=0):
    """A weight of random codes whose scales (bfloat16 numbers by default) are ``scales``."""
    random = np.random.default_rng(seed)
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    if codes is None:
        codes = random.integers(-8, 8, (rows, columns)).astype(np.int8)
    if scales is None:
        scales = bf16_floats(bf16_bits(random.uniform(0.01, 0.1, (rows, columns // 32)).astype(np.float32)))
    scales = np.broadcast_to(np.asarray(scales, np.float32), (rows, columns // 32)).copy()
    values = codes * np.repeat(scales, 32, axis=1)
    state = np.full(scales.shape, status, np.uint8)
    return Weight(
        name,
        name,
        shape,
        "BF16",
        lambda start, stop: values[start:stop],
        Lattice(4, 32),
        lambda start, stop: LatticeRows(codes[start:stop], scales[start:stop], state[start:stop]),
    )


def numbers(name, shape, seed=0):
    values = np.random.default_rng(seed).normal(size=(int(np.prod(shape[:-1])), shape[-1]))
    values = values.astype(np.float16).astype(np.float32)
    return Weight(name, name, shape, "F16", lambda start, stop: values[start:stop])


def write(path, flatbuffer, weights, formats, **options):
    with open(path, "wb") as output:
        return fill(flatbuffer, {weight.name: weight for weight in weights}, formats, output, **options)


def values(weight):
    return weight.floats(0, weight.rows)


def mixed_signs(rows, blocks, seed=1):
    random = np.random.default_rng(seed)
    signs = random.choice([-1.0, 1.0], (rows, blocks))
    return bf16_floats(bf16_bits((signs * random.uniform(0.01, 0.1, (rows, blocks))).astype(np.float32)))


def multiplied(path, name, columns, function=0):
    """The matrix that a product with every unit vector shows, ``[rows, columns]``."""
    out = run(path, function, **{f"x:{name}": np.eye(columns, dtype=np.float32)})
    return out[f"y:{name}"].T


def product_graph(rows=48, columns=96, name=MATRIX, activation=0):
    return graph(lambda f: f.multiply(name, rows, columns, columns, activation))


def test_a_product_computes_with_scale_times_code(tmp_path):
    weight = lattice(MATRIX, (48, 96))
    filled = write(tmp_path / "m.tflite", product_graph(), [weight], {MATRIX: "INT4"})
    np.testing.assert_allclose(multiplied(tmp_path / "m.tflite", MATRIX, 96), values(weight), rtol=2e-6)
    assert (filled.blocks, filled.off_lattice, filled.rounded, filled.narrowed) == (144, {}, 0, {})
    assert filled.names == (MATRIX,)


def test_a_look_up_gives_scale_times_code_exactly_even_with_negative_scales(tmp_path):
    weight = lattice(EMBEDDING, (48, 96), mixed_signs(48, 3))
    flatbuffer = graph(lambda f: f.look_up(EMBEDDING, 48, 96, 48))
    write(tmp_path / "m.tflite", flatbuffer, [weight], {EMBEDDING: "INT4"})
    found = run(tmp_path / "m.tflite", **{f"i:{EMBEDDING}": np.arange(48, dtype=np.int32)})
    np.testing.assert_array_equal(found[f"e:{EMBEDDING}"], values(weight))


def test_negative_scales_are_exact_with_sums(tmp_path):
    codes = np.random.default_rng(2).integers(-8, 8, (48, 96)).astype(np.int8)
    codes[:, ::32] = -8  # whose negative no code can be
    weight = lattice(MATRIX, (48, 96), mixed_signs(48, 3), codes)
    path = tmp_path / "m.tflite"
    write(path, product_graph(), [weight], {MATRIX: "INT4+sums"})
    found = multiplied(path, MATRIX, 96)
    np.testing.assert_allclose(found, values(weight), rtol=2e-6, atol=1e-7)
    stored = describe_models(open_models(path), {MATRIX: weight})[MATRIX]
    np.testing.assert_array_equal(
        bf16_floats(bf16_bits(stored.floats(0, 48))), bf16_floats(bf16_bits(values(weight)))
    )
    assert (stored.type, stored.bytes * 8) == ("INT4+sums", 48 * 96 * 5.5)


def test_negative_scales_without_sums_are_refused_before_the_runtime_does(tmp_path):
    weight = lattice(MATRIX, (48, 96), mixed_signs(48, 3))
    with pytest.raises(TargetError, match="negative scales"):
        write(tmp_path / "m.tflite", product_graph(), [weight], {MATRIX: "INT4"})


@pytest.mark.parametrize("format", ["INT4", "INT4+sums"])
def test_blocks_of_zeros_have_a_scale_that_the_runtime_takes(format, tmp_path):
    scales = np.full((48, 3), 0.5, np.float32)
    scales[5] = 0
    if format == "INT4+sums":
        scales[7] = -0.25
    codes = np.full((48, 96), 3, np.int8)
    codes[5] = 0
    weight = lattice(MATRIX, (48, 96), scales, codes)
    write(tmp_path / "m.tflite", product_graph(), [weight], {MATRIX: format})
    found = multiplied(tmp_path / "m.tflite", MATRIX, 96)
    assert not found[5].any()
    np.testing.assert_allclose(found, values(weight), rtol=2e-6, atol=1e-7)


def test_a_scale_that_rounds_to_zero_makes_a_block_of_zeros(tmp_path):
    weight = lattice(MATRIX, (48, 96), 1e-9, status=NEEDS_F32_SCALE)
    filled = write(tmp_path / "m.tflite", product_graph(), [weight], {MATRIX: "INT4"})
    assert filled.rounded == 144
    assert not multiplied(tmp_path / "m.tflite", MATRIX, 96).any()


def both(function):
    function.look_up(EMBEDDING, 64, 64, 64)
    function.multiply(EMBEDDING, 64, 64, 64)


def test_a_tied_head_shares_the_tensor_of_the_embedding_in_every_function(tmp_path):
    weight = lattice(EMBEDDING, (64, 64))
    path = tmp_path / "m.tflite"
    flatbuffer = graph(both, lambda f: f.multiply(EMBEDDING, 64, 64, 64))
    filled = write(path, flatbuffer, [weight], {EMBEDDING: "INT4"})
    assert filled.blocks == 128
    assert filled.size == path.stat().st_size < 4096 * 2 + 64 * 64 // 2 + 64 * 4
    one = np.eye(64, dtype=np.float32)
    found = run(path, **{f"i:{EMBEDDING}": np.arange(64, dtype=np.int32), f"x:{EMBEDDING}": one})
    np.testing.assert_array_equal(found[f"e:{EMBEDDING}"], values(weight))
    np.testing.assert_allclose(found[f"y:{EMBEDDING}"].T, values(weight), rtol=2e-6)
    np.testing.assert_allclose(multiplied(path, EMBEDDING, 64, 1), values(weight), rtol=2e-6)


def test_a_tied_head_with_negative_scales_is_a_tensor_of_its_own(tmp_path):
    weight = lattice(EMBEDDING, (64, 64), mixed_signs(64, 2))
    path = tmp_path / "m.tflite"
    functions = (
        both,
        lambda f: f.multiply(EMBEDDING, 64, 64, 64),
        lambda f: f.look_up(EMBEDDING, 64, 64, 64),
    )
    write(path, graph(*functions), [weight], {EMBEDDING: "INT4", HEAD: "INT4+sums"})
    ids, one = np.arange(64, dtype=np.int32), np.eye(64, dtype=np.float32)
    found = run(path, **{f"i:{EMBEDDING}": ids, f"x:{EMBEDDING}": one})
    for looked_up in (found, run(path, 2, **{f"i:{EMBEDDING}": ids})):
        np.testing.assert_array_equal(looked_up[f"e:{EMBEDDING}"], values(weight))
    for product in (found[f"y:{EMBEDDING}"].T, multiplied(path, EMBEDDING, 64, 1)):
        np.testing.assert_allclose(product, values(weight), rtol=2e-6, atol=1e-7)
    stored = describe_models(open_models(path), {EMBEDDING: weight})[EMBEDDING]
    assert stored.bytes * 8 == 64 * 64 * (4.5 + 5.5)
    assert stored.type == "INT4 and INT4+sums"
    np.testing.assert_array_equal(stored.floats(0, 64), values(weight))


def test_scales_that_float16_does_not_hold_are_counted(tmp_path):
    weight = lattice(MATRIX, (48, 96), np.float32(0.1), status=NEEDS_F32_SCALE)
    filled = write(tmp_path / "m.tflite", product_graph(), [weight], {MATRIX: "INT4"})
    assert (filled.rounded, filled.narrowed) == (144, {})


def test_scales_that_xnnpack_rounds_to_bfloat16_are_counted_and_are_right_in_the_file(tmp_path):
    scale = np.float32(1 + 2.0**-10)
    scales = np.ones((48, 3), np.float32)
    scales[:10] = scale
    weight = lattice(MATRIX, (48, 96), scales)
    path = tmp_path / "m.tflite"
    filled = write(path, product_graph(), [weight], {MATRIX: "INT4"})
    assert (filled.rounded, filled.narrowed) == (0, {MATRIX: 30})
    stored = describe_models(open_models(path), {MATRIX: weight})[MATRIX]
    np.testing.assert_array_equal(stored.floats(0, 48), values(weight))
    # fails when XNNPACK keeps float16 scales: there is nothing to count then
    np.testing.assert_allclose(
        multiplied(path, MATRIX, 96), values(weight) / np.repeat(scales, 32, 1), rtol=2e-6
    )


def test_a_scale_beyond_float16_is_refused(tmp_path):
    weight = lattice(MATRIX, (48, 96), 1e6, status=NEEDS_F32_SCALE)
    with pytest.raises(
        TargetError, match="beyond the range of INT4's float16 scales; it cannot be stored in litert"
    ):
        write(tmp_path / "m.tflite", product_graph(), [weight], {MATRIX: "INT4"})


@pytest.mark.parametrize("format", ["FLOAT", "FLOAT16"])
def test_matrices_that_are_numbers_are_exact(format, tmp_path):
    weight, table = numbers(MATRIX, (48, 96)), numbers(EMBEDDING, (16, 32), 1)

    def build(function):
        function.multiply(MATRIX, 48, 96, 96)
        function.look_up(EMBEDDING, 16, 32, 16)

    path = tmp_path / "m.tflite"
    write(path, graph(build), [weight, table], {MATRIX: format, EMBEDDING: format})
    found = run(
        path, **{f"x:{MATRIX}": np.eye(96, dtype=np.float32), f"i:{EMBEDDING}": np.arange(16, dtype=np.int32)}
    )
    np.testing.assert_array_equal(found[f"y:{MATRIX}"].T, values(weight))
    np.testing.assert_array_equal(found[f"e:{EMBEDDING}"], values(table))
    stored = describe_models(open_models(path), {MATRIX: weight, EMBEDDING: table})
    assert stored[MATRIX].type == format
    np.testing.assert_array_equal(stored[MATRIX].floats(3, 40), values(weight)[3:40])


@pytest.mark.parametrize(("shape", "taken"), [((4, 16, 64), (64, 64)), ((4, 16, 64), (16, 256))])
def test_experts_stand_below_or_beside_each_other(shape, taken, tmp_path):
    weight = lattice(MATRIX, shape)
    path = tmp_path / "m.tflite"
    write(path, product_graph(*taken), [weight], {MATRIX: "INT4"})
    expected = values(weight)
    if taken[1] == 256:
        expected = np.concatenate(np.split(expected, 4), axis=1)
    np.testing.assert_allclose(multiplied(path, MATRIX, taken[1]), expected, rtol=2e-6)
    stored = describe_models(open_models(path), {MATRIX: weight})[MATRIX]
    np.testing.assert_array_equal(stored.floats(0, 64), values(weight))
    np.testing.assert_array_equal(stored.floats(13, 50), values(weight)[13:50])


def test_blocks_on_no_lattice_are_counted(tmp_path):
    weight = lattice(MATRIX, (48, 96), status=OFF_LATTICE)
    filled = write(tmp_path / "m.tflite", product_graph(), [weight], {MATRIX: "INT4"})
    assert filled.off_lattice == {MATRIX: 144}


def test_equal_input_gives_equal_bytes_at_any_place_and_with_any_threads(tmp_path):
    weight = lattice(MATRIX, (4096, 512))
    flatbuffer = product_graph(4096, 512)
    digests = set()
    for place, threads in ((0, 1), (0, 4), (16384, 2)):
        with open(tmp_path / "m", "wb") as output:
            output.seek(place)
            filled = fill(flatbuffer, {MATRIX: weight}, {MATRIX: "INT4"}, output, threads=threads)
            assert output.tell() == place + filled.size
        digests.add(hashlib.sha256((tmp_path / "m").read_bytes()[place:]).hexdigest())
    assert len(digests) == 1


def test_progress_counts_the_bytes_of_the_checkpoint(tmp_path):
    counts = []
    write(
        tmp_path / "m",
        product_graph(4096, 512),
        [lattice(MATRIX, (4096, 512))],
        {MATRIX: "INT4"},
        progress=counts.append,
    )
    assert len(counts) == 4
    assert sum(counts) == 4096 * 512 * 2


def streamed(rows, columns, held, limit):
    """A weight that is made as it is read and never as a whole."""

    def codes(start, stop):
        count = stop - start
        held.append((threading.get_ident(), count * columns))
        assert count * columns <= limit
        time.sleep(0)
        made = np.full((count, columns), 1, np.int8)
        return LatticeRows(
            made,
            np.full((count, columns // 32), 0.5, np.float32),
            np.full((count, columns // 32), EXACT, np.uint8),
        )

    def floats(start, stop):
        return np.full((stop - start, columns), 0.5, np.float32)

    return Weight(MATRIX, MATRIX, (rows, columns), "BF16", floats, Lattice(4, 32), codes)


def test_a_weight_is_read_by_bounded_ranges_of_rows_and_once(tmp_path):
    held = []
    weight = streamed(8192, 1024, held, 1 << 19)
    write(tmp_path / "m", product_graph(8192, 1024), [weight], {MATRIX: "INT4"})
    assert sum(count for _, count in held) == 8192 * 1024


_PEAK = """
import resource, sys
from tests_litert import streamed, write, product_graph, MATRIX
rows = int(sys.argv[1])
weight = streamed(rows, 4096, [], 1 << 19)
write(sys.argv[2], product_graph(rows, 4096), [weight], {MATRIX: "INT4"}, threads=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_weight(tmp_path):
    os.symlink(__file__, tmp_path / "tests_litert.py")
    peaks = []
    for rows in (4096, 65536):  # 9 and 151 MB of codes and scales
        command = [sys.executable, "-c", _PEAK, str(rows), str(tmp_path / "m")]
        path = os.pathsep.join([str(tmp_path), *sys.path])
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 40


def test_a_failure_while_reading_is_the_one_that_is_raised(tmp_path):
    def codes(start, stop):
        raise CheckpointError("model.safetensors: cut off")

    weight = Weight(MATRIX, MATRIX, (48, 96), "BF16", codes, Lattice(4, 32), codes)
    with pytest.raises(CheckpointError, match="cut off"):
        write(tmp_path / "m", product_graph(), [weight], {MATRIX: "INT4"})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line():
    weight = lattice(MATRIX, (48, 96))
    with pytest.raises(DestinationError), open("/dev/full", "wb", buffering=0) as output:
        fill(product_graph(), {MATRIX: weight}, {MATRIX: "INT4"}, output)


@pytest.mark.parametrize(
    ("flatbuffer", "format", "message"),
    [
        (product_graph(48, 64), "INT4", r"takes it as \[48, 64\]"),
        (product_graph(activation=1), "INT4+sums", "does more than multiply"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(flatbuffer, format, message, tmp_path):
    with pytest.raises(TargetError, match=message) as error:
        write(tmp_path / "m", flatbuffer, [lattice(MATRIX, (48, 96))], {MATRIX: format})
    assert "\n" not in str(error.value)


def test_a_weight_that_the_plan_lacks_is_refused(tmp_path):
    with pytest.raises(TargetError, match="the plan has not"):
        write(tmp_path / "m", product_graph(), [lattice(MATRIX, (48, 96))], {})
