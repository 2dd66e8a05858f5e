"""An excerpt (``converter.checkpoint.excerpt``) of an ONNX model: its own nodes of some layers, connected
anew.

What a layer adds to is the input of its first norm, which is found by its weight. So the layers between two
kept ones are left out by giving the later one the input of the first of them. A layer that shares keys and
values gets those of the last kept layer of the kind that it read from. Nothing else is changed, and nodes
that no output needs any more go: what is wrong in a node that stays is as wrong in the excerpt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from converter.checkpoint.canonical_names import FINAL_NORM
from converter.checkpoint.excerpt import Excerpt, uncut
from converter.checkpoint.safetensors import Shard
from converter.system.untrusted import shown
from targets.onnx.storage import stored_name

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

#: The file with the data of an excerpt, beside its graph.
DATA: Final = "excerpt.data"
_ALIGNMENT: Final = 4096
_COPIED: Final = 16 << 20
_NORMS: Final = ("RMSNormalization", "SkipSimplifiedLayerNormalization")
#: Most nodes from a weight to its norm.
_STEPS: Final = 3
_KINDS: Final = ("key", "value")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a file with data, beside the artifact."""

    #: Its name.
    location: str
    #: Where they begin.
    offset: int
    #: How many there are.
    length: int


def cut(model: ModelProto, excerpt: Excerpt) -> None:
    """Leave of ``model`` the excerpt alone.

    Raises ``CheckpointError`` for a graph in which layers are not found by the names of this target's
    weights, or are connected in another way than one behind the other."""
    graph = model.graph
    others = _streams(graph, excerpt) | _sources(excerpt)
    for node in graph.node:
        _rename(node, others)
    gone = {
        f"{start}.{layer}.{kind}"
        for layer in range(excerpt.own)
        if layer not in excerpt.layers
        for start in ("past_key_values", "present")
        for kind in _KINDS
    }
    for values in (graph.input, graph.output):
        kept = [value for value in values if value.name not in gone]
        del values[:]
        values.extend(kept)
    _drop_unused(graph)
    for initializer in graph.initializer:
        for layer in set(range(excerpt.of)) - set(excerpt.layers):
            if initializer.name.startswith(stored_name(f"layers.{layer}.")):
                raise uncut(f"layer {layer} cannot be left out, {shown(initializer.name)} is still read")


def stretches(model: ModelProto) -> dict[Stretch, int]:
    """The data that a model has in other files, each with its place in the file of an excerpt, in order.

    Raises ``CheckpointError`` for a file that is not beside the artifact."""
    places: dict[Stretch, int] = {}
    end = 0
    for initializer in _external(model):
        stretch = _stretch(initializer)
        if stretch not in places:
            places[stretch] = end
            end += -(-stretch.length // _ALIGNMENT) * _ALIGNMENT
    return places


def move_data(model: ModelProto, places: Mapping[Stretch, int]) -> None:
    """Have a model read its data from the file of an excerpt, in which they lie at ``places``."""
    for initializer in _external(model):
        stretch = _stretch(initializer)
        del initializer.external_data[:]
        values = {"location": DATA, "offset": places[stretch], "length": stretch.length}
        for key, value in values.items():
            initializer.external_data.add(key=key, value=str(value))


def copy_data(directory: Path, places: Mapping[Stretch, int], output: BinaryIO) -> Iterator[int]:
    """Write data from files in ``directory`` to their places; gives the number of bytes written at a time.

    Raises ``CheckpointError`` for a file that cannot be read or is cut off, ``OSError`` if ``output`` cannot
    be written."""
    shards: dict[str, Shard] = {}
    for stretch, place in places.items():
        if stretch.location not in shards:
            shards[stretch.location] = Shard(directory / stretch.location)
        for done in range(0, stretch.length, _COPIED):
            count = min(_COPIED, stretch.length - done)
            output.seek(place + done)
            output.write(shards[stretch.location].read(stretch.offset + done, count, "the weights"))
            yield count


def _streams(graph: GraphProto, excerpt: Excerpt) -> dict[str, str]:
    """For what goes into a layer behind ones that are left out: what goes into the first of these."""
    names = [stored_name(f"layers.{layer}.input_layernorm.weight") for layer in range(excerpt.of)]
    names.append(stored_name(FINAL_NORM))
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for value in set(node.input):
            readers.setdefault(value, []).append(node)
    norms = [_norm(readers, name) for name in names]
    found: dict[str, str] = {}
    for before, layer in zip(excerpt.layers, (*excerpt.layers[1:], excerpt.of), strict=True):
        (late, values), (early, others) = norms[layer], norms[before + 1]
        if late != early or len(values) != len(others):
            raise uncut(f"what goes into layers {before + 1} and {layer} is not alike")
        found |= dict(zip(values, others, strict=True))
    return found


def _norm(readers: Mapping[str, Sequence[NodeProto]], weight: str) -> tuple[str, list[str]]:
    """The operator of the norm that has a weight, which something may be added to before, and its other
    inputs."""
    value = weight
    for _ in range(_STEPS):
        found = readers.get(value, ())
        if len(found) != 1:
            raise uncut(f"{len(found)} nodes read {shown(value)}, expected one")
        (node,) = found
        if node.op_type in _NORMS:
            return node.op_type, [other for other in node.input if other != value]
        value = node.output[0] if node.output else ""
    raise uncut(f"no norm has {weight}")


def _sources(excerpt: Excerpt) -> dict[str, str]:
    """For keys and values that sharing layers read, those of the layer that stands in for theirs."""
    return {
        f"present.{layer}.{kind}": f"present.{other}.{kind}"
        for layer in range(excerpt.own)
        if (other := excerpt.stand_in(layer)) is not None
        for kind in _KINDS
    }


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _rename(node: NodeProto, others: Mapping[str, str]) -> None:
    for index, value in enumerate(node.input):
        if value in others:
            node.input[index] = others[value]
    for graph in _subgraphs(node):
        for inner in graph.node:
            _rename(inner, others)


def _read_by(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for graph in _subgraphs(node):
        for inner in graph.node:
            yield from _read_by(inner)
        yield from (value.name for value in graph.output)


def _drop_unused(graph: GraphProto) -> None:
    """Leave out nodes, initializers and types of values that no output needs."""
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_read_by(node))
            nodes.append(node)
    made = {value for node in nodes for value in node.output}
    _keep(graph.node, reversed(nodes))
    _keep(graph.initializer, [one for one in graph.initializer if one.name in needed])
    _keep(graph.value_info, [one for one in graph.value_info if one.name in made])


def _keep(field: object, kept: Iterable[object]) -> None:
    """Leave of a repeated field some of its messages."""
    copies = [type(one).FromString(one.SerializeToString()) for one in kept]  # type: ignore[attr-defined]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]


def _external(model: ModelProto) -> Iterator[TensorProto]:
    from onnx import TensorProto

    for initializer in model.graph.initializer:
        if initializer.data_location == TensorProto.EXTERNAL:
            yield initializer


def _stretch(initializer: TensorProto) -> Stretch:
    entries = {entry.key: entry.value for entry in initializer.external_data}
    location = entries.get("location", "")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries["length"])
    except (KeyError, ValueError):
        offset = length = -1
    if Path(location).name != location or location in ("", "..") or offset < 0 or length < 0:
        raise uncut(f"the data of {shown(initializer.name)} are not told or not beside the model")
    return Stretch(location, offset, length)
