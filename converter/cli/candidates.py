"""What a shell proposes for an argument that is being typed. Nothing here imports a runtime, opens a model or
asks the network: a shell waits for it at every press of a key."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from converter.errors import QatconvertError
from converter.filenames import CONFIG
from converter.names import built_in_models, read_mapping
from converter.system.extensions import registered
from targets.options import RUNTIMES, TARGETS

#: Directories that are looked into for a checkpoint.
_MOST: Final = 1000


def models(context: click.Context, parameter: click.Parameter | None, typed: str) -> list[CompletionItem]:
    """Short names, the user's own ones, and directories here that hold a checkpoint. A path is left to the
    shell."""
    if typed.startswith((".", "~")) or os.sep in typed:
        return [CompletionItem(typed, type="file")]
    return _beginning(typed, [*built_in_models(), *_own_names(), *_checkpoints()])


def own_names(context: click.Context, parameter: click.Parameter | None, typed: str) -> list[CompletionItem]:
    """The user's own names of models."""
    return _beginning(typed, _own_names())


def targets(typed: str, *, every: str = "") -> list[CompletionItem]:
    """Names of targets, each once. With ``every``, the word that stands for all, several may be typed with
    commas between them."""
    before, comma, last = typed.rpartition(",")
    named = {name.strip() for name in before.split(",")}
    known = [name for name in registered(TARGETS) if name not in named]
    if every and not comma:
        known.append(every)
    return [CompletionItem(f"{before}{comma}{name}") for name in known if name.startswith(last)]


def runtimes(context: click.Context, parameter: click.Parameter | None, typed: str) -> list[CompletionItem]:
    """Names of runtimes by their targets."""
    return _beginning(typed, registered(RUNTIMES))


def gates(typed: str) -> list[CompletionItem]:
    """Names of gates with the sign before their limit."""
    from validation.limits import KNOWN

    return _beginning(typed, [f"{name}=" for name in KNOWN])


def _beginning(typed: str, known: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in dict.fromkeys(known) if name.startswith(typed)]


def _own_names() -> Sequence[str]:
    with suppress(QatconvertError):  # a damaged file is told when a name is used
        return sorted(read_mapping())
    return ()


def _checkpoints() -> list[str]:
    found = []
    with suppress(OSError), os.scandir() as entries:
        for _, entry in zip(range(_MOST), entries, strict=False):
            if entry.is_dir() and (Path(entry) / CONFIG).is_file():
                found.append(f"{entry.name}/")
    return sorted(found)
