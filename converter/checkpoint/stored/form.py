"""What a stored form is: it recognises a checkpoint, names the tensors of every module and makes weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from converter.checkpoint.stored.modules import Head, Tensors, named_scales, settle_head, shape_of_one
from converter.checkpoint.weight import Scales, Weight
from converter.errors import CheckpointError

_SECTIONS = ("quantization_config", "compression_config")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The stored tensors that make one weight, by role, a word that the form chooses (``packed``, ``scale``).

    Names are canonical, without a prefix: ``layers.0.mlp.down_proj.weight_packed``.
    """

    #: All must be there.
    needed: Mapping[str, str]
    #: Any may be there.
    optional: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one checkpoint of a form stores its modules, by what its ``config.json`` says."""

    #: ``parameters(name)`` gives the ways in which the weight of a canonical name may be stored. A checkpoint
    #: must have one of them whole. An index of names is judged by them too, without weights.
    parameters: Callable[[str], Sequence[Parameters]]
    #: ``weight(name, shape, tensors)`` makes the weight of ``shape`` (the architecture's) of the tensors of
    #: one of these ways, by role. It raises ``CheckpointError`` for tensors that do not fit, before it reads
    #: them: a row of a hostile file may be larger than memory.
    weight: Callable[[str, Shape, Tensors], Weight]
    #: ``weight_of(name)`` gives the weight that a stored tensor belongs to, the inverse of ``parameters``. It
    #: finds the packed weights of parts beside the text model, whose names no architecture tells.
    weight_of: Callable[[str], str] = lambda name: name
    #: ``shape(tensors)`` gives the shape of such a weight, by what its tensors tell.
    shape: Callable[[Tensors], Shape] = shape_of_one
    #: ``scales(module)`` names tensors with scales of what goes through a module and of its caches, by role.
    #: The modules are those of the weights and all that these lie in (``layers.0.self_attn``).
    scales: Callable[[str], Mapping[str, str]] = lambda module: {}
    #: ``read_scales(module, tensors)`` reads those that are there.
    read_scales: Callable[[str, Tensors], Scales] = named_scales
    #: ``head(head, embedding)`` settles what a stored head is where the configuration ties it.
    head: Callable[[Tensors, Tensors | None], Head] = settle_head
    #: ``check(names)`` judges the names of all stored tensors together, of every part. It raises
    #: ``CheckpointError``.
    check: Callable[[Collection[str]], None] = lambda names: None
    #: ``expected(name, shape)`` is what a weight is taken for where only a checkpoint's description is at
    #: hand: its lattice, and zeros for values. ``None`` where the form cannot tell before it reads tensors.
    expected: Callable[[str, Shape], Weight] | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which checkpoints store weights."""

    #: What reports call it.
    name: str
    #: What it is, in a few words for a reader (``unquantized safetensors``).
    describes: str
    #: ``recognises(config)`` looks at the parsed ``config.json``.
    recognises: Callable[[Mapping[str, object]], bool]
    #: ``layout(config)`` reads what ``config.json`` says of the form. It raises ``CheckpointError`` for what
    #: is not read.
    layout: Callable[[Mapping[str, object]], Layout]
    #: Asked only where no other form recognises the checkpoint.
    last_resort: bool = False
    #: transformers loads such a checkpoint. What it does not load is proven by the numbers that its codes and
    #: scales stand for.
    loads_as_stored: bool = True
    #: A repository that has it.
    example: str = ""


def whole_way(where: str, weight: str, names: Collection[str], layout: Layout) -> dict[str, str] | None:
    """The way in which a weight is stored, of the tensors that have ``names``: a name for each role, ``None``
    if there is no whole way. Raises ``CheckpointError`` for two of them; ``where`` begins its message."""
    whole = [way for way in layout.parameters(weight) if all(name in names for name in way.needed.values())]
    if len(whole) > 1:
        ways = " and as ".join(", ".join(way.needed.values()) for way in whole)
        raise CheckpointError(f"{where}: weight {weight!r} is stored twice, as {ways}")
    if not whole:
        return None
    beside = {role: name for role, name in whole[0].optional.items() if name in names}
    return {**whole[0].needed, **beside}


def quantization_of(config: Mapping[str, object]) -> tuple[str, object] | None:
    """Where ``config.json`` says that weights are packed, and what it says; ``None`` where it does not."""
    text = config.get("text_config")
    for where, values in (("", config), ("text_config.", text)):
        for section in _SECTIONS:
            if isinstance(values, Mapping) and values.get(section) is not None:
                return f"{where}{section}", values[section]
    return None
