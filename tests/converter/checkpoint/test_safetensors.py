"""Safetensors are read exactly, and nothing hostile gets further than a one-line error."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converter.checkpoint.directory import Directory
from converter.checkpoint.safetensors import HEADER_BYTES, open_shards
from converter.errors import CheckpointError
from support.errors import refusal_of
from support.raw_safetensors import header_of, write_raw, write_shards, write_tensors

TENSORS: dict[str, NDArray[np.generic]] = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(8, dtype=np.uint16).reshape(2, 2, 2),
    "c": np.float16([1.5]),
}
DATA = b"".join(array.tobytes() for array in TENSORS.values())


def refusal(directory: Path) -> str:
    return refusal_of(CheckpointError, open_shards, Directory(directory))


def test_rows_come_back_as_they_were_stored(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", TENSORS)
    shards = open_shards(Directory(tmp_path))
    assert list(shards.tensors) == ["a", "b", "c"]
    for name, array in TENSORS.items():
        tensor = shards.tensors[name]
        assert tensor.shape == array.shape
        assert np.array_equal(tensor.read_rows(0, tensor.rows).reshape(array.shape), array)
    assert np.array_equal(shards.tensors["b"].read_rows(1, 3), [[2, 3], [4, 5]])
    assert shards.tensors["a"].read_rows(2, 2).shape == (0, 4)


def test_files_of_the_reference_library_are_read(tmp_path: Path) -> None:
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "s": np.float32(3.5),
        "e": np.zeros((0, 4), "f2"),
    }
    safetensors.numpy.save_file(
        {name: np.asarray(array) for name, array in arrays.items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    tensors = open_shards(Directory(tmp_path)).tensors
    assert set(tensors) == set(arrays)
    assert tensors["s"].read_rows(0, 1) == 3.5
    assert tensors["e"].read_rows(0, 0).shape == (0, 4)


def test_sharded_checkpoints_are_read_through_their_index(tmp_path: Path) -> None:
    write_shards(tmp_path, {"one.safetensors": {"a": TENSORS["a"]}, "two.safetensors": {"b": TENSORS["b"]}})
    shards = open_shards(Directory(tmp_path))
    assert [path.name for path in shards.files] == [
        "model.safetensors.index.json",
        "one.safetensors",
        "two.safetensors",
    ]
    assert shards.tensors["b"].shard.path.name == "two.safetensors"
    assert np.array_equal(shards.tensors["a"].read_rows(0, 3), TENSORS["a"])


def test_links_into_a_blob_store_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_tensors(blobs / "5ee7", TENSORS)
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/5ee7"))
    assert set(open_shards(Directory(snapshot)).tensors) == set(TENSORS)


def test_threads_read_at_once(tmp_path: Path) -> None:
    array = np.arange(1 << 18, dtype=np.float32).reshape(512, 512)
    write_tensors(tmp_path / "model.safetensors", {"a": array})
    tensor = open_shards(Directory(tmp_path)).tensors["a"]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda row: tensor.read_rows(row, row + 1), range(512)))
    assert np.array_equal(np.concatenate(rows), array)


def test_reading_a_large_tensor_by_rows_keeps_memory_small(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    rows, columns = 1 << 15, 1 << 14
    entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, 2 * rows * columns]}
    write_raw(path, {"a": entry})
    os.truncate(path, path.stat().st_size + 2 * rows * columns)
    tensor = open_shards(Directory(tmp_path)).tensors["a"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(0, rows, 64):
        tensor.read_rows(start, start + 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    tensor = open_shards(Directory(tmp_path)).tensors["a"]
    os.truncate(path, tensor.offset + 20)
    with pytest.raises(CheckpointError, match="ends within tensor 'a'"):
        tensor.read_rows(0, 3)


def changed(**entry: Any) -> dict[str, Any]:
    header: dict[str, Any] = header_of(TENSORS)
    header["a"] = {**header["a"], **entry}
    return header


def two(first: list[int], second: list[int]) -> dict[str, Any]:
    return {
        "a": {"dtype": "U8", "shape": [first[1] - first[0]], "data_offsets": first},
        "b": {"dtype": "U8", "shape": [second[1] - second[0]], "data_offsets": second},
    }


HOSTILE: dict[str, tuple[object, str]] = {
    "not JSON": (b"{", "header: not valid JSON"),
    "not UTF-8": (b"{\xff}", "header is not UTF-8"),
    "list": (b"[]", "header: holds a list"),
    "nested without end": (b"[" * 100_000, "header: JSON nested too deeply"),
    "huge number": (b'{"a": ' + b"9" * 5000 + b"}", "header: not valid JSON"),
    "name twice": (b'{"a": {}, "a": {}}', "header: key 'a' appears twice"),
    "key twice": (b'{"a": {"dtype": "U8", "dtype": "U8"}}', "header: key 'dtype' appears twice"),
    "no object": ({"a": 3}, "tensor 'a' is described by an integer"),
    "line break in a name": ({"a\nb": 3}, r"tensor 'a\nb' is described"),
    "unknown dtype": (changed(dtype="Q4"), "tensor 'a' has unknown dtype 'Q4'"),
    "dtype of wrong type": (changed(dtype=["F32"]), "tensor 'a' has unknown dtype ['F32']"),
    "no shape": (changed(shape=None), "tensor 'a' has shape None"),
    "negative shape": (changed(shape=[-3, -4]), "tensor 'a' has shape [-3, -4], which is out of bounds"),
    "fractional shape": (
        changed(shape=[3.0, 4]),
        "tensor 'a' has shape [3.0, 4], expected a list of integers",
    ),
    "boolean shape": (changed(shape=[True, 12]), "tensor 'a' has shape [True, 12]"),
    "huge shape": (changed(shape=[1 << 62, 1 << 62]), "which is out of bounds"),
    "shape that overflows": (changed(shape=[1 << 32, 1 << 32]), "but F32 [4294967296, 4294967296] takes"),
    "many dimensions": (changed(shape=[1] * 1000), "which is out of bounds"),
    "shape without the bytes": (changed(shape=[3, 5]), "tensor 'a' has 48 bytes, but F32 [3, 5] takes 60"),
    "no offsets": (changed(data_offsets=None), "tensor 'a' has data_offsets None"),
    "one offset": (changed(data_offsets=[0]), "tensor 'a' has data_offsets [0], expected two integers"),
    "fractional offset": (changed(data_offsets=[0.0, 48]), "data_offsets [0.0, 48], expected two integers"),
    "negative offset": (changed(data_offsets=[-48, 0]), "which are negative or reversed"),
    "reversed offsets": (changed(data_offsets=[48, 0]), "which are negative or reversed"),
    "offset behind the end": (changed(data_offsets=[1000, 1048]), "tensor 'a' ends at byte 1048 of 66"),
    "overlap": (two([0, 40], [30, 66]), "tensor 'b' overlaps the tensor before it"),
    "same bytes": (two([0, 66], [0, 66]), "tensor 'b' overlaps"),
    "gap": (two([0, 30], [40, 66]), "tensor 'b' leaves a gap of 10 bytes before it"),
    "bytes behind": (two([0, 30], [30, 60]), "has 6 bytes behind its last tensor"),
    "nothing described": ({}, "has 66 bytes behind its last tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_named(tmp_path: Path, name: str) -> None:
    header, message = HOSTILE[name]
    write_raw(tmp_path / "model.safetensors", header, DATA)
    told = refusal(tmp_path)
    assert message in told
    assert told.startswith(str(tmp_path / "model.safetensors"))


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert str(path) in refusal(tmp_path)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (1000, "header of 1000 bytes is larger than the file"),
        (HEADER_BYTES, "is larger than the file"),
        (HEADER_BYTES + 1, "is above the format's limit of 100000000"),
        ((1 << 64) - 1, "is above the format's limit"),
    ],
)
def test_a_header_that_cannot_be_is_not_read(tmp_path: Path, length: int, message: str) -> None:
    write_raw(tmp_path / "model.safetensors", {}, length=length)
    assert message in refusal(tmp_path)


def hostile_index(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    write_shards(directory, {"one.safetensors": {"a": TENSORS["a"]}, "two.safetensors": {"b": TENSORS["b"]}})
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(change(index)))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../one.safetensors", "shard '../one.safetensors' is not a plain file name"),
        ("/etc/passwd", "shard '/etc/passwd' is not a plain file name"),
        ("sub/one.safetensors", "is not a plain file name"),
        ("..\\one.safetensors", "is not a plain file name"),
        ("C:one.safetensors", "is not a plain file name"),
        ("..", "is not a plain file name"),
        ("", "is not a plain file name"),
        ("one\n.safetensors", "is not a plain file name"),
        ("one\0.safetensors", "is not a plain file name"),
        ("pytorch_model.bin", "shard 'pytorch_model.bin' is a pickle"),
        ("one.npz", "is not a .safetensors file"),
        (3, "tensor 'a' is mapped to an integer"),
        (None, "tensor 'a' is mapped to null"),
        ("absent.safetensors", "absent.safetensors: is missing"),
        ("two.safetensors", "lacks tensor 'a'"),
    ],
)
def test_hostile_shard_names_are_refused(tmp_path: Path, file: object, message: str) -> None:
    hostile_index(tmp_path, lambda index: {"weight_map": {**index["weight_map"], "a": file}})
    if file == "two.safetensors":
        (tmp_path / "one.safetensors").unlink()
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "holds a list"),
        ({}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": ["one.safetensors"]}, "weight_map is a list, expected an object"),
    ],
)
def test_an_index_of_the_wrong_kind_is_refused(tmp_path: Path, index: object, message: str) -> None:
    hostile_index(tmp_path, lambda _: index)
    assert message in refusal(tmp_path)


def test_an_index_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("weights")
    assert "model.safetensors.index.json: not valid JSON" in refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    one, two = ({"a": TENSORS["a"], name: TENSORS[name]} for name in ("b", "c"))
    write_shards(tmp_path, {"one.safetensors": one, "two.safetensors": two})
    assert "two.safetensors: tensor 'a' is in one.safetensors as well" in refusal(tmp_path)


def test_an_index_that_names_a_tensor_no_shard_holds_is_refused(tmp_path: Path) -> None:
    hostile_index(tmp_path, lambda index: {"weight_map": {**index["weight_map"], "z": "one.safetensors"}})
    assert "one.safetensors: lacks tensor 'z'" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.PT", "weights.pkl"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    told = refusal(tmp_path)
    assert f"{name}: pickle checkpoints are not read" in told


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: is empty"


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file").endswith("is not a directory")
    assert refusal(tmp_path / "absent").endswith("no such directory")


def test_safetensors_under_another_name_are_pointed_out(tmp_path: Path) -> None:
    write_tensors(tmp_path / "adapter.safetensors", TENSORS)
    assert "has adapter.safetensors but neither model.safetensors nor" in refusal(tmp_path)


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("")
    assert "holds no checkpoint" in refusal(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert "is not a regular file" in refusal(tmp_path)


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("absent")
    assert "cannot be opened" in refusal(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)
sizes = st.integers(-2, 70) | st.sampled_from([1 << 31, 1 << 63, 1 << 64])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "U8", "F4", "C64", "F6_E2M3"]) | json_values,
        "shape": st.lists(sizes, max_size=4) | json_values,
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | json_values,
    }
)
headers = st.dictionaries(st.text(max_size=6), entries | json_values, max_size=4)


def check_against_the_reference(path: Path) -> None:
    """Ours may be stricter than the reference implementation, never laxer."""
    try:
        shards = open_shards(Directory(path.parent))
    except CheckpointError:
        assert refusal(path.parent)
        return
    reference = dict(safetensors.deserialize(path.read_bytes()))
    assert set(reference) == set(shards.tensors)
    for name, tensor in shards.tensors.items():
        assert list(tensor.shape) == reference[name]["shape"]
        data = tensor.shard.read(tensor.offset, tensor.bytes, name)
        assert data == bytes(reference[name]["data"])


fuzz = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@fuzz
@given(header=headers)
def test_invented_headers_raise_nothing_but_checkpoint_errors(tmp_path: Path, header: object) -> None:
    write_raw(tmp_path / "model.safetensors", header, DATA)
    check_against_the_reference(tmp_path / "model.safetensors")


@pytest.mark.slow
@fuzz
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), cut=st.integers(0, 60)
)
def test_damaged_files_raise_nothing_but_checkpoint_errors(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    damaged = bytearray(path.read_bytes())
    for position, value in changes:
        damaged[position % len(damaged)] = value
    path.write_bytes(damaged[: len(damaged) - cut // 2])
    check_against_the_reference(path)


@pytest.mark.slow
@fuzz
@given(
    index=st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=6), json_values)})
    | json_values
)
def test_invented_indexes_raise_nothing_but_checkpoint_errors(tmp_path: Path, index: object) -> None:
    write_tensors(tmp_path / "one.safetensors", TENSORS)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(tmp_path)
