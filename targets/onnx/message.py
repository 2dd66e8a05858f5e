"""Two serialised ONNX messages side by side, by the field names of ``onnx.proto``.

One of them may come from a stranger: neither is parsed by protobuf, which takes 170 bytes of memory for two
of a message. Parts that are equal byte for byte, as a rule all, are never looked into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto

from converter.errors import CheckpointError
from converter.system.untrusted import shown
from targets.onnx.protobuf import LENGTH_DELIMITED, fields
from targets.target import Difference

#: What describes a message and bears on nothing that onnxruntime computes. All else decides, fields that
#: onnx.proto does not know included.
_DESCRIPTIVE: Final[Mapping[str, frozenset[str]]] = {
    "ModelProto": frozenset(
        ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props")
    ),
    "GraphProto": frozenset(("name", "doc_string", "metadata_props")),
    "FunctionProto": frozenset(("doc_string", "metadata_props")),
    "NodeProto": frozenset(("name", "doc_string", "metadata_props")),
    "AttributeProto": frozenset(("doc_string",)),
    "TensorProto": frozenset(("doc_string", "metadata_props")),
    "ValueInfoProto": frozenset(("doc_string", "metadata_props")),
}
#: A property from which onnxruntime takes options of its session, if an environment variable asks for it.
_SESSION_OPTIONS: Final = "ort_config"
#: Where data lie in another file: their bytes are compared there, wherever that is.
_PLACES: Final = ("location", "offset")
#: Lists whose order says nothing.
_UNORDERED: Final = frozenset(
    ("attribute", "external_data", "initializer", "metadata_props", "opset_import", "value_info", "functions")
)
#: Number of the field by which a message is known among its like: a node by its outputs.
_KEYS: Final[Mapping[str, int]] = {
    "AttributeProto": 1,
    "FunctionProto": 1,
    "NodeProto": 2,
    "OperatorSetIdProto": 1,
    "StringStringEntryProto": 1,
    "TensorProto": 8,
    "ValueInfoProto": 1,
}
#: Most fields that are looked at, and most differences that are told.
_MOST_FIELDS: Final = 1 << 21
_MOST_DIFFERENCES: Final = 1000

#: Wire type and content.
_Value = tuple[int, memoryview]


def model_differences(expected: bytes, found: bytes, path: Path) -> list[Difference]:
    """Where two serialised models differ, none if they are equal; ``path`` is the file of the one found.
    Raises ``CheckpointError`` for a damaged model."""
    if expected == found:
        return []
    comparison = _Comparison(path)
    comparison.messages(memoryview(expected), memoryview(found), ModelProto.DESCRIPTOR, "", True)
    if not comparison.found:
        comparison.tell("the model's bytes", "as the converter writes them", "encoded otherwise", False)
    return comparison.found


class _Comparison:
    """Collects differences; looks at a bounded number of fields."""

    def __init__(self, path: Path) -> None:
        self.found: list[Difference] = []
        self._path = path
        self._fields = 0

    def tell(self, where: str, expected: str, found: str, deciding: bool) -> None:
        """Add a difference, up to a number; beyond it only one that decides where none did."""
        if len(self.found) < _MOST_DIFFERENCES or (deciding and not any(one.deciding for one in self.found)):
            self.found.append(Difference(f"{self._path.name}: {where}", expected, found, deciding))

    def messages(
        self, expected: memoryview, found: memoryview, type: Any, where: str, deciding: bool
    ) -> None:
        """Compare two messages of one ``type`` (a protobuf descriptor)."""
        ours, theirs = self._by_number(expected), self._by_number(found)
        for number in sorted({*ours, *theirs}):
            one, other = ours.get(number, []), theirs.get(number, [])
            if one == other:
                continue
            field = type.fields_by_number.get(number)
            name = field.name if field else f"unknown field {number}"
            decides = deciding and name not in _DESCRIPTIVE.get(type.name, ())
            nested = field.message_type if field else None
            if nested and all(wire == LENGTH_DELIMITED for wire, _ in [*one, *other]):
                self._lists([v for _, v in one], [v for _, v in other], nested, name, where, decides)
            else:
                self.tell(_joined(where, name), _listed(one), _listed(other), decides)

    def _lists(
        self,
        expected: Sequence[memoryview],
        found: Sequence[memoryview],
        type: Any,
        name: str,
        where: str,
        deciding: bool,
    ) -> None:
        """Compare messages of one field: those that are known by the same name with each other."""
        ours, theirs = _without_common_ends(expected, found)
        keys = [self._keys(side, type) for side in (ours, theirs)]
        theirs_by_key = dict(zip(keys[1], theirs, strict=True))
        ours_by_key = dict(zip(keys[0], ours, strict=True))
        for key, message in ours_by_key.items():
            label, decides = self._label(message, type, name), deciding
            decides = deciding or (name == "metadata_props" and _SESSION_OPTIONS in key[0])
            if name == "external_data" and key[0] in _PLACES:
                decides = False
            if key not in theirs_by_key:
                self.tell(_joined(where, label), "is there", "nothing", decides)
            elif message != theirs_by_key[key]:
                self.messages(message, theirs_by_key[key], type, _joined(where, label), decides)
        for key, message in theirs_by_key.items():
            if key not in ours_by_key:
                decides = deciding or (name == "metadata_props" and _SESSION_OPTIONS in key[0])
                self.tell(_joined(where, self._label(message, type, name)), "nothing", "is there", decides)
        if keys[0] != keys[1] and Counter(keys[0]) == Counter(keys[1]):
            decides = deciding and name not in _UNORDERED
            self.tell(_joined(where, f"order of {name}"), "the converter's", "another", decides)

    def _keys(self, messages: Sequence[memoryview], type: Any) -> list[tuple[str, int]]:
        """What each message is known by, and which of those with the same name it is."""
        number, seen = _KEYS.get(type.name), Counter[str]()
        keys = []
        for message in messages:
            name = "" if number is None else "\n".join(self._texts(message, number))
            keys.append((name, seen[name]))
            seen[name] += 1
        return keys

    def _label(self, message: memoryview, type: Any, name: str) -> str:
        number = _KEYS.get(type.name)
        known = "" if number is None else ", ".join(self._texts(message, number))
        if type.name == "NodeProto":
            return f"node {', '.join(self._texts(message, 4))} {shown(known)}"
        return f"{name} {shown(known)}" if known else name

    def _texts(self, message: memoryview, number: int) -> list[str]:
        values = self._by_number(message).get(number, [])
        return [bytes(content).decode("utf-8", "replace") for _, content in values]

    def _by_number(self, message: memoryview) -> dict[int, list[_Value]]:
        values: dict[int, list[_Value]] = {}
        for number, wire, content in fields(message, self._path):
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                raise CheckpointError(
                    f"{self._path}: its graph has too many parts that are not the converter's"
                )
            values.setdefault(number, []).append((wire, content))
        return values


def _without_common_ends(
    one: Sequence[memoryview], other: Sequence[memoryview]
) -> tuple[Sequence[memoryview], Sequence[memoryview]]:
    """Both lists without what they have in common at the beginning and at the end."""
    begin = _common(one, other)
    one, other = one[begin:], other[begin:]
    end = _common(one[::-1], other[::-1])
    return one[: len(one) - end], other[: len(other) - end]


def _common(one: Sequence[memoryview], other: Sequence[memoryview]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _joined(where: str, name: str) -> str:
    return f"{where}: {name}" if where else name


def _listed(values: Sequence[_Value]) -> str:
    """The values of a field, short enough for a line."""
    return ", ".join(_texts(values)) or "nothing"


def _texts(values: Sequence[_Value]) -> Iterator[str]:
    for wire, content in values[:4]:
        if wire == 0:
            yield str(sum((byte & 0x7F) << (7 * index) for index, byte in enumerate(content)))
        else:
            yield shown(bytes(content[:64])).removeprefix("b")
    if len(values) > 4:
        yield f"... ({len(values)})"
