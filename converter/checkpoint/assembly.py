"""Which stored tensors make which weight of the text model, and the weights that a form makes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.canonical_names import EMBEDDING, HEAD
from converter.checkpoint.documents import Files
from converter.checkpoint.part_weights import part_weights
from converter.checkpoint.parts import TEXT
from converter.checkpoint.safetensors import Shards, SourceTensor, read_index
from converter.checkpoint.stored import Head, Layout, Tensors, whole_way
from converter.checkpoint.weight import Scales, Weight
from converter.errors import CheckpointError
from converter.filenames import INDEX
from converter.system.untrusted import shown

_CLIP_BOUNDS: Final = ("input_min", "input_max", "output_min", "output_max")
#: The module within a clippable linear, which names leave out.
_INNER: Final = "linear"


#: Stored tensors by role, by the weight that they make.
Found = dict[str, Tensors]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that is no weight of the text model."""

    #: The name in the checkpoint.
    name: str
    #: What is stored: shape, dtype and number of bytes.
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    #: Why a text model does without it.
    reason: str
    #: The part that it belongs to.
    part: str
    #: The weight of ``Assembly.parts`` that it is or belongs to, by name; for any other tensor its own name.
    weight: str


@dataclass(frozen=True, slots=True)
class Assembly:
    """The text model of a checkpoint."""

    #: It knows whether a stored head unties it.
    architecture: Architecture
    #: By canonical name, in model order.
    weights: Mapping[str, Weight]
    #: By module.
    scales: Mapping[str, Scales]
    #: All other tensors.
    left_out: tuple[LeftOut, ...]
    #: The weights of other parts, by part and name in the checkpoint: numbers, and what the form makes of
    #: packed tensors.
    parts: Mapping[str, Mapping[str, Weight]]


def assemble(shards: Shards, architecture: Architecture, layout: Layout) -> Assembly:
    """Make the weights of a checkpoint's tensors.

    Raises ``CheckpointError`` for tensors that do not fit the architecture: missing, unexpected, twice there,
    or of another shape.
    """
    layout.check(shards.tensors)
    tensors, outside = _sort_out(shards, architecture, layout)
    assigned = _assign(shards.where, tensors, architecture, layout)
    for name in assigned.clip_bounds:
        outside[tensors[name].name] = (TEXT, "clip bound, which the text model does not use")
    left_out = [
        _left_out(tensor, *outside[name]) for name, tensor in shards.tensors.items() if name in outside
    ]
    found: Found = {
        name: {role: tensors[one] for role, one in roles.items()} for name, roles in assigned.weights.items()
    }
    architecture, found, equal = _settle_head(shards, architecture, layout, found)
    left_out += [_left_out(tensor, TEXT, Head.EQUAL.value) for tensor in equal]
    left_out += [_left_out(tensors[name], TEXT, reason) for name, reason in assigned.unused.items()]
    weights = {
        name: _with_role(layout.weight(name, shape, found[name]), architecture)
        for name, shape in architecture.tensors.items()
        if name in found
    }
    _check(shards, architecture, weights, assigned.missing)
    for name in assigned.unexpected:
        raise _unexpected(tensors[name].where, architecture)
    scales = {
        module: layout.read_scales(module, {role: tensors[one] for role, one in roles.items()})
        for module, roles in assigned.scales.items()
    }
    parts = {
        part: part_weights([shards.tensors[item.name] for item in items], layout)
        for part, items in _by_part(left_out).items()
    }
    belongs = {name: weight for made in parts.values() for name, weight in made.belongs.items()}
    return Assembly(
        architecture,
        weights,
        scales,
        tuple(replace(item, weight=belongs.get(item.name, item.name)) for item in left_out),
        {part: made.weights for part, made in parts.items() if made.weights},
    )


def expected_weights(
    architecture: Architecture, expected: Callable[[str, tuple[int, ...]], Weight]
) -> dict[str, Weight]:
    """The weights of the text model as they are ``expected`` by name and shape."""
    return {
        name: _with_role(expected(name, shape), architecture) for name, shape in architecture.tensors.items()
    }


def _with_role(weight: Weight, architecture: Architecture) -> Weight:
    """A weight with what the architecture says of it, which no form knows. Training leaves a router's numbers
    alone: the choice of experts is too sensitive."""
    if weight.name not in architecture.routers:
        return weight
    return replace(weight, router=True, coded=weight.coded and weight.is_packed)


