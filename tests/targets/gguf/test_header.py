"""The beginning of a GGUF file, and how tensors are spread over files."""

from __future__ import annotations

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.gguf.header import Header, Items, file_names, groups
from targets.target import PlannedTensor


def tensor(index, size):
    return PlannedTensor(f"w{index}", f"t{index}", (size,), "F32", size, True)


@pytest.mark.parametrize(
    "items",
    [["a", "", "日本" * 100, "x" * 300], [1, -5, 2**31 - 1], [-1000.0, 0.0, 1.5]],
    ids=["strings", "integers", "floats"],
)
def test_items_packed_at_once_have_gguf_py_s_own_bytes(items, tmp_path):
    written = []
    for kind, value in ((gguf.GGUFWriter, items), (Header, Items(items))):
        path = tmp_path / kind.__name__
        writer = kind(path, "gemma4")
        writer.add_array("key", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        written.append(path.read_bytes())
    assert written[0] == written[1]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 150))
def test_a_file_is_within_the_limit_unless_it_holds_a_single_tensor(sizes, limit):
    tensors = [tensor(index, size) for index, size in enumerate(sizes)]
    parts = groups(tensors, limit)
    assert [one for part in parts for one in part] == tensors
    for part in parts:
        assert len(part) == 1 or sum(one.bytes for one in part) <= limit
    writer = gguf.GGUFWriter(None, "gemma4", split_max_size=limit)
    for one in tensors:
        writer.add_tensor_info(one.stored_as, one.shape, float, one.bytes, gguf.GGMLQuantizationType.F32)
    assert [list(part) for part in writer.tensors] == [[one.stored_as for one in part] for part in parts]


def test_without_a_limit_there_is_one_file():
    assert len(groups([tensor(index, 10**9) for index in range(9)], None)) == 1
    assert file_names("m-q4_0", 1) == ["m-q4_0.gguf"]
    assert file_names("m-q4_0", 2) == ["m-q4_0-00001-of-00002.gguf", "m-q4_0-00002-of-00002.gguf"]
