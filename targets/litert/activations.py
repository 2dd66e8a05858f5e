"""In how many rows a product takes its activations.

LiteRT's library for processors rounds each row of a product's input to int8 by one scale, which the row's
largest value decides. A trained model has a few very large values, and beside them the others lose most of
their bits. An input that is split by magnitude into two rows (``targets.litert.additions``) keeps
them, at the price of the second row. What that gains differs between projections, so they are chosen by the
names of their modules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.canonical_names import EMBEDDING, HEAD
from converter.errors import UsageError
from targets.litert.storage import CODED, EMBEDDINGS
from targets.target import PlannedTensor

#: Values of the option: one row for every product, two in the layers and one in the output head, or two.
ONE: Final = "1"
LAYERS: Final = "layers"
TWO: Final = "2"
_HEAD: Final = HEAD.removesuffix(".weight")


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
    """The option in its canonical form: ``ONE``, ``LAYERS``, ``TWO``, or the names of projections that take
    two rows, sorted, with commas between; ``None`` where measuring is to choose. Raises ``UsageError``."""
    if given is None:
        return None
    text = str(given).strip()
    if text in (ONE, LAYERS, TWO):
        return text
    names = sorted({name.strip() for name in text.split(",")})
    if not all(name.isidentifier() for name in names):
        raise UsageError(
            f"--litert-activations {text!r}: give 1, 2, layers, or the projections that take two rows, as "
            "in down_proj,v_proj"
        )
    return ",".join(names)


def check_activations(activations: str | None, architecture: Architecture) -> None:
    """Raise ``UsageError`` for the name of a projection that the model does not have."""
    known = projections(architecture)
    for name in two_rows(activations, architecture):
        if name not in known:
            raise UsageError(
                f"--litert-activations: the model has no projection {name!r}; it has: {', '.join(known)}"
            )


def two_rows(activations: str | None, architecture: Architecture) -> tuple[str, ...]:
    """The projections that take two rows; none where that is not decided yet."""
    if activations is None or activations == ONE:
        return ()
    if activations not in (LAYERS, TWO):
        return tuple(activations.split(","))
    return tuple(name for name in projections(architecture) if activations == TWO or name != _HEAD)


def split_products(tensors: Iterable[PlannedTensor], two: Collection[str]) -> frozenset[str]:
    """Canonical names of the matrices, stored as ``tensors``, whose products split their input: those of the
    projections ``two`` that round it, as products with codes do. The name of a tied head is its own."""
    types = {tensor.stored_as: tensor.type for tensor in tensors}
    if EMBEDDING in types:
        types.setdefault(HEAD, types[EMBEDDING])
    coded = {name for name, type in types.items() if type in CODED} - set(EMBEDDINGS)
    return frozenset(name for name in coded if projection(name) in two)


def ways(tensors: Iterable[PlannedTensor]) -> Sequence[Mapping[str, object]]:
    """What measuring may choose from for a model stored as ``tensors``, the fastest first; empty where no
    product rounds its input. ``LAYERS`` is hardly faster than ``TWO`` and three times as far from the
    reference on a real model (``benchmarks/litert_activations.py``): whoever wants it asks for it."""
    names = (tensor.stored_as for tensor in tensors if tensor.type in CODED)
    if not any(name == EMBEDDING or name not in EMBEDDINGS for name in names):
        return ()
    return tuple({"activations": rows} for rows in (ONE, TWO))


def found_activations(one: Iterable[str], two: Iterable[str]) -> str:
    """The option for an artifact whose products of codes take one row in the projections ``one`` and two in
    the projections ``two``."""
    names = set(two)
    others = set(one) - names
    if not names:
        return ONE
    return TWO if not others else LAYERS if others == {_HEAD} else ",".join(sorted(names))
