"""How the LiteRT artifact holds a weight: which type, under which name, in how many bytes.

``INT2 per row``, ``INT4 per row``, ``INT8 per row``: codes of a lattice with one scale for each row, four,
two or one to a byte. The float32 scales stand in the graph (``QuantizationParameters``), exact to the bit.

``INT4``: codes of a 4-bit lattice in blocks of 32, two to a byte, and a float16 scale for each block
(TFLite's ``BlockwiseQuantization``). LiteRT's processor library, XNNPACK, takes positive ones only in
``FULLY_CONNECTED``. A matrix with negative ones is ``INT4+sums``: a block of codes ``c`` with scale ``s < 0``
holds ``-c - 1`` with scale ``|s|``. As ``s * c = |s| * (-c - 1) + |s|``, a small float32 matrix
``[rows, blocks]`` has ``|s|`` for such blocks and 0 for others. It is multiplied with the sums of the
input's blocks (``targets.litert.additions``). That is exact, at 5.5 bits a weight. ``EMBEDDING_LOOKUP``
takes any scale.

XNNPACK refuses scales of 0, and those below float32's normal numbers. A row or block whose scale is 0 has
codes of 0 and another scale; a matrix with small scales of rows is ``FLOAT``. ``FLOAT16`` goes through a
``DEQUANTIZE``, ``FLOAT`` is float32.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.canonical_names import EMBEDDING, HEAD, PER_LAYER_EMBEDDING
from converter.checkpoint.weight import Weight
from converter.system.processors import processors
from converter.system.progress import StageProgress, no_progress
from targets.litert.type_names import (
    FLOAT,
    FLOAT16,
    INT2_ROWS,
    INT4,
    INT4_ROWS,
    INT4_SUMS,
    INT8_ROWS,
)
from targets.off_lattice import read_off_lattice
from targets.storing import Coded, Holdings
from targets.target import PlannedTensor

#: The type whose blocks have sums beside their scales.
SUMS: Final = Coded(INT4_SUMS, 4, 32, sums=True)
#: The types of codes and scales; a look-up takes negative scales in those that are multiplied without.
_TYPES: Final = (
    Coded(INT2_ROWS, 2, 0, scale="F32", negative=False),
    Coded(INT4_ROWS, 4, 0, scale="F32", negative=False),
    Coded(INT8_ROWS, 8, 0, scale="F32", negative=False),
    Coded(INT4, 4, 32, negative=False),
    SUMS,
)
#: The same by name.
CODED: Final[Mapping[str, Coded]] = {one.name: one for one in _TYPES}
#: Those with one scale for each row, which stands in the graph.
ROWS: Final = frozenset(one.name for one in _TYPES if not one.block)
#: Values of the option ``off_lattice``, as for the other targets. Of the types that LiteRT computes with
#: exactly, each stands for the smallest that is no less exact.
OFF_LATTICE: Final[Mapping[str, str]] = {
    "q8_0": FLOAT16,
    "bf16": FLOAT,
    "f16": FLOAT16,
    "q4_0": FLOAT16,
    "f32": FLOAT,
}
#: Matrices that are looked up by row.
EMBEDDINGS: Final = (EMBEDDING, PER_LAYER_EMBEDDING)


def off_lattice_option(options: Mapping[str, object]) -> str:
    """The option ``off_lattice``, in lower case; raises ``UsageError``."""
    return read_off_lattice(options, "litert", OFF_LATTICE)


def sums_name(name: str) -> str:
    """Name of the tensor that corrects the blocks with negative scales of the matrix ``name``."""
    return f"{name}|sums"


def holdings(off_lattice: str = FLOAT16) -> Holdings:
    """What an artifact holds that has matrices on no lattice in the type ``off_lattice``."""
    return Holdings("litert", _TYPES, {"F32": FLOAT, "F16": FLOAT16}, FLOAT, off_lattice)


#: What an artifact holds, whatever was chosen for matrices on no lattice.
LITERT: Final = holdings()


def has_negative_scales(weight: Weight, advance: Callable[[int], None] = lambda values: None) -> bool:
    """Whether a block of a weight has a negative scale: reads the weight, up to the first one. ``advance`` is
    called with the number of values that need no more reading. Raises ``CheckpointError`` if it cannot be
    read."""
    left, negative = weight.size, False
    if LITERT.holding(weight) is not None and weight.codes is not None:
        for start, stop in weight.row_ranges():
            scales = weight.scales(start, stop) if weight.scales else weight.codes(start, stop).scales
            if negative := bool(np.any(scales < 0)):
                break
            advance((stop - start) * weight.columns)
            left -= (stop - start) * weight.columns
    advance(left)
    return negative


def negative_weights(weights: Iterable[Weight], progress: StageProgress = no_progress) -> frozenset[str]:
    """Names of the weights of which a block has a negative scale; see ``has_negative_scales``. ``progress``
    counts values."""
    largest_first = sorted(weights, key=lambda weight: -weight.size)
    total, done, lock = sum(weight.size for weight in largest_first), 0, threading.Lock()

    def advance(values: int) -> None:
        nonlocal done
        with lock:
            done += values
            progress(done, total)

    with ThreadPoolExecutor(processors()) as pool:
        found = pool.map(lambda weight: has_negative_scales(weight, advance), largest_first)
        return frozenset(
            weight.name for weight, negative in zip(largest_first, found, strict=True) if negative
        )


def planned_tensors(
    weights: Mapping[str, Weight],
    negative: frozenset[str],
    tied_head: bool,
    off_lattice: str = FLOAT16,
    *,
    own_head: bool = False,
) -> tuple[PlannedTensor, ...]:
    """How every weight is stored; ``negative`` names those with negative scales.

    An output head tied to the embedding shares its tensor, unless no product takes the embedding's scales or
    ``own_head`` says that both are in different models. The head is then a tensor of its own, which comes
    last.
    """
    held = holdings(off_lattice)

    def multiplied(weight: Weight) -> str:
        type_name = held.type_of(weight, negative=weight.name in negative)
        return FLOAT if type_name in ROWS and has_small_scales(weight) else type_name

    # an embedding is only looked up
    types = {
        name: held.type_of(weight) if name in EMBEDDINGS else multiplied(weight)
        for name, weight in weights.items()
    }
    planned = [held.planned(weight, name, types[name]) for name, weight in weights.items()]
    if tied_head:
        weight = weights[EMBEDDING]
        type_name = multiplied(weight)
        if own_head or type_name != types[EMBEDDING]:
            planned.append(held.planned(weight, HEAD, type_name))
    return tuple(planned)


def has_small_scales(weight: Weight) -> bool:
    """Whether a scale that the checkpoint stores is below float32's normal numbers and not 0. Raises
    ``CheckpointError`` if they cannot be read."""
    if weight.scales is None:
        return False
    return any(bool(is_small(weight.scales(*rows)).any()) for rows in weight.row_ranges())


def is_small(scales: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which scales are below float32's normal numbers and not 0: XNNPACK refuses them."""
    found: NDArray[np.bool_] = (scales != 0) & (np.abs(scales) < np.finfo(np.float32).tiny)
    return found


