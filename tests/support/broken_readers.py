"""Readers with a defect each, to show that the fuzzers notice such defects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

from converter.checkpoint import safetensors as shards
from converter.errors import CheckpointError
from fuzzing import gguf, safetensors
from targets.gguf import metadata


def without_checking_what_is_left(directory: Path) -> None:
    """GGUF, without the checks of a text's length."""

    def take(reader: Any, count: int) -> bytes:
        data: bytes = reader._stream.read(count)
        reader._left -= len(data)
        return data

    with (
        mock.patch.object(metadata._Reader, "_take", take),
        mock.patch.object(metadata, "_LONGEST_STRING", 1 << 64),
    ):
        gguf.read(directory)


def without_bounding_the_header(directory: Path) -> None:
    """Safetensors, with memory for a header of any length that the file claims."""
    original = shards.Shard.read

    def read(shard: shards.Shard, offset: int, count: int, what: str) -> bytes:
        if offset == 0:
            return bytes(bytearray(int.from_bytes(original(shard, 0, 8, what), "little")))[:8]
        return original(shard, offset, count, what)

    with mock.patch.object(shards.Shard, "read", read):
        safetensors.read(directory)


def with_the_bytes_of_a_name_in_the_message(directory: Path) -> None:
    """Safetensors, with names of tensors in messages as they are."""
    with mock.patch.object(shards, "shown", str):
        safetensors.read(directory)


def that_never_ends(directory: Path) -> None:
    """GGUF, in an endless loop where the right reader says that a file is damaged."""
    try:
        gguf.read(directory)
    except CheckpointError:
        while True:
            pass


def that_crashes(directory: Path) -> None:
    """GGUF, with an end of the process where the right reader says that a file is damaged."""
    try:
        gguf.read(directory)
    except CheckpointError:
        os.abort()