def _by_part(left_out: Iterable[LeftOut]) -> dict[str, list[LeftOut]]:
    """What belongs to other parts than the text model, by part."""
    found: dict[str, list[LeftOut]] = {}
    for item in left_out:
        if item.part != TEXT:
            found.setdefault(item.part, []).append(item)
    return found


def _sort_out(
    shards: Shards, architecture: Architecture, layout: Layout
) -> tuple[dict[str, SourceTensor], dict[str, tuple[str, str]]]:
    """The text model's tensors by canonical name, and by their own names the parts that others belong to,
    and what they are there."""
    known = _stored_names(architecture, layout)
    tensors: dict[str, SourceTensor] = {}
    outside: dict[str, tuple[str, str]] = {}
    for tensor in shards.tensors.values():
        part = _other_part(tensor.name, architecture)
        if part is not None:
            outside[tensor.name] = part
            continue
        name = canonical_name(tensor.name, architecture, known)
        if name in tensors:
            raise CheckpointError(f"{tensor.where} is {name}, which {shown(tensors[name].name)} is as well")
        tensors[name] = tensor
    return tensors, outside


def check_index(files: Files, architecture: Architecture, layout: Layout) -> None:
    """Refuse an index without a tensor that the architecture needs, or with one that it has no place for.
    Raises ``CheckpointError``."""
    known = _stored_names(architecture, layout)
    every = read_index(files)
    layout.check(every)
    listed = [name for name in every if _other_part(name, architecture) is None]
    names = {canonical_name(name, architecture, known): name for name in listed}
    index = files.where(INDEX)
    assigned = _assign(index, names, architecture, layout)
    if assigned.missing:
        raise _missing(index, architecture, list(assigned.missing.values()))
    for name in assigned.unexpected:
        raise _unexpected(f"{index}: tensor {shown(names[name])}", architecture)


@dataclass(frozen=True, slots=True)
class _Assignment:
    """What the names of stored tensors tell."""

    #: A name for each role, by weight. A tied head is among the weights if it is stored.
    weights: Mapping[str, Mapping[str, str]]
    #: A name for each role, by module.
    scales: Mapping[str, Mapping[str, str]]
    #: A name to tell for each weight that cannot be made.
    missing: Mapping[str, str]
    #: Names that the architecture does without, and why.
    unused: Mapping[str, str]
    #: Names that the form has no use for.
    clip_bounds: tuple[str, ...]
    #: The rest.
    unexpected: tuple[str, ...]


def _assign(where: str, names: Collection[str], architecture: Architecture, layout: Layout) -> _Assignment:
    """Which weight each of ``names``, all canonical, belongs to. Raises ``CheckpointError`` for a weight that
    is stored in two ways; ``where`` begins its message."""
    weights: dict[str, dict[str, str]] = {}
    for weight in _settled(architecture):
        way = whole_way(where, weight, names, layout)
        if way is not None:
            weights[weight] = way
    serves = {EMBEDDING} if architecture.tied_head and HEAD in weights else set()
    missing = {
        weight: _first_missing(weight, names, layout)
        for weight in architecture.tensors
        if weight not in weights and weight not in serves
    }
    scales: dict[str, dict[str, str]] = {}
    for module in _modules(architecture):
        present = {role: name for role, name in layout.scales(module).items() if name in names}
        if present:
            scales[module] = present
    taken = {name for roles in (*weights.values(), *scales.values()) for name in roles.values()}
    without = {
        name: reason for weight, reason in architecture.unused.items() for name in _every_name(weight, layout)
    }
    rest = [name for name in names if name not in taken]
    return _Assignment(
        weights,
        scales,
        missing,
        {name: without[name] for name in rest if name in without},
        tuple(name for name in rest if name not in without and _is_clip_bound(name)),
        tuple(name for name in rest if name not in without and not _is_clip_bound(name)),
    )


def _first_missing(weight: str, names: Collection[str], layout: Layout) -> str:
    """What to name where a weight cannot be made: the first tensor that the way lacks which has begun."""
    for way in layout.parameters(weight):
        lacking = [name for name in way.needed.values() if name not in names]
        if len(lacking) < len(way.needed):
            return lacking[0]
    return weight


def _every_name(weight: str, layout: Layout) -> Iterator[str]:
    for way in layout.parameters(weight):
        yield from way.needed.values()
        yield from way.optional.values()


def _settled(architecture: Architecture) -> dict[str, None]:
    """The weights that may be stored: those of the architecture, and the head that it ties."""
    return dict.fromkeys((*architecture.tensors, HEAD))


