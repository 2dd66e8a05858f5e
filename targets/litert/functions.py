"""All that a TFLite flatbuffer says: functions with operators, options, tensors and signatures, and its
bytes.

Two models that compute the same have equal ``Content``, however their flatbuffers are laid out: a tensor's
data are given by content or by place, never by the number of a buffer. The file may come from a stranger:
``targets.litert.tables`` checks every place and bounds the parts. Fields have the numbers of TensorFlow
Lite's ``schema.fbs``. A field that is not known here is told as such, as it could mean anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from converter.errors import CheckpointError
from converter.system.untrusted import shown
from targets.litert.schema import Buffer
from targets.litert.tables import Flatbuffer, Table

#: Most tensors, operators and numbers in their lists.
_MOST_PARTS: Final = 1 << 21
#: A value of a field, as it can be compared and printed.
Value = object
#: Fields of a table by number: a name, how it is read (a format of ``struct``, ``s`` for a text, ``*`` before
#: the format of a list's items, ``#`` for a digest of a list that may be long) and what it is when it is left
#: out. Fields that other code reads are marked ``-``.
_Fields = Mapping[int, tuple[str, str, Value]]

_CODE: Final[_Fields] = {
    0: ("code", "<b", 0),
    1: ("custom code", "s", ""),
    2: ("version", "<i", 1),
    3: ("long code", "<i", 0),
}
_SUBGRAPH: Final[_Fields] = {
    0: ("tensors", "-", None),
    1: ("inputs", "*<i", ()),
    2: ("outputs", "*<i", ()),
    3: ("operators", "-", None),
    4: ("name", "s", ""),
    5: ("debug metadata", "<i", -1),
}
_TENSOR: Final[_Fields] = {
    0: ("shape", "*<i", ()),
    1: ("type", "<b", 0),
    2: ("buffer", "-", None),
    3: ("name", "s", ""),
    4: ("quantization", "-", None),
    5: ("is variable", "<?", False),
    7: ("shape signature", "*<i", ()),
    8: ("has rank", "<?", False),
    10: ("external buffer", "<I", 0),
}
_QUANTIZATION: Final[_Fields] = {
    0: ("least", "*<f", ()),
    1: ("greatest", "*<f", ()),
    2: ("scales", "#<f", ()),
    3: ("zero points", "#<q", ()),
    4: ("kind", "<B", 0),
    5: ("details", "-", None),
    6: ("dimension", "<i", 0),
}
_BLOCKWISE: Final[_Fields] = {
    0: ("tensor of scales", "<i", 0),
    1: ("tensor of zero points", "<i", 0),
    2: ("block", "<i", 0),
    3: ("block shape", "*<i", ()),
}
_OPERATOR: Final[_Fields] = {
    0: ("code", "-", None),
    1: ("inputs", "*<i", ()),
    2: ("outputs", "*<i", ()),
    3: ("kind of options", "<B", 0),
    4: ("options", "-", None),
    5: ("custom options", "*<B", ()),
    6: ("custom format", "<b", 0),
    7: ("changed inputs", "*<?", ()),
    8: ("intermediates", "*<i", ()),
    9: ("place of options", "<Q", 0),
    10: ("size of options", "<Q", 0),
    11: ("second kind of options", "<B", 0),
    12: ("second options", "-", None),
    13: ("debug metadata", "<i", -1),
}
_BUFFER: Final[_Fields] = {0: ("data", "-", None), 1: ("offset", "-", None), 2: ("size", "-", None)}
_METADATA: Final[_Fields] = {0: ("name", "s", ""), 1: ("buffer", "-", None)}
_SIGNATURE: Final[_Fields] = {
    0: ("inputs", "-", None),
    1: ("outputs", "-", None),
    2: ("key", "s", ""),
    4: ("function", "<I", 0),
}
_MAP: Final[_Fields] = {0: ("name", "s", ""), 1: ("tensor", "<I", 0)}
_MODEL: Final[_Fields] = {
    0: ("version", "<I", 0),
    1: ("codes", "-", None),
    2: ("functions", "-", None),
    3: ("description", "s", ""),
    4: ("buffers", "-", None),
    5: ("metadata buffers", "*<i", ()),
    6: ("metadata", "-", None),
    7: ("signatures", "-", None),
}


def _scalars(formats: str, *defaults: Value) -> _Fields:
    """Fields of options in turn: a letter of ``struct`` for each, 0 if left out unless ``defaults`` says."""
    values = (*defaults, *(False if letter == "?" else 0 for letter in formats[len(defaults) :]))
    return {
        index: (f"option {index}", f"<{letter}", value)
        for index, (letter, value) in enumerate(zip(formats, values, strict=True))
    }


#: Options by ``BuiltinOptions``' number: those that a decoder's operators have. Others are not known.
_OPTIONS: Final[Mapping[int, _Fields]] = MappingProxyType(
    {
        **{kind: {} for kind in (22, 26, 33, 34, 38, 39, 41, 42, 43, 44, 45, 46, 47, 48, 51, 52, 53, 54, 56)},
        **{
            kind: {}
            for kind in (60, 62, 63, 65, 66, 67, 68, 72, 73, 76, 78, 83, 84, 85, 86, 89, 97, 98, 104, 117)
        },
        8: _scalars("bb??b"),
        9: _scalars("f", 0.0),
        10: _scalars("ib"),
        11: _scalars("b?", 0, True),
        17: {0: ("new shape", "*<i", ())},
        **dict.fromkeys((12, 21, 29), _scalars("b")),
        23: _scalars("ii"),
        27: _scalars("?"),
        28: _scalars("b?", 0, True),
        30: {0: ("dimensions", "*<i", ())},
        32: _scalars("iiiii?"),
        35: _scalars("i"),
        37: _scalars("bb"),
        40: _scalars("b"),
        55: _scalars("b"),
        57: _scalars("b"),
        59: _scalars("ii"),
        61: _scalars("i"),
        64: _scalars("ii"),
        75: _scalars("f", 0.0),
        79: _scalars("i"),
        101: _scalars("???"),
        102: _scalars("??"),
        116: _scalars("?"),
    }
)
#: The same by ``BuiltinOptions2``' number.
_OPTIONS_2: Final[Mapping[int, _Fields]] = {
    21: {
        0: ("name", "s", ""),
        1: ("decomposition", "<i", 0),
        2: ("attributes", "*<B", ()),
        3: ("format of attributes", "<b", 0),
        4: ("version", "<i", 0),
    }
}


@dataclass(frozen=True, slots=True)
class TensorContent:
    """A tensor of a function."""

    name: str
    #: Without its name and data.
    fields: Mapping[str, Value]
    #: Where its data are; ``None`` without.
    buffer: Buffer | None
    #: A digest of its data, if they lie within the graph.
    constant: bytes


@dataclass(frozen=True, slots=True)
class FunctionContent:
    """A function."""

    name: str
    #: Without its name.
    fields: Mapping[str, Value]
    tensors: tuple[TensorContent, ...]
    #: The fields of each operator.
    operators: tuple[Mapping[str, Value], ...]


@dataclass(frozen=True, slots=True)
class Content:
    """A model."""

    #: The model's own.
    fields: Mapping[str, Value]
    functions: tuple[FunctionContent, ...]
    #: Each signature's by key: its function, and the tensor of every input and output by name.
    signatures: Mapping[str, Value]
    #: Digests by name.
    metadata: Mapping[str, bytes]
    #: All places of data.
    buffers: tuple[Buffer | None, ...]
    #: What was not read, one line each.
    unknown: tuple[str, ...]
    #: The first byte other than 0 among those read that belongs to nothing.
    spare: int | None


def read_content(data: bytes, size: int, path: Path) -> Content:
    """All that a model of ``size`` bytes says, whose first ``data`` hold its flatbuffer; raises
    ``CheckpointError``, which names ``path``."""
    if data[4:8] != b"TFL3":
        raise CheckpointError(f"{path}: not a TFLite model")

    def damaged(problem: str) -> CheckpointError:
        return CheckpointError(f"{path}: not a whole TFLite model: {problem}")

    return _Reader(Flatbuffer(data, damaged, _MOST_PARTS, covered=True), size).content()


class _Reader:
    """Reads one flatbuffer, whose model has ``size`` bytes with what lies behind it."""

    def __init__(self, flatbuffer: Flatbuffer, size: int) -> None:
        self._flatbuffer, self._size = flatbuffer, size
        self._unknown: dict[str, None] = {}
        self._codes: list[Mapping[str, Value]] = []
        self._buffers: list[Buffer | None] = []
        self._digests: dict[Buffer, bytes] = {}

    def content(self) -> Content:
        self._flatbuffer.cover(4, 4)  # the identifier
        root = self._flatbuffer.root()
        fields = self._fields(root, _MODEL, "the model")
        self._codes = [self._fields(one, _CODE, "an operator's code") for one in root.tables(1)]
        self._buffers = [self._buffer(one) for one in root.tables(4)]
        functions = tuple(self._function(one) for one in root.tables(2))
        signatures: dict[str, Value] = {}
        for one in root.tables(7):
            found = self._signature(one)
            key = str(found["key"])
            if key in signatures:
                self._unknown[f"a second signature {shown(key)}"] = None
            signatures[key] = found
        metadata: dict[str, bytes] = {}
        for one in root.tables(6):
            name = str(self._fields(one, _METADATA, "metadata")["name"])
            if name in metadata:
                self._unknown[f"second metadata {shown(name)}"] = None
            metadata[name] = self._digest(self._held(one.number(1, "<I")))
        return Content(
            fields,
            functions,
            signatures,
            metadata,
            tuple(self._buffers),
            tuple(self._unknown),
            self._spare(),
        )

    def _spare(self) -> int | None:
        for one in self._buffers:
            if one is not None:
                self._flatbuffer.cover(one.offset, one.size)
        return self._flatbuffer.uncovered()

    def _fields(self, table: Table, known: _Fields, what: str) -> dict[str, Value]:
        """The values of all fields of a table; those that are not known are remembered."""
        for field in table.fields():
            if field not in known:
                self._unknown[f"{what}: field {field}"] = None
        return {
            name: table.value(field, format, default)
            for field, (name, format, default) in known.items()
            if format != "-"
        }

    def _function(self, table: Table) -> FunctionContent:
        fields = self._fields(table, _SUBGRAPH, "a function")
        name = str(fields.pop("name"))
        tensors = tuple(self._tensor(one) for one in table.tables(0))
        return FunctionContent(name, fields, tensors, tuple(self._operator(one) for one in table.tables(3)))

    def _tensor(self, table: Table) -> TensorContent:
        fields = self._fields(table, _TENSOR, "a tensor")
        name = str(fields.pop("name"))
        quantization = table.table(4)
        if quantization is not None:
            read = self._fields(quantization, _QUANTIZATION, "a quantization")
            fields |= {f"quantization {key}": value for key, value in read.items()}
            details = quantization.table(5)
            if details is not None and read["kind"] == 2:
                fields |= self._fields(details, _BLOCKWISE, "a quantization by blocks")
            elif read["kind"]:
                self._unknown[f"a quantization of kind {read['kind']}"] = None
        buffer = self._held(table.number(2, "<I"))
        return TensorContent(name, fields, buffer, self._digest(buffer))

    def _operator(self, table: Table) -> dict[str, Value]:
        index = table.number(0, "<I")
        if index >= len(self._codes):
            raise self._flatbuffer.damaged(f"an operator has code {index} of {len(self._codes)}")
        fields = {**self._fields(table, _OPERATOR, "an operator"), **self._code(index)}
        for kind, field, options in (
            ("kind of options", 4, _OPTIONS),
            ("second kind of options", 12, _OPTIONS_2),
        ):
            number, read = fields[kind], table.table(field)
            if read is None or not number:
                continue
            known = options.get(int(str(number)))
            if known is None:
                self._unknown[f"options of {kind.removesuffix(' of options')} {number}"] = None
            else:
                fields |= self._fields(read, known, f"options of kind {number}")
        return fields

    def _code(self, index: int) -> dict[str, Value]:
        code = self._codes[index]
        number = max(int(str(code["code"])), int(str(code["long code"])))
        return {"operator": number, "custom": code["custom code"], "operator version": code["version"]}

    def _signature(self, table: Table) -> dict[str, Value]:
        fields = self._fields(table, _SIGNATURE, "a signature")
        for field, part in ((0, "input"), (1, "output")):
            for one in table.tables(field):
                entry = self._fields(one, _MAP, "a signature's tensor")
                fields[f"{part} {entry['name']}"] = entry["tensor"]
        return fields

    def _buffer(self, table: Table) -> Buffer | None:
        self._fields(table, _BUFFER, "a buffer")
        offset, size = table.number(1, "<Q"), table.number(2, "<Q")
        if offset > 1:  # 0 and 1 stand for data within the flatbuffer
            if offset + size > self._size:
                raise self._flatbuffer.damaged(
                    f"a buffer ends at byte {shown(offset + size)} of {self._size}"
                )
            return Buffer(offset, size)
        place, count = table.vector(0, 1)
        if not count:
            return None
        buffer = Buffer(place, count)
        self._flatbuffer.make_room(count // 64)
        self._digests[buffer] = hashlib.sha256(self._flatbuffer.data[place : place + count]).digest()
        return buffer

    def _held(self, index: int) -> Buffer | None:
        if index >= len(self._buffers):
            raise self._flatbuffer.damaged(f"a tensor has buffer {index} of {len(self._buffers)}")
        return self._buffers[index]

    def _digest(self, buffer: Buffer | None) -> bytes:
        return b"" if buffer is None else self._digests.get(buffer, b"behind")
