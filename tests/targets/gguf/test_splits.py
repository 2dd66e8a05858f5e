"""A model in several files, by llama.cpp's rules."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import CheckpointError, UsageError
from targets.gguf import target
from targets.gguf.artifact import split_limit
from targets.gguf.metadata import read_metadata


@pytest.fixture(scope="module")
def split(checkpoint_factory, convert):
    return convert(checkpoint_factory("e2b"), split_max_size="100K")


def test_llama_cpp_loads_and_runs_the_first_of_the_files(split, llama):
    assert len(split.plan.artifacts) > 3
    assert llama(split.artifact)["metadata"]["split.count"] == str(len(split.plan.artifacts))


def test_the_files_hold_the_same_tensors_as_one_file(split, checkpoint_factory, convert):
    whole = convert(checkpoint_factory("e2b"))
    ours = target.describe(split.artifact, split.checkpoint)
    for name, one in target.describe(whole.artifact, whole.checkpoint).items():
        rows = split.checkpoint.weights[name].rows
        np.testing.assert_array_equal(ours[name].floats(0, rows), one.floats(0, rows))


def test_every_file_but_those_of_one_tensor_is_within_the_limit(split):
    for path in target.files(split.artifact):
        tensors = gguf.GGUFReader(path).tensors
        assert len(tensors) == 1 or sum(int(one.n_bytes) for one in tensors) <= 100_000


def test_a_tensor_larger_than_the_limit_has_a_file_of_its_own(split):
    sizes = [
        int(one.n_bytes) for path in target.files(split.artifact) for one in gguf.GGUFReader(path).tensors
    ]
    large = [path for path in target.files(split.artifact) if path.stat().st_size > 150_000]
    assert max(sizes) > 100_000
    assert all(len(gguf.GGUFReader(path).tensors) == 1 for path in large[1:])


def test_names_and_keys_are_llama_cpp_s(split):
    files = target.files(split.artifact)
    count = len(files)
    assert [path.name for path in files] == [
        f"model-q4_0-{index + 1:05d}-of-{count:05d}.gguf" for index in range(count)
    ]
    total = sum(len(gguf.GGUFReader(path).tensors) for path in files)
    for index, path in enumerate(files):
        values = read_metadata(path).values
        assert (values["split.no"], values["split.count"], values["split.tensors.count"]) == (
            index,
            count,
            total,
        )


def test_a_limit_above_the_model_gives_one_plain_file(checkpoint_factory, convert, caplog):
    made = convert(checkpoint_factory("e2b"), split_max_size="1G")
    assert caplog.records == []
    assert made.plan.artifacts == ("gguf/model-q4_0.gguf",)
    assert "split.count" not in read_metadata(made.artifact).values


def test_a_missing_file_is_named(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    plan = target.plan(checkpoint, "m", {"split_max_size": "200K"})
    target.write(checkpoint, plan, tmp_path)
    (tmp_path / plan.artifacts[1]).unlink()
    with pytest.raises(CheckpointError, match=r"m-q4_0-00002-of-.*missing"):
        target.describe(tmp_path / plan.artifacts[0], checkpoint)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2G", 2 * 10**9), ("500m", 5 * 10**8), ("10K", 10**4), ("12345", 12345), (None, None)],
)
def test_sizes_are_read_in_powers_of_a_thousand(text, expected):
    assert split_limit({"split_max_size": text}) == expected


@pytest.mark.parametrize("text", ["2T", "-1", "1.5G", "0G", "much", ""])
def test_another_size_is_a_usage_error(text):
    with pytest.raises(UsageError, match="500M or 2G"):
        split_limit({"split_max_size": text})
