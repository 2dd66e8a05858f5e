"""What GGML's types hold, for the rule of ``targets.storing``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from targets.off_lattice import read_off_lattice
from targets.storing import Coded, Holdings

#: Values of the option ``off_lattice``: the type of matrices that lie on no lattice. ``f32`` is for
#: comparing llama.cpp's arithmetic with a reference; it stores every such matrix without loss.
OFF_LATTICE: Final = {"q8_0": "Q8_0", "bf16": "BF16", "f16": "F16", "q4_0": "Q4_0", "f32": "F32"}

#: Types of codes and scales (``ggml/src/ggml-common.h``), the smallest first. Numbers are rounded to the last
#: two alone: GGML's own rounding to TQ2_0 leaves three values.
TQ2_0: Final = Coded("TQ2_0", 2, 256)
Q4_0: Final = Coded("Q4_0", 4, 32)
Q8_0: Final = Coded("Q8_0", 8, 32)
CODED: Final = (TQ2_0, Q4_0, Q8_0)

#: Every type that a file can have.
TYPES: Final = (*OFF_LATTICE.values(), TQ2_0.name)


def holdings(off_lattice: str) -> Holdings:
    """What a GGUF file holds with a value of the option ``off_lattice``."""
    numbers = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
    return Holdings("gguf", CODED, numbers, vectors="F32", off_lattice=OFF_LATTICE[off_lattice])


#: What a file holds, whatever was chosen for matrices on no lattice.
GGML: Final = holdings("q8_0")


def off_lattice_option(options: Mapping[str, object]) -> str:
    """The option ``off_lattice``, in lower case; raises ``UsageError``."""
    return read_off_lattice(options, GGML.target, OFF_LATTICE)
