"""A checkpoint in every stored form that is registered or that ``tests/outside`` brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from checkpoints.mobile import write_mobile
from support.outside import PackedForm, packed_forms

#: What all of them have: layers, shapes and names of the generator's.
VARIANT: Final = "text"


def _packed(form: PackedForm) -> Callable[[Path, Path], Path]:
    return lambda source, directory: form.write_packed(
        source, directory / "model", form.tensors_of(source, "float16")
    )


#: By the form's name: ``make(source, directory)`` gives the checkpoint in the unquantized one's shape.
MAKERS: Final[Mapping[str, Callable[[Path, Path], Path]]] = {
    "bf16-lattice": lambda source, directory: source,
    "gemma-mobile": lambda source, directory: write_mobile(source, directory / "model", half=True),
    **{name: _packed(form) for name, form in packed_forms().items()},
}
