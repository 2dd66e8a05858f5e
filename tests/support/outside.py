"""What ``tests/outside`` brings, by its own registration: no other file of the tests names any of it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol
from zipfile import ZIP_STORED

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.source import SourceKind
from support.distributions import write_distribution

OUTSIDE: Final = Path(__file__).parents[1] / "outside"
_PROJECT: Final[Mapping[str, Any]] = tomllib.loads((OUTSIDE / "pyproject.toml").read_text("utf-8"))["project"]
#: Names and values of its entry points, by group.
BROUGHT: Final[Mapping[str, Mapping[str, str]]] = _PROJECT["entry-points"]
#: Modules that make checkpoints in the forms and in the source that it brings, by their names.
_FORMS: Final = "qatconvert.testing.forms"
_SOURCES: Final = "qatconvert.testing.sources"

Tensors = Mapping[str, NDArray[Any]]


class PackedForm(Protocol):
    """A module that makes checkpoints in a form of packed codes."""

    #: What ``quantization_config`` calls the form.
    METHOD: str
    #: Values of a row that share a scale.
    GROUP: int
    #: Gives the packed tensor of codes.
    packed: Callable[[NDArray[np.int8]], NDArray[Any]]
    #: Gives the codes of a packed tensor.
    unpacked: Callable[[NDArray[Any]], NDArray[Any]]

    def tensors_of(self, source: Path, dtype: str) -> dict[str, NDArray[Any]]:
        """The tensors of an unquantised checkpoint, packed, with scales of ``dtype``."""

    def write_packed(self, source: Path, directory: Path, tensors: Tensors, shards: int = 1) -> Path:
        """A checkpoint of the tensors, with the files beside the weights of the one in ``source``."""


class ArchiveSource(Protocol):
    """A module that makes checkpoints in one file, a ZIP."""

    __name__: str
    KIND: SourceKind
    #: The largest directory of a file that is read, in bytes.
    MOST_DIRECTORY: int

    def write_zip(self, directory: Path, file: Path, compression: int = ZIP_STORED) -> Path:
        """A file with the files of a checkpoint's directory, by default stored as they are."""


def packed_forms() -> dict[str, PackedForm]:
    """The modules that make checkpoints in the forms that it brings, by the forms' names."""
    found: dict[str, Any] = {name: import_module(value) for name, value in BROUGHT[_FORMS].items()}
    return found


def archive_source() -> ArchiveSource:
    """The module that makes checkpoints in the kind of source that it brings."""
    (module,) = BROUGHT[_SOURCES].values()
    found: Any = import_module(module)
    return found  # type: ignore[no-any-return]


def register(directory: Path, *names: str) -> None:
    """A distribution in ``directory`` that registers all that there is, or the packed form alone under each
    of ``names``."""
    (form,) = BROUGHT["qatconvert.forms"].values()
    alone = {"qatconvert.forms": dict.fromkeys(names, form)}
    write_distribution(directory, _PROJECT["name"], alone if names else BROUGHT)
