"""A LiteRT artifact beside what the converter makes of its checkpoint: container, graphs and weights.

The graph is the one that litert-torch exports for the checkpoint, laid out as the writer does but without
weights. An artifact of this version has the same flatbuffer byte for byte. Only where it has another are both
read, so that the difference can be named; buffers are then compared by content, wherever they lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from converter.checkpoint.safetensors import Shard
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError
from converter.system.untrusted import shown
from targets.comparison import Bytes, Rows, differing_tensors
from targets.litert.activations import Grid
from targets.litert.bundle import Section, read_sections
from targets.litert.container import container_differences, section_by_type
from targets.litert.encoding import encode
from targets.litert.filling import Layout, Place, lay_out
from targets.litert.functions import Content, FunctionContent, TensorContent, read_content
from targets.litert.schema import GRAPH_BYTES, Buffer
from targets.litert.sections import MODEL
from targets.litert.stretches import first_other_byte
from targets.target import Difference
from targets.writing import RANGE

#: Most deciding differences of a function that are listed.
_MOST: Final = 10
#: Metadata of a model that change nothing.
_DESCRIPTIVE: Final = frozenset(("min_runtime_version",))
#: Fields of a model that change nothing.
_TOLD: Final = frozenset(("description", "debug metadata"))

#: For each stretch of a weight (by its place in the layout and the stretch's number) where the artifact has
#: it.
_Found = dict[tuple[int, int], list[int]]


@dataclass(frozen=True, slots=True)
class Expected:
    """What an artifact should be."""

    #: Those beside the models.
    sections: Sequence[Section]
    #: Where everything is in a model, by model type.
    layouts: Mapping[str, Layout]


def expect(
    sections: Sequence[Section],
    graphs: Mapping[str, bytes],
    weights: Mapping[str, Weight],
    types: Mapping[str, str],
    two_rows: Collection[str] = (),
    grids: Mapping[str, Grid] = MappingProxyType({}),
) -> Expected:
    """What the converter makes of ``graphs`` (by model type, without weights), the ``weights`` by canonical
    name and their ``types``; see ``targets.litert.filling.fill``."""
    layouts = {kind: lay_out(graph, weights, types, two_rows, grids) for kind, graph in graphs.items()}
    return Expected(sections, layouts)


def bundle_differences(
    path: Path, expected: Expected, progress: Callable[[int], None] = lambda size: None
) -> list[Difference]:
    """Differences of a ``.litertlm``; ``progress`` counts bytes of the checkpoint. Raises ``CheckpointError``
    for a damaged file."""
    sections = read_sections(path)
    wanted = [*expected.sections, *(Section(MODEL, b"", kind) for kind in expected.layouts)]
    differences = list(container_differences(path, sections, wanted))
    for kind, section in section_by_type(sections).items():
        if kind in expected.layouts:
            differences += model_differences(path, kind, expected, progress, section.offset, section.size)
    return differences


def model_differences(
    path: Path,
    kind: str,
    expected: Expected,
    progress: Callable[[int], None] = lambda size: None,
    start: int = 0,
    size: int | None = None,
) -> list[Difference]:
    """Differences of the model of a type in ``size`` bytes of a file, all behind ``start`` by default."""
    shard = Shard(path)
    layout = expected.layouts[kind]
    model = _Model(shard, start, shard.size - start if size is None else size)
    data = model.read(0, min(model.size, GRAPH_BYTES))
    if data.startswith(layout.head) and model.size >= layout.end:
        differences: list[Difference] = []
        found = {key: [offset] for key, offset, _ in _stretches(layout)}
        taken = [(0, len(layout.head)), *((offset, offset + size) for _, offset, size in _stretches(layout))]
    else:
        ours = read_content(layout.head, layout.end, Path("the graph of the checkpoint"))
        theirs = read_content(data, model.size, path)
        pairs = _Pairs(layout, model, path)
        differences = [*_content_differences(ours, theirs, pairs)]
        found, taken = pairs.found, [(0, len(data)), *_data_places(theirs)]
        if theirs.spare is not None:
            differences.append(Difference(f"byte {theirs.spare}", "0", "a byte that belongs to nothing"))
        if not differences and not data.startswith(layout.head):
            differences = [
                Difference("flatbuffer", "the bytes of this version", "others of one meaning", False)
            ]
    behind = first_other_byte(shard, start, start + model.size, [(start + a, start + b) for a, b in taken])
    if behind is not None:
        differences.append(Difference(f"byte {behind - start}", "0", "a byte that belongs to nothing"))
    named = [Difference(f"{kind}: {one.where}", one.expected, one.found, one.deciding) for one in differences]
    return named + differing_tensors(_rows(layout, model, found), progress)


@dataclass(frozen=True, slots=True)
class _Model:
    """A model of ``size`` bytes from byte ``start`` of a file on."""

    shard: Shard
    start: int
    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the model."""
        return self.shard.read(self.start + offset, count, "the model")


