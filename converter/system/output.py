"""The output directory: what may become one.

It is made under a temporary name (``scratch``) and appears whole (``publication``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from converter.errors import DestinationError
from converter.system.amounts import amount
from converter.system.publication import (
    EARLIER,
    check_places,
    earlier_manifest,
    publish,
    reason,
    replace,
    sync_tree,
    write_file,
)
from converter.system.scratch import OWN_NAMES, scratch_directory, settle

__all__ = [
    "check_destination",
    "check_elsewhere",
    "check_places",
    "check_source",
    "check_space",
    "earlier_manifest",
    "publish",
    "replace",
    "scratch_directory",
    "settle",
    "sync_tree",
    "write_file",
]


def check_destination(output: Path, force: bool) -> None:
    """Raise ``DestinationError`` if ``output`` cannot become the output directory.

    It may be absent or an empty directory; one with files is refused unless ``force``.
    """
    try:
        if output.exists() and not output.is_dir():
            raise DestinationError(f"{output} is a file: choose another directory with --output")
        if output.is_symlink() and not output.exists():
            raise DestinationError(f"{output} is a link to nowhere: choose another --output")
        if ".." in output.parts and not output.parent.exists():
            raise DestinationError(f"{output}: {output.parent} does not exist; choose another --output")
        if (
            output.is_dir()
            and not force
            and any(path.name not in (*OWN_NAMES, EARLIER) for path in output.iterdir())
        ):
            raise DestinationError(f"{output} is not empty: choose another --output, or add --force")
        place = _existing(output)
    except OSError as error:
        raise DestinationError(f"{output}: {reason(error)}") from error
    if not place.is_dir():
        raise DestinationError(f"{output}: {place} is a file; choose another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DestinationError(f"{place}: no permission to write there; choose another --output")


def check_source(output: Path, files: Iterable[Path]) -> None:
    """Raise ``DestinationError`` if ``output`` holds one of the files that are converted: replacing what
    lies there could destroy the source."""
    place = output.resolve()
    for file in files:
        if place in file.absolute().parents or place in file.resolve().parents:
            raise DestinationError(f"{output} holds the checkpoint itself: choose another --output")


def check_elsewhere(directory: Path, output: Path) -> None:
    """Raise ``DestinationError`` if ``directory``, to which something else is written, is ``output`` or in
    it: what is there belongs to the conversion."""
    place = Path(os.path.realpath(directory))
    if Path(os.path.realpath(output)) in (place, *place.parents):
        raise DestinationError(
            f"{directory} is in the output directory {output}: choose a place outside of it"
        )


def _existing(path: Path) -> Path:
    """The directory itself if it exists, else the nearest existing one above it."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place


def check_space(output: Path, needed: int) -> None:
    """Raise ``DestinationError`` if fewer than ``needed`` bytes are free where ``output`` will lie."""
    place = _existing(output)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DestinationError(
            f"{place}: {amount(needed)} needed, {amount(free)} free; make room there or choose "
            "another --output"
        )
