"""Which GGML type holds a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from converter.checkpoint.weight import LatticeFormat, Weight
from converter.errors import UsageError
from targets.gguf.packing import BLOCK

#: Values of the option ``off_lattice``: the type of matrices that lie on no lattice. ``f32`` is for
#: comparing llama.cpp's arithmetic with a reference; it stores every such matrix without loss.
OFF_LATTICE: Final = {"q8_0": "Q8_0", "bf16": "BF16", "f16": "F16", "q4_0": "Q4_0", "f32": "F32"}

#: Every type that a file can have.
FORMATS: Final = tuple(OFF_LATTICE.values())

#: llama.cpp keeps the router in float32 (its converter forces that type): rounding the router's activations
#: to 8 bits, as its Q4_0 kernels do, would change which experts a token reaches.
_ROUTER: Final = ".router.proj.weight"

#: Exact types of a matrix whose rows do not divide into blocks, by the checkpoint's dtype.
_UNBLOCKED: Final = {"BF16": "BF16", "F16": "F16"}

Q4_0_LATTICE: Final = LatticeFormat(4, BLOCK)


def off_lattice_option(options: Mapping[str, object]) -> str:
    """The option ``off_lattice`` (default ``q8_0``), in lower case; raises ``UsageError``."""
    given = str(options.get("off_lattice") or "q8_0").lower()
    if given not in OFF_LATTICE:
        raise UsageError(f"off-lattice type {given!r} is unknown to gguf; known: {', '.join(OFF_LATTICE)}")
    return given


def is_matrix(weight: Weight) -> bool:
    """Whether a weight is stored by the rules for matrices; the rest (norms, scales, router) is float32."""
    return len(weight.shape) > 1 and not weight.name.endswith(_ROUTER)


def storage_format(weight: Weight, off_lattice: str) -> str:
    """GGML type name of a weight: Q4_0 for a matrix on the lattice of 4 bits in blocks of 32, the type
    of ``off_lattice`` for other matrices whose rows divide into blocks of 32, the checkpoint's own
    width for those that do not, F32 for all else."""
    if not is_matrix(weight):
        return "F32"
    if weight.lattice == Q4_0_LATTICE:
        return "Q4_0"
    if weight.columns % BLOCK and off_lattice in ("q8_0", "q4_0"):
        return _UNBLOCKED.get(weight.stored, "F32")
    return OFF_LATTICE[off_lattice]


def is_exact(weight: Weight, format: str) -> bool:
    """Whether ``format`` can hold every value of the checkpoint bit for bit."""
    if format == "Q4_0":
        return weight.lattice == Q4_0_LATTICE
    return format == "F32" or format == weight.stored
