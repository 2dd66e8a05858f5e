"""An excerpt (``converter.checkpoint.excerpt``) of a LiteRT graph: its own operators of some layers,
connected anew.

What a layer adds to is the input of its first norm, which stands before the products with its matrices. So
the layers between two kept ones are left out by giving the later one the input of the first of them. A layer
that shares keys and values gets the caches of the last kept layer of the kind that it read from. Nothing else
is changed, and operators that no output needs any more go: what is wrong in one that stays is as wrong in the
excerpt.

The graph is not taken apart. The bytes that say what an operator reads, which operators there are, and which
inputs and outputs, are overwritten in a copy, at places that ``targets.litert.tables`` has checked. A prefill
computes caches alone, and so only the layers that have some.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from converter.checkpoint.canonical_names import EMBEDDING, HEAD
from converter.checkpoint.excerpt import Excerpt, uncut
from converter.system.untrusted import shown
from targets.litert.schema import OPERATORS, Model, Operator, Subgraph
from targets.litert.tables import Flatbuffer, Patch, Table

_CACHE: Final = re.compile(r"kv_cache_([kv])_([0-9]+)")
_LOGITS: Final = "logits"
_LAYER: Final = re.compile(r"layers\.([0-9]+)\.(.+)")
#: The matrices behind a layer's first norm.
_FIRST: Final = tuple(f"self_attn.{one}_proj.weight" for one in "qkv")
_PRODUCT, _NORM = "FULLY_CONNECTED", "STABLEHLO_COMPOSITE"
#: Most operators from a product back to the norm before it.
_STEPS: Final = 24
#: Numbers of fields of ``Model``, ``SubGraph``, ``Operator``, ``SignatureDef`` and ``TensorMap``.
_SUBGRAPHS, _SIGNATURES = 2, 7
_INPUTS, _OUTPUTS, _OPERATORS = 1, 2, 3
_READ: Final = 1
_SIGNED_INPUTS, _SIGNED_OUTPUTS, _SUBGRAPH = 0, 1, 4
_NAME, _TENSOR = 0, 1


def cut(model: Model, flatbuffer: Flatbuffer, excerpt: Excerpt) -> tuple[Model, list[Patch]]:
    """The functions of a model with the operators of an excerpt alone, and what is to be overwritten in a
    copy of its graph, ``flatbuffer``.

    Functions without layers stay as they are. Raises ``CheckpointError`` for a graph in which layers are not
    found by the names of their matrices or are connected in another way than one behind the other.
    """
    root = flatbuffer.root()
    tables = list(root.tables(_SUBGRAPHS))
    subgraphs = list(model.subgraphs)
    patches: dict[int, bytes] = {}
    done: set[int] = set()
    for signature in root.tables(_SIGNATURES):
        index = signature.number(_SUBGRAPH, "<I")
        if index >= len(subgraphs) or index in done:
            raise uncut(f"a signature is of function {index} of {len(subgraphs)}, or not the first of it")
        done.add(index)
        function = _Function(subgraphs[index], tables[index], signature, excerpt)
        subgraphs[index] = function.subgraph
        for patch in function.patches:
            if patches.setdefault(patch.place, patch.content) != patch.content:
                raise uncut("two lists lie in the same place")
    return (
        replace(model, subgraphs=tuple(subgraphs)),
        [Patch(place, content) for place, content in patches.items()],
    )


@dataclass(frozen=True, slots=True)
class _List:
    """A list in a flatbuffer: the byte of its first item, and where the items are."""

    place: int
    items: tuple[int, ...]

    def of(self, kept: Sequence[int], *, relative: bool) -> list[Patch]:
        """What makes a list of ``kept`` items of it; ``relative`` ones are distances from where they
        stand."""
        if tuple(kept) == self.items:
            return []
        patches = [Patch(self.place - 4, struct.pack("<I", len(kept)))]
        for place, item in zip(range(self.place, self.place + 4 * len(kept), 4), kept, strict=True):
            patches.append(Patch(place, struct.pack("<i", item - place if relative else item)))
        return patches


def _numbers(table: Table, field: int) -> _List:
    return _List(table.vector(field, 4)[0], table.integers(field))


def _tables(table: Table, field: int) -> tuple[_List, list[Table]]:
    found = list(table.tables(field))
    return _List(table.vector(field, 4)[0], tuple(one.place for one in found)), found


class _Function:
    """A function of a model and its signature: ``subgraph`` has the operators of the excerpt alone,
    ``patches`` make its graph that."""

    def __init__(self, whole: Subgraph, table: Table, signature: Table, excerpt: Excerpt) -> None:
        self._whole, self._excerpt = whole, excerpt
        self._makers = {value: one for one in whole.operators for value in one.outputs}
        self._variables: dict[int, list[int]] = {}
        self.patches: list[Patch] = []
        outputs, gone_outputs = self._signed(signature, _SIGNED_OUTPUTS)
        _, gone_inputs = self._signed(signature, _SIGNED_INPUTS)
        others = self._streams(_LOGITS in outputs) | self._sources(outputs)
        operators = [
            replace(one, inputs=tuple(others.get(value, value) for value in one.inputs))
            for one in whole.operators
        ]
        results = _numbers(table, _OUTPUTS)
        left = [value for value in results.items if value not in gone_outputs]
        kept = _needed(operators, left)
        self._check([operators[index] for index in kept])
        self.subgraph = replace(whole, operators=tuple(operators[index] for index in kept))
        places, entries = _tables(table, _OPERATORS)
        for index in kept:
            read = _numbers(entries[index], _READ)
            self.patches += read.of(operators[index].inputs, relative=False)
        self.patches += places.of([places.items[index] for index in kept], relative=True)
        self.patches += results.of(left, relative=False)
        taken = _numbers(table, _INPUTS)
        self.patches += taken.of([one for one in taken.items if one not in gone_inputs], relative=False)

    def _signed(self, signature: Table, field: int) -> tuple[dict[str, int], set[int]]:
        """Tensors of a signature's inputs or outputs by name, and those of caches that go, which its list
        loses."""
        places, entries = _tables(signature, field)
        found = {one.text(_NAME): one.number(_TENSOR, "<I") for one in entries}
        if max(found.values(), default=0) >= len(self._whole.tensors):
            raise uncut("an input or output is no tensor of its function")
        gone = {
            name
            for name in found
            if (match := _CACHE.fullmatch(name)) and int(match[2]) not in self._excerpt.layers
        }
        left = [one.place for one in entries if one.text(_NAME) not in gone]
        self.patches += places.of(left, relative=True)
        return found, {found[name] for name in gone}

    def _streams(self, whole: bool) -> dict[int, int]:
        """For what goes into a layer behind ones that are left out: what goes into the first of these.
        ``whole`` tells of a function that gives logits, in which every layer is."""
        found = self._found()
        end = self._excerpt.of
        needed = set(range(end + 1)) if whole else set()
        pairs = [
            (before + 1, layer)
            for before, layer in pairwise((*self._excerpt.layers, end))
            if layer != before + 1 and layer in found
        ]
        for layer in sorted(needed.union(before for before, _ in pairs) - found.keys()):
            name = f"layer {layer}" if layer < end else "the head"
            raise uncut(f"no norm stands before {name}")
        return {found[late]: found[early] for early, late in pairs}

    def _found(self) -> dict[int, int]:
        """What goes into the norm before each layer that the function has, and before the head."""
        found: dict[int, int] = {}
        for operator in self._whole.operators:
            if OPERATORS.get(operator.code) != _PRODUCT or len(operator.inputs) < 2:
                continue
            layer = self._behind(self._name(operator.inputs[1]))
            if layer is None:
                continue
            stream = self._stream(operator.inputs[0])
            if found.setdefault(layer, stream) != stream:
                raise uncut(f"matrices of layer {layer} do not read the same norm")
        return found

    def _behind(self, name: str) -> int | None:
        """The layer, or behind all the head, before whose matrix ``name`` a norm of the layer's stands."""
        if name in (EMBEDDING, HEAD):
            return self._excerpt.of
        match = _LAYER.fullmatch(name)
        return int(match[1]) if match and match[2] in _FIRST else None

    def _stream(self, value: int) -> int:
        """What goes into the norm from which a product's input comes, by one way or by the several of an
        input that is split into rows (``additions.Function.split_input``)."""
        norms, left, seen = set(), [value], {value}
        while left and len(seen) <= _STEPS:
            maker = self._makers.get(left.pop())
            read = self._read(maker) if maker is not None else []
            if maker is None or not read:
                break
            if OPERATORS.get(maker.code) == _NORM and len(read) == 1:
                norms.add(read[0])
                continue
            left += [one for one in read if one not in seen]
            seen.update(read)
        else:
            if not left and len(norms) == 1:
                return norms.pop()
        raise uncut(f"no norm makes {shown(self._name(value))}")

    def _read(self, operator: Operator) -> list[int]:
        """What an operator reads but for constants; the list may be long, and is asked for by many."""
        if id(operator) not in self._variables:
            found = [one for one in operator.inputs if not self._is_constant(one)]
            self._variables[id(operator)] = found
        return self._variables[id(operator)]

    def _sources(self, outputs: Mapping[str, int]) -> dict[int, int]:
        """For the caches of layers that are left out, those of the layers that stand in for them."""
        found = {}
        for layer in range(self._excerpt.own):
            other = self._excerpt.stand_in(layer)
            if layer in self._excerpt.layers or other is None:
                continue
            for kind in "kv":
                late, early = (outputs.get(f"kv_cache_{kind}_{one}") for one in (layer, other))
                if late is not None and early is not None:
                    found[late] = early
        return found

    def _check(self, operators: Iterable[Operator]) -> None:
        """Refuse operators that read a matrix of a layer that goes."""
        for value in {value for one in operators for value in one.inputs}:
            match = _LAYER.fullmatch(self._name(value))
            if match and int(match[1]) not in self._excerpt.layers:
                name = shown(self._name(value))
                raise uncut(f"layer {match[1]} cannot be left out, {name} is still read")

    def _name(self, value: int) -> str:
        return self._whole.tensors[value].name if 0 <= value < len(self._whole.tensors) else ""

    def _is_constant(self, value: int) -> bool:
        if not 0 <= value < len(self._whole.tensors):
            return True  # an input that is left out
        return value not in self._makers and self._whole.tensors[value].buffer is not None


def _needed(operators: Sequence[Operator], outputs: Iterable[int]) -> list[int]:
    """Indices of the operators that ``outputs`` need, ascending."""
    needed, kept = set(outputs), []
    for index in reversed(range(len(operators))):
        if needed.intersection(operators[index].outputs):
            needed.update(operators[index].inputs)
            kept.append(index)
    return kept[::-1]
