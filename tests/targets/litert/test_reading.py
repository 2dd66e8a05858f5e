"""Weights read back from TFLite files: past 4 GB, and from damaged or hostile ones."""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
from ai_edge_litert import schema_py_generated as schema

from converter.checkpoint.weight import EXACT, Lattice, LatticeRows, Weight
from converter.errors import CheckpointError
from support.litert_graph import graph
from targets.litert.bundle import Section, write_bundle
from targets.litert.filling import fill
from targets.litert.reading import describe
from targets.litert.sections import MODEL

NAME = "layers.0.mlp.down_proj.weight"
NORM = "norm.weight"
SHAPE = (32, 64)


def codes(start, stop):
    rows = np.arange(start, stop)[:, None] + np.arange(64)[None]
    scales = np.full((stop - start, 2), 0.5, np.float32)
    return LatticeRows(((rows % 16) - 8).astype(np.int8), scales, np.full(scales.shape, EXACT, np.uint8))


def floats(start, stop):
    return codes(start, stop).codes * np.float32(0.5)


NUMBERS = (np.arange(24, dtype=np.float32) - 11) / 16
MATRIX = Weight(NAME, NAME, SHAPE, "BF16", floats, Lattice(4, 32), codes)
VECTOR = Weight(NORM, NORM, (24,), "F32", lambda start, stop: NUMBERS[None])
CHECKPOINT = SimpleNamespace(
    weights={NAME: MATRIX, NORM: VECTOR}, architecture=SimpleNamespace(offset_of=lambda name: 0.0)
)


def build(function):
    function.multiply(NAME, *SHAPE, 4)
    function.scale("norm", 24, NUMBERS)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("litert") / "m.tflite"
    with open(path, "wb") as output:
        fill(graph(build), CHECKPOINT.weights, {NAME: "INT4"}, output)
    return path.read_bytes()


def read_all(path):
    return {
        name: one.floats(0, CHECKPOINT.weights[name].rows) for name, one in describe(path, CHECKPOINT).items()
    }


def put(tmp_path, content):
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    return path


def changed(content, change):
    """The graph after ``change(model)``, in as many bytes, and the data behind it."""
    import flatbuffers

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content[:4096], 0))
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    head = bytes(builder.Output())
    assert len(head) <= 4096
    return head.ljust(4096, b"\0") + content[4096:]