def _modules(architecture: Architecture) -> dict[str, None]:
    """The modules of the weights and those that they lie in, in model order."""
    found: dict[str, None] = {}
    for weight in (*_settled(architecture), *architecture.unused):
        module = weight.rpartition(".")[0]
        while module:
            found.setdefault(module)
            module = module.rpartition(".")[0]
    return found


def _stored_names(architecture: Architecture, layout: Layout) -> frozenset[str]:
    """Every canonical name that a tensor of the text model may have."""
    weights = (*_settled(architecture), *architecture.unused)
    return frozenset(
        [
            *(name for weight in weights for name in _every_name(weight, layout)),
            *(name for module in _modules(architecture) for name in layout.scales(module).values()),
        ]
    )


def canonical_name(name: str, architecture: Architecture, known: Collection[str]) -> str:
    """The canonical name of a text tensor: without prefix, and without the ``linear`` of a clippable linear
    where that gives one of the ``known`` names."""
    start = next(prefix for prefix in architecture.prefixes if name.startswith(prefix))
    bare = name.removeprefix(start)
    module, _, last = bare.rpartition(".")
    plain = f"{module.removesuffix(f'.{_INNER}')}.{last}"
    return plain if plain in known else bare


def _other_part(name: str, architecture: Architecture) -> tuple[str, str] | None:
    """The part that a tensor outside the text model belongs to, and what it is there."""
    for part in architecture.parts:
        for start, what in part.tensors.items():
            if name.startswith(start):
                return part.name, f"{what} (clip bound)" if _is_clip_bound(name) else what
    return None


def _is_clip_bound(name: str) -> bool:
    return name.rpartition(".")[2] in _CLIP_BOUNDS


def _settle_head(
    shards: Shards, architecture: Architecture, layout: Layout, found: Found
) -> tuple[Architecture, Found, tuple[SourceTensor, ...]]:
    """The architecture and the tensors by weight, and the tensors of a head that is left out. The form has
    then settled what a stored head is that the configuration ties."""
    head, embedding = found.get(HEAD), found.get(EMBEDDING)
    if head is None or not architecture.tied_head:
        return architecture, found, ()
    if embedding is not None:  # what is compared as a whole must be of the size that it should be
        shape = architecture.tensors[EMBEDDING]
        _check_shape(shards, layout.weight(EMBEDDING, shape, embedding), shape)
    kind = layout.head(head, embedding)
    if kind is Head.OWN:
        tensors = {**architecture.tensors, HEAD: (architecture.vocabulary, architecture.hidden)}
        return replace(architecture, tied_head=False, tensors=tensors), found, ()
    rest = {name: tensors for name, tensors in found.items() if name != HEAD}
    if kind is Head.BOTH:
        return architecture, {**rest, EMBEDDING: head}, ()
    return architecture, rest, tuple(head.values())


def _check(
    shards: Shards,
    architecture: Architecture,
    weights: Mapping[str, Weight],
    missing: Mapping[str, str],
) -> None:
    """Every weight is there and has the shape that the configuration asks for."""
    for name, shape in architecture.tensors.items():
        if name not in weights:
            raise _missing(shards.where, architecture, list(missing.values()) or [name])
        _check_shape(shards, weights[name], shape)


def _check_shape(shards: Shards, weight: Weight, shape: tuple[int, ...]) -> None:
    if weight.shape != shape:
        source = shards.tensors.get(weight.source)
        where = source.where if source else f"{shards.where}: tensor {shown(weight.source)}"
        raise CheckpointError(f"{where} has shape {list(weight.shape)}, config.json asks for {list(shape)}")


def _missing(where: str, architecture: Architecture, names: Sequence[str]) -> CheckpointError:
    first, *others = names
    more = f" and {len(others)} more" if others else ""
    return CheckpointError(
        f"{where}: tensor {first!r}{more} is missing; "
        f"config.json describes a {architecture.model_type} of {len(architecture.layers)} layers"
    )


def _unexpected(where: str, architecture: Architecture) -> CheckpointError:
    return CheckpointError(
        f"{where} is unexpected: config.json describes a {architecture.model_type} of "
        f"{len(architecture.layers)} layers without it"
    )


def _left_out(tensor: SourceTensor, part: str, reason: str) -> LeftOut:
    if not tensor.name.isprintable():  # it will stand in reports, which no terminal should obey
        raise CheckpointError(f"{tensor.where} has a name with unprintable characters; refused")
    return LeftOut(tensor.name, tensor.shape, tensor.dtype, tensor.bytes, reason, part, tensor.name)
