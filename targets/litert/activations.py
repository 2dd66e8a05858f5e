"""How a product takes its activations: rounded by their own values, in one row or two, or to static grids.

LiteRT's library for processors rounds each row of a product's input to int8 by one scale, which the row's
largest value decides. A trained model has a few very large values, and beside them the others lose most of
their bits. An input that is split by magnitude into two rows (``targets.litert.additions``) keeps
them, at the price of the second row. What that gains differs between projections, so they are chosen by the
names of their modules.

A checkpoint may have static scales, to whose multiples training rounded what modules take and give. Then a
product takes int8 and gives int8, and computes what was trained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.canonical_names import EMBEDDING, HEAD
from converter.checkpoint.opened import Checkpoint
from converter.errors import UsageError
from targets.litert.storage import CODED, EMBEDDINGS
from targets.target import PlannedTensor

#: Values of the option: one row for every product, two in the layers and one in the output head, or two; or
#: the checkpoint's static grids.
ONE: Final = "1"
LAYERS: Final = "layers"
TWO: Final = "2"
STATIC: Final = "static"
_HEAD: Final = HEAD.removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class Grid:
    """The steps to whose multiples by -128..127 a product's input and output are rounded; ``None`` for one
    that is not."""

    input: float | None
    output: float | None


def projections(architecture: Architecture) -> tuple[str, ...]:
    """Names of the modules of a model that multiply with a matrix (``down_proj``, ``lm_head``), sorted."""
    matrices = (name for name, shape in architecture.tensors.items() if len(shape) > 1)
    rounding = {*matrices, HEAD}.difference(EMBEDDINGS, architecture.routers)
    return tuple(sorted({projection(name) for name in rounding}))


def projection(weight: str) -> str:
    """Name of the module to which a matrix belongs, from the canonical name of the matrix. For an embedding,
    to which the output head may be tied, it is the head's."""
    return _HEAD if weight == EMBEDDING else weight.removesuffix(".weight").rpartition(".")[2]


def read_activations(given: object) -> str | None:
    """The option in its canonical form: ``ONE``, ``LAYERS``, ``TWO``, ``STATIC``, or the names of projections
    that take two rows, sorted, with commas between; ``None`` where measuring is to choose. Raises
    ``UsageError``."""
    if given is None:
        return None
    text = str(given).strip()
    if text in (ONE, LAYERS, TWO, STATIC):
        return text
    names = sorted({name.strip() for name in text.split(",")})
    if not all(name.isidentifier() for name in names):
        raise UsageError(
            f"--litert-activations {text!r}: give 1, 2, layers, static, or the projections that take two "
            "rows, as in down_proj,v_proj"
        )
    return ",".join(names)


def check_activations(activations: str | None, checkpoint: Checkpoint) -> None:
    """Raise ``UsageError`` for the name of a projection that the model does not have, and for static grids
    that it does not have either, as far as its weights are at hand."""
    known = projections(checkpoint.architecture)
    if activations == STATIC and checkpoint.weights and not static_grids(checkpoint):
        raise UsageError(
            "--litert-activations static: the checkpoint has no static scales of activations, or scales for "
            "each channel, which LiteRT does not take"
        )
    for name in two_rows(activations, checkpoint.architecture):
        if name not in known:
            raise UsageError(
                f"--litert-activations: the model has no projection {name!r}; it has: {', '.join(known)}"
            )


def two_rows(activations: str | None, architecture: Architecture) -> tuple[str, ...]:
    """The projections that take two rows; none where that is not decided yet."""
    if activations in (None, ONE, STATIC):
        return ()
    if activations not in (LAYERS, TWO):
        return tuple(activations.split(","))
    return tuple(name for name in projections(architecture) if activations == TWO or name != _HEAD)


def static_grids(checkpoint: Checkpoint) -> dict[str, Grid]:
    """The checkpoint's grids by the canonical names of the matrices; none at all where one is for channels,
    so that an artifact has all of them or none."""
    found = {}
    for module, scales in checkpoint.grids.items():
        if any(one is not None and one.size != 1 for one in (scales.input, scales.output)):
            return {}
        steps = (None if one is None else float(one[0]) for one in (scales.input, scales.output))
        found[f"{module}.weight"] = Grid(*steps)
    return found


def split_products(tensors: Iterable[PlannedTensor], two: Collection[str]) -> frozenset[str]:
    """Canonical names of the matrices, stored as ``tensors``, whose products split their input: those of the
    projections ``two`` that round it, as products with codes do. The name of a tied head is its own."""
    types = {tensor.stored_as: tensor.type for tensor in tensors}
    if EMBEDDING in types:
        types.setdefault(HEAD, types[EMBEDDING])
    coded = {name for name, type in types.items() if type in CODED} - set(EMBEDDINGS)
    return frozenset(name for name in coded if projection(name) in two)


def ways(tensors: Iterable[PlannedTensor], *, static: bool = False) -> Sequence[Mapping[str, object]]:
    """What measuring may choose from for a model stored as ``tensors``, with ``static`` grids if it has some,
    the fastest first; empty where no product rounds its input. ``STATIC`` is no faster than ``ONE``: products
    take as long, and what goes to int8 and back comes on top. ``LAYERS`` is hardly faster than ``TWO`` and
    three times as far from the reference on a real model (``benchmarks/litert_activations.py``): whoever
    wants it asks for it."""
    names = (tensor.stored_as for tensor in tensors if tensor.type in CODED)
    if not any(name == EMBEDDING or name not in EMBEDDINGS for name in names):
        return ()
    return tuple({"activations": one} for one in (ONE, *[STATIC] * static, TWO))


def found_activations(one: Iterable[str], two: Iterable[str]) -> str:
    """The option for an artifact whose products of codes take one row in the projections ``one`` and two in
    the projections ``two``."""
    names = set(two)
    others = set(one) - names
    if not names:
        return ONE
    return TWO if not others else LAYERS if others == {_HEAD} else ",".join(sorted(names))
