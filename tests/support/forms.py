"""A checkpoint in every stored form that is registered or that ``tests/outside`` brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from support.packed_form import tensors_of, write_packed

#: What all of them have: layers, shapes and names of the generator's.
VARIANT: Final = "text"

#: By the form's name: ``make(source, directory)`` gives the checkpoint in the unquantized one's shape.
MAKERS: Final[Mapping[str, Callable[[Path, Path], Path]]] = {
    "bf16-lattice": lambda source, directory: source,
    "int4-groups": lambda source, directory: write_packed(
        source, directory / "model", tensors_of(source, "float16")
    ),
}