def _stretches(layout: Layout) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Every stretch of every weight: its place and number, where it begins, and its bytes."""
    for index, place in enumerate(layout.places):
        for part, (offset, width) in enumerate(zip(place.offsets, place.bytes, strict=True)):
            if width:
                yield (index, part), offset, width * place.weight.rows


def _data_places(content: Content) -> Iterator[tuple[int, int]]:
    return ((one.offset, one.offset + one.size) for one in content.buffers if one is not None)


def _rows(layout: Layout, model: _Model, found: _Found) -> Iterator[Rows]:
    """Every weight by ranges of rows, as often as the artifact has it."""
    for index, place in enumerate(layout.places):
        places = [found.get((index, part), []) for part, width in enumerate(place.bytes) if width]
        if not all(places):
            continue  # told as a difference of the graph
        for copy in range(max(map(len, places))):
            offsets = [one[min(copy, len(one) - 1)] for one in places]
            for start, stop in place.weight.row_ranges(RANGE):
                size = place.weight.bytes_of((stop - start) * place.weight.columns)
                counted = 0 if copy else size
                yield Rows(
                    place.name,
                    start,
                    partial(_rule, place, start, stop),
                    partial(_stored, model, place, offsets, start, stop),
                    counted,
                )


def _rule(place: Place, start: int, stop: int) -> list[Bytes]:
    rows = encode(place.weight, place.type, start, stop, multiplied=place.positive)
    return [part.reshape(stop - start, -1) for part in rows.stretches()]


def _stored(model: _Model, place: Place, offsets: Sequence[int], start: int, stop: int) -> list[Bytes]:
    widths = [width for width in place.bytes if width]
    return [
        np.frombuffer(model.read(offset + start * width, (stop - start) * width), np.uint8).reshape(
            stop - start, -1
        )
        for offset, width in zip(offsets, widths, strict=True)
    ]


class _Pairs:
    """Data of tensors that stand in the same place of both graphs; ``found`` says where weights are."""

    def __init__(self, layout: Layout, model: _Model, path: Path) -> None:
        self._expected = {offset: key for key, offset, _ in _stretches(layout)}
        self._model, self._path = model, path
        self._digests: dict[Buffer, bytes] = {}
        self._room = GRAPH_BYTES
        self.found: _Found = {}

    def differ(self, ours: TensorContent, theirs: TensorContent) -> str | None:
        """What is other about the data of a tensor; those of a weight are compared later."""
        if ours.buffer is None or theirs.buffer is None:
            return None if ours.buffer is theirs.buffer else "has no data" if ours.buffer else "has data"
        if ours.buffer.size != theirs.buffer.size:
            return f"{shown(theirs.buffer.size)} bytes of data"
        key = self._expected.get(ours.buffer.offset)
        if key is None:
            return None if self._digest(theirs) == ours.constant else "other numbers"
        places = self.found.setdefault(key, [])
        if theirs.buffer.offset not in places:
            places.append(theirs.buffer.offset)
        return None

    def _digest(self, tensor: TensorContent) -> bytes:
        buffer = tensor.buffer
        assert buffer is not None
        if buffer not in self._digests:
            self._room -= buffer.size
            if self._room < 0:
                raise CheckpointError(f"{self._path}: its constants are larger than a graph's may be")
            self._digests[buffer] = hashlib.sha256(self._model.read(buffer.offset, buffer.size)).digest()
        return self._digests[buffer]


def _content_differences(ours: Content, theirs: Content, pairs: _Pairs) -> Iterator[Difference]:
    for problem in theirs.unknown:
        if problem not in ours.unknown:
            yield Difference(problem, "none", "something that is not read")
    yield from _field_differences("model", ours.fields, theirs.fields)
    for name in sorted(ours.metadata.keys() | theirs.metadata.keys()):
        due, found = ours.metadata.get(name), theirs.metadata.get(name)
        if due != found:
            texts = ["none" if one is None else f"SHA-256 {one.hex()[:16]}" for one in (due, found)]
            yield Difference(f"metadata {shown(name)}", texts[0], texts[1], name not in _DESCRIPTIVE)
    for key in sorted(ours.signatures.keys() | theirs.signatures.keys()):
        one, other = ours.signatures.get(key), theirs.signatures.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _field_differences(f"signature {shown(key)}", one, other)
        else:
            told = ["there" if side else "none" for side in (one, other)]
            yield Difference(f"signature {shown(key)}", told[0], told[1])
    if len(ours.functions) != len(theirs.functions):
        yield Difference("functions", str(len(ours.functions)), str(len(theirs.functions)))
    for pair in zip(ours.functions, theirs.functions, strict=False):
        yield from _function_differences(*pair, pairs)


def _function_differences(
    ours: FunctionContent, theirs: FunctionContent, pairs: _Pairs
) -> Iterator[Difference]:
    where = ours.name
    names = [(ours.name, theirs.name)]
    names += [(a.name, b.name) for a, b in zip(ours.tensors, theirs.tensors, strict=False)]
    if other := [pair for pair in names if pair[0] != pair[1]]:
        due_name, found_name = map(shown, other[0])
        yield Difference(f"{where}: {len(other)} names, the first", due_name, found_name, False)
    for what, due, found in (
        ("operators", len(ours.operators), len(theirs.operators)),
        ("tensors", len(ours.tensors), len(theirs.tensors)),
    ):
        if due != found:
            yield Difference(f"{where}: {what}", str(due), str(found))
    yield from _field_differences(where, ours.fields, theirs.fields)
    tensors = _tensor_differences(where, ours, theirs, pairs)
    found_tensors = list(tensors)  # all, as each tells where weights are
    yield from found_tensors[:_MOST]
    yield from islice(_operator_differences(where, ours, theirs), _MOST)


def _tensor_differences(
    where: str, ours: FunctionContent, theirs: FunctionContent, pairs: _Pairs
) -> Iterator[Difference]:
    for index, (due, found) in enumerate(zip(ours.tensors, theirs.tensors, strict=False)):
        name = f"{where}: tensor {index} ({shown(due.name)})"
        yield from _field_differences(name, due.fields, found.fields)
        if problem := pairs.differ(due, found):
            size = f"{due.buffer.size} bytes of data" if due.buffer else "no data"
            yield Difference(name, size, problem)


def _operator_differences(where: str, ours: FunctionContent, theirs: FunctionContent) -> Iterator[Difference]:
    for index, (due, found) in enumerate(zip(ours.operators, theirs.operators, strict=False)):
        if due != found:
            name = f"{where}: operator {index} ({_operator_name(due['operator'])})"
            yield from _field_differences(name, due, found)


def _operator_name(number: object) -> str:
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    return str(names.get(int(str(number)), f"operator {number}"))


def _field_differences(
    where: str, ours: Mapping[str, object], theirs: Mapping[str, object]
) -> Iterator[Difference]:
    for field in ours.keys() | theirs.keys():
        due, found = ours.get(field), theirs.get(field)
        if repr(due) != repr(found):
            deciding = field not in _TOLD
            yield Difference(f"{where}: {field}", _short(due), _short(found), deciding)


def _short(value: object) -> str:
    return "none" if value is None else shown(value)
