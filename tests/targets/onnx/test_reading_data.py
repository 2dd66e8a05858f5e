"""The data beside an ONNX graph: missing, cut off, elsewhere or damaged."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest

from converter.errors import CheckpointError
from support.onnx_reading import (
    CODES,
    NORM,
    as_bf16,
    entry,
    initializer,
    load,
    refused,
)
from support.onnx_weights import DATA
from targets.onnx.reading import describe, files


def test_files_are_the_graph_and_its_data(artifact):
    assert files(artifact) == [artifact, artifact.with_name(DATA)]
    artifact.with_name(DATA).unlink()
    with pytest.raises(CheckpointError, match=r"model\.onnx\.data: missing"):
        files(artifact)


def test_missing_data_are_one_line(artifact, checkpoint):
    artifact.with_name(DATA).unlink()
    refused(artifact, checkpoint, r"model\.onnx\.data: cannot be opened: No such file")


def test_data_that_are_no_regular_file_are_refused(artifact, checkpoint):
    artifact.with_name(DATA).unlink()
    os.mkfifo(artifact.with_name(DATA))
    refused(artifact, checkpoint, r"model\.onnx\.data: is not a regular file")


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_data_that_are_cut_off_are_one_line(share, artifact, checkpoint):
    data = artifact.with_name(DATA)
    os.truncate(data, int(share * data.stat().st_size))
    refused(
        artifact, checkpoint, r"model\.onnx\.data: cut off, or another model's: initializer .* ends at byte"
    )


def test_data_that_become_shorter_while_they_are_read_are_one_line(artifact, checkpoint):
    found = describe(artifact, checkpoint)
    os.truncate(artifact.with_name(DATA), 64)
    with pytest.raises(
        CheckpointError, match=r"model\.onnx\.data: ends within initializer .*the file is cut off"
    ):
        found["embed_tokens.weight"].floats(0, 100)


def test_corrupt_data_change_what_is_read(artifact, checkpoint):
    offset = int(entry(initializer(load(artifact), CODES), "offset").value)
    data = bytearray(artifact.with_name(DATA).read_bytes())
    data[offset] ^= 0x11
    artifact.with_name(DATA).write_bytes(data)
    weight = checkpoint.weights["layers.0.mlp.down_proj.weight"]
    found = describe(artifact, checkpoint)[weight.name].floats(0, weight.rows)
    assert np.flatnonzero(as_bf16(found) != weight.floats(0, weight.rows)).tolist() == [0, 1]


@pytest.mark.parametrize(
    "location", ["../model.onnx.data", "/etc/passwd", "a/../../x", "", ".", "a\\b", "..", "x\n", "\x1b[2J"]
)
def test_data_outside_the_model_s_directory_are_refused(location, artifact, checkpoint):
    model = load(artifact)
    entry(initializer(model, NORM), "location").value = location
    onnx.save(model, artifact)
    refused(artifact, checkpoint, r"model\.norm\.weight.*no file below the model's directory|regular file")
    if location not in (".",):
        with pytest.raises(CheckpointError):
            files(artifact)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "-1", "offset '-1', expected a number"),
        ("offset", "1e3", "offset '1e3', expected a number"),
        ("offset", "9" * 18, "cut off, or another model's"),
        ("offset", "9" * 5000, "offset '9+.*expected a number"),
        ("offset", "٣", "expected a number"),
        ("length", "3", "has 3 bytes, its shape .* takes"),
        ("length", "x", "length 'x', expected a number"),
    ],
)
def test_places_that_are_no_places_are_refused(key, value, message, artifact, checkpoint):
    model = load(artifact)
    entry(initializer(model, CODES), key).value = value
    onnx.save(model, artifact)
    refused(artifact, checkpoint, message)


def test_bytes_of_another_place_are_read_as_they_lie(artifact, checkpoint):
    model = load(artifact)
    entry(initializer(model, CODES), "offset").value = "0"
    onnx.save(model, artifact)
    weight = checkpoint.weights["layers.0.mlp.down_proj.weight"]
    found = describe(artifact, checkpoint)[weight.name].floats(0, weight.rows)
    assert np.mean(as_bf16(found) == weight.floats(0, weight.rows)) < 0.5