def refused(path, message):
    with pytest.raises(CheckpointError, match=message) as error:
        read_all(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_all_weights_are_read_back(content, tmp_path):
    found = describe(put(tmp_path, content), CHECKPOINT)
    assert list(found) == [NAME, NORM]
    assert (found[NAME].type, found[NAME].bytes) == ("INT4", 32 * 64 // 2 + 32 * 4)
    np.testing.assert_array_equal(found[NAME].floats(0, 32), floats(0, 32))
    np.testing.assert_array_equal(found[NAME].floats(7, 19), floats(7, 19))
    np.testing.assert_array_equal(found[NORM].floats(0, 1), NUMBERS[None])


def test_a_norm_is_read_without_what_the_architecture_adds(content, tmp_path):
    path = put(tmp_path, content)
    less = Weight(NORM, NORM, (24,), "F32", lambda start, stop: NUMBERS[None] - np.float32(1))
    weights, offset = {NAME: MATRIX, NORM: less}, SimpleNamespace(offset_of={NAME: 0.0, NORM: 1.0}.get)
    found = describe(path, SimpleNamespace(weights=weights, architecture=offset))
    np.testing.assert_array_equal(found[NORM].floats(0, 1), less.floats(0, 1))
    with pytest.raises(CheckpointError, match=f"{NORM} is missing: no constant has its numbers"):
        describe(path, SimpleNamespace(weights=weights, architecture=CHECKPOINT.architecture))


def test_data_behind_4_gigabytes_are_read(content, tmp_path):
    far = (1 << 32) + 4096

    def move(model):
        for buffer in model.buffers:
            if buffer.offset:
                buffer.offset += far

    path = put(tmp_path, changed(content, move)[:4096])
    with open(path, "r+b") as stream:  # a sparse file
        stream.seek(far + 4096)
        stream.write(content[4096:])
    np.testing.assert_array_equal(read_all(path)[NAME], floats(0, 32))


def test_a_weight_that_two_models_hold_must_be_the_same_in_both(content, tmp_path):
    other = bytearray(content)
    other[-64:] = bytes(64)
    path = tmp_path / "m.litertlm"
    sections = [Section(MODEL, data, kind) for data, kind in ((content, "first"), (bytes(other), "second"))]
    write_bundle(path, sections[:1])
    np.testing.assert_array_equal(read_all(path)[NAME], floats(0, 32))
    write_bundle(path, sections)
    refused(path, "is held in two ways")


def tensor(model, name):
    return next(one for one in model.subgraphs[0].tensors if one.name == name.encode())


def rename(model):
    tensor(model, NAME).name = b"other"


def reshape(model):
    tensor(model, NAME).shape = [64, 32]
    tensor(model, f"{NAME}|scales").shape = [64, 1]


def reach_out(model):
    model.buffers[tensor(model, NAME).buffer].offset = 1 << 60


def wrap(model):
    one = model.buffers[tensor(model, NAME).buffer]
    one.offset = (1 << 64) - one.size


def shrink(model):
    model.buffers[tensor(model, NAME).buffer].size = 7


def no_scales(model):
    tensor(model, NAME).quantization.details.scales = 1000


def zero_block(model):
    tensor(model, NAME).quantization.details.blockSize = 0


def zero_points(model):
    tensor(model, NAME).quantization.details.zeroPoints = 0


def huge_shape(model):
    tensor(model, NAME).shape = [2**31 - 1] * 8


def negative_shape(model):
    tensor(model, NAME).shape = [-32, -64]


def unused(model):
    model.subgraphs[0].operators[0].inputs = [0, -1, -1]


def other_norm(model):
    one = model.buffers[tensor(model, "arith.constant").buffer]
    one.data = np.zeros_like(one.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "is missing"),
        (reshape, "has shape"),
        (reach_out, "cut off"),
        (wrap, "cut off"),
        (shrink, "has 7 bytes"),
        (no_scales, "scales in tensor 1000"),
        (zero_block, "blocks of 0"),
        (zero_points, "not read"),
        (huge_shape, "not read"),
        (negative_shape, "has shape"),
        (unused, "used by no operator"),
        (other_norm, "no constant has its numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_model_that_is_damaged_is_refused(change, message, content, tmp_path):
    refused(put(tmp_path, changed(content, change)), message)


@pytest.mark.parametrize("size", [0, 3, 8, 40, 600, 4100])
def test_a_file_that_is_cut_off_is_refused(size, content, tmp_path):
    refused(put(tmp_path, content[:size]), "TFLite model|cut off")


def test_a_table_that_claims_endless_parts_is_refused(content, tmp_path):
    data = bytearray(content[:8] + b"\0" * 64)
    struct.pack_into("<I", data, 0, 32)
    struct.pack_into("<i", data, 32, 12)  # the table's fields are told at byte 20
    struct.pack_into("<HHHHH", data, 20, 10, 12, 0, 0, 4)
    struct.pack_into("<I", data, 36, 4)
    struct.pack_into("<I", data, 40, 0xFFFFFFFF)
    refused(put(tmp_path, bytes(data)), "it points to byte")


def test_damage_anywhere_gives_weights_or_one_line(content, tmp_path):
    dice = random.Random(3)
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(2048)] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
        path = put(tmp_path, bytes(damaged))
        try:
            read_all(path)
            outcomes.add("read")
        except CheckpointError as error:
            outcomes.add("refused" if "\n" not in str(error) else str(error))
    assert outcomes == {"read", "refused"}
