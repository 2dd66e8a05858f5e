"""An ONNX model beside what the converter makes of its checkpoint: graph, data, and the files beside it."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.safetensors import Shard
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError
from converter.system.progress import Progress, counted, stage_of
from converter.system.untrusted import parse_object, read_bytes, shown
from targets.comparison import Bytes, Rows, differing_tensors
from targets.onnx.dequantisation import ITEM_BYTES
from targets.onnx.external import Stretch, all_stretches
from targets.onnx.graph import serialized_graph
from targets.onnx.grids import grids_of
from targets.onnx.inferred import accuracy_level
from targets.onnx.layout import Layout, Place, lay_out
from targets.onnx.message import model_differences
from targets.onnx.protobuf import GRAPH_BYTES, External, Graph, Initializer, read_graph
from targets.onnx.side_files import generation_files
from targets.onnx.storage import Storage, read_options, stored_name
from targets.onnx.writing import encoded
from targets.target import Difference, Plan
from targets.writing import RANGE

#: Levels among which a conversion chooses by measurement, the most accurate one first.
_CHOSEN: Final = (0, 4)
#: Most bytes of a file beside the model; a tokenizer has 32 MB.
_LARGEST_FILE: Final = 64 << 20
#: Files that onnxruntime, onnxruntime-genai, its tokenizer or transformers may read beside the model: graphs
#: and their data, configurations and vocabularies, templates, libraries with operators, adapters.
_READ: Final = (
    *(".onnx", ".ort", ".data", ".bin", ".onnx_data", ".onnx_adapter"),
    *(".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"),
    *(".so", ".dll", ".dylib"),
)
_PIECE: Final = 1 << 20


def differences(artifact: Path, checkpoint: Checkpoint, plan: Plan, progress: Progress) -> list[Difference]:
    """See ``targets.target.Target.differences``. The accuracy level is compared only where the plan fixes it
    or where nodes differ: among 0 and 4 it is a choice."""
    graph = read_graph(artifact)
    level = plan.options.get("accuracy_level")
    if level is None:
        level = accuracy_level(graph)
        level = level if level in _CHOSEN else _CHOSEN[0]
    storage = read_options({**plan.options, "accuracy_level": level})
    layout = lay_out(plan.tensors, storage)
    grids = grids_of(checkpoint, storage)
    expected = serialized_graph(checkpoint.architecture, layout, storage, plan.options, grids)
    found = model_differences(expected, read_bytes(artifact, GRAPH_BYTES), artifact)
    data = _Data(graph, all_stretches(checkpoint.architecture, layout))
    rows = _rows(data, checkpoint.weights, layout, storage)
    found += differing_tensors(rows, counted(stage_of(progress, "comparing onnx"), checkpoint.stored_bytes))
    return [*found, *data.unused_bytes(), *_side_files(artifact, checkpoint, set(data.files))]


@dataclass(frozen=True, slots=True)
class _Segment:
    """Bytes of the data file that the converter writes."""

    #: Where they begin.
    start: int
    length: int
    #: Where an artifact holds them: in several places if several initializers share them.
    places: tuple[tuple[Shard, int], ...]


class _Data:
    """The data files of an artifact, read by offsets in the one that the converter would write."""

    def __init__(self, graph: Graph, stretches: Mapping[str, Stretch]) -> None:
        self.files: dict[str, Shard] = {}
        self._used: dict[str, list[tuple[int, int]]] = {}
        places: dict[Stretch, dict[tuple[str, int], tuple[Shard, int]]] = {}
        for name, one in graph.initializers.items():
            if isinstance(one.data, External):
                shard, size = self._open(graph, one, one.data)
                if name in stretches and stretches[name].length == size:
                    found = places.setdefault(stretches[name], {})
                    found[one.data.location, one.data.offset] = shard, one.data.offset
        self._segments = sorted(
            (
                _Segment(stretch.offset, stretch.length, tuple(found.values()))
                for stretch, found in places.items()
            ),
            key=lambda segment: segment.start,
        )
        self._starts = [segment.start for segment in self._segments]

    def _open(self, graph: Graph, one: Initializer, place: External) -> tuple[Shard, int]:
        if place.location not in self.files:
            self.files[place.location] = Shard(graph.path.parent / place.location)
        shard = self.files[place.location]
        size = ITEM_BYTES.get(one.dtype, 0) * int(np.prod(one.shape, dtype=object))
        if place.length not in (None, size) or place.offset + size > shard.size:
            raise CheckpointError(
                f"{shard.path}: initializer {shown(one.name)} of {size} bytes at byte {place.offset} "
                "does not lie in it"
            )
        self._used.setdefault(place.location, []).append((place.offset, place.offset + size))
        return shard, size

    def variants(self, start: int, count: int) -> int:
        """In how many places bytes lie, 0 if the artifact lacks some of them."""
        segments = list(self._covering(start, count))
        if sum(stop - begin for _, begin, stop in segments) < count:
            return 0
        return max((len(segment.places) for segment, *_ in segments), default=1)

    def read(self, start: int, count: int, variant: int) -> Bytes:
        """``count`` bytes from ``start`` on, from one of the places in which the artifact holds them."""
        data = np.empty(count, np.uint8)
        for segment, begin, stop in self._covering(start, count):
            shard, offset = segment.places[min(variant, len(segment.places) - 1)]
            view = data.data[begin - start : stop - start]
            shard.read_into(view, offset + begin - segment.start, "the data of an initializer")
        return data

    def _covering(self, start: int, count: int) -> Iterator[tuple[_Segment, int, int]]:
        """Segments with bytes from ``start`` to ``start + count``, and which of these they hold."""
        for segment in self._segments[max(0, bisect_right(self._starts, start) - 1) :]:
            if segment.start >= start + count:
                return
            begin, stop = max(start, segment.start), min(start + count, segment.start + segment.length)
            if begin < stop:
                yield segment, begin, stop

    def unused_bytes(self) -> Iterator[Difference]:
        """Bytes that no initializer uses: zeros between them, and none behind the last."""
        for location, shard in self.files.items():
            place = 0
            for start, stop in sorted(self._used[location]):
                wrong = _first_other(shard, place, start)
                if wrong is not None:
                    yield Difference(
                        f"{location}: between tensors", "zeros", f"another value in byte {wrong}"
                    )
                place = max(place, stop)
            if place != shard.size:
                yield Difference(f"{location}: size", f"{place} bytes", f"{shard.size} bytes")


def _first_other(shard: Shard, start: int, stop: int) -> int | None:
    """The first byte from ``start`` on that is not zero."""
    for place in range(start, stop, _PIECE):
        data = np.empty(min(_PIECE, stop - place), np.uint8)
        shard.read_into(data.data, place, "what lies between tensors")
        other = np.flatnonzero(data)
        if other.size:
            return place + int(other[0])
    return None


def _rows(data: _Data, weights: Mapping[str, Weight], layout: Layout, storage: Storage) -> Iterator[Rows]:
    """Rows of every weight that the artifact holds, once for each place that holds them."""
    for name, place in layout.places.items():
        weight = weights[name]
        parts = [(place.offset, place.row_bytes)]
        if place.scales_offset is not None:
            parts.append((place.scales_offset, place.scales_row_bytes))
        counts = [data.variants(offset, place.rows * size) for offset, size in parts]
        if 0 in counts:
            continue  # initializers that are not the converter's: told by the graph
        for start, stop in weight.row_ranges(RANGE):
            rule = partial(_rule, weight, place, storage, start, stop)
            for variant in range(max(counts)):
                size = 0 if variant else weight.bytes_of(weight.columns * (stop - start))
                yield Rows(stored_name(name), start, rule, _reader(data, parts, start, stop, variant), size)


def _rule(weight: Weight, place: Place, storage: Storage, start: int, stop: int) -> list[Bytes]:
    stretches = encoded(weight, place, storage, start, stop).stretches
    return [packed.reshape(stop - start, -1) for _, packed in stretches]


def _reader(
    data: _Data, parts: list[tuple[int, int]], start: int, stop: int, variant: int
) -> Callable[[], list[Bytes]]:
    def read() -> list[Bytes]:
        return [
            data.read(offset + start * size, (stop - start) * size, variant).reshape(stop - start, size)
            for offset, size in parts
        ]

    return read


def _side_files(artifact: Path, checkpoint: Checkpoint, data: set[str]) -> Iterator[Difference]:
    """The files that belong beside the model, by content; and others in a directory that has any of these."""
    directory = artifact.parent
    expected = generation_files(checkpoint)
    for name, content in expected.items():
        yield from _side_file(directory / name, content)
    if not any(os.path.lexists(directory / name) for name in expected):
        return
    known = {artifact.name, *expected, *(Path(name).parts[0] for name in data)}
    for path in sorted(directory.iterdir()):
        if path.name not in known:
            decides = path.name.lower().endswith(_READ) or path.is_dir()
            yield Difference(path.name, "no such file", "a file or directory beside the model", decides)


def _side_file(path: Path, expected: bytes) -> Iterator[Difference]:
    if not os.path.lexists(path):
        yield Difference(path.name, f"{len(expected)} bytes", "no such file")
        return
    try:
        found = read_bytes(path, _LARGEST_FILE)
        if found == expected:
            return
        if path.suffix == ".json":
            where, ours, theirs = _first_difference(
                parse_object(expected.decode("utf-8"), path.name),
                parse_object(found.decode("utf-8"), path.name),
                "",
            ) or ("", "", "")
            if not where:
                yield Difference(
                    path.name, "as the converter writes it", "the same, written otherwise", False
                )
            else:
                yield Difference(f"{path.name}: {where}", ours, theirs)
            return
    except (CheckpointError, UnicodeDecodeError) as error:
        yield Difference(path.name, "what the converter writes", str(error))
        return
    place = next(
        (index for index, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    around = slice(max(0, place - 20), place + 20)
    yield Difference(f"{path.name}: byte {place}", shown(expected[around]), shown(found[around]))


def _first_difference(expected: object, found: object, where: str) -> tuple[str, str, str] | None:
    """Where two JSON values differ first, in the order of keys, and what is there; ``None`` if nowhere."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*expected, *found]):
            inner = f"{where}.{key}" if where else str(key)
            if key not in expected or key not in found:
                ours, theirs = (shown(side[key]) if key in side else "nothing" for side in (expected, found))
                return shown(inner)[1:-1], ours, theirs
            if difference := _first_difference(expected[key], found[key], inner):
                return difference
        return None
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, pair in enumerate(zip(expected, found, strict=True)):
            if difference := _first_difference(*pair, f"{where}[{index}]"):
                return difference
        return None
    if json.dumps(expected) == json.dumps(found):  # tells 1 from 1.0 and from true
        return None
    return shown(where)[1:-1], shown(expected), shown(found)