def operators(tensors: Sequence[PlannedTensor], tied_head: bool) -> dict[str, dict[str, int]]:
    """Operators of the graph that read weights, and how many tensors of each type each of them reads; a
    weight that several signatures read counts once. Vectors (norms, scalars) are left out."""
    found: dict[str, Counter[str]] = {}

    def add(operator: str, type_name: str) -> None:
        found.setdefault(operator, Counter())[type_name] += 1

    own_head = any(tensor.stored_as == HEAD for tensor in tensors)
    for tensor in tensors:
        if len(tensor.shape) < 2:
            continue
        uses = ["EMBEDDING_LOOKUP" if tensor.stored_as in EMBEDDINGS else "FULLY_CONNECTED"]
        if tensor.stored_as == EMBEDDING and tied_head and not own_head:
            uses.append("FULLY_CONNECTED")
        if tensor.type == FLOAT16:
            add("DEQUANTIZE", FLOAT16)
        for use in uses:
            add(use, {FLOAT16: FLOAT, INT4_SUMS: INT4}.get(tensor.type, tensor.type))
        if tensor.type == INT4_SUMS:
            add("FULLY_CONNECTED", FLOAT)
    return {operator: dict(sorted(types.items())) for operator, types in sorted(found.items())}


def negative_warnings(tensors: Iterable[PlannedTensor]) -> list[str]:
    """A line about matrices that LiteRT's INT4 cannot hold alone; none without them."""
    coded = [tensor for tensor in tensors if tensor.type in CODED]
    sums = [tensor for tensor in coded if tensor.type == INT4_SUMS]
    if not sums:
        return []
    return [
        f"litert: {len(sums)} of {len(coded)} matrices have blocks of negative scale, which LiteRT's INT4 "
        "cannot hold alone: they are stored as INT4 and a sum for each block, exact at 5.5 bits per weight "
        f"(the first is {sums[0].stored_as})"
    ]
