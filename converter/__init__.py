"""The library's face: conversion, inspection, validation and verification.

Each name is loaded when it is asked for. Importing the package imports nothing else, so that the command line
and libraries that use a part of it start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from converter.pipeline.conversion import Conversion, Outcome, convert
    from converter.pipeline.inspection import inspect
    from converter.pipeline.opening import open_model
    from converter.pipeline.validation import validate
    from converter.pipeline.verification import verify

__all__ = ["Conversion", "Outcome", "convert", "inspect", "open_model", "validate", "verify"]

#: The module that each name comes from.
_HOMES: Final = {
    "Conversion": "converter.pipeline.conversion",
    "Outcome": "converter.pipeline.conversion",
    "convert": "converter.pipeline.conversion",
    "inspect": "converter.pipeline.inspection",
    "open_model": "converter.pipeline.opening",
    "validate": "converter.pipeline.validation",
    "verify": "converter.pipeline.verification",
}


def __getattr__(name: str) -> object:
    """The name's object (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The names, loaded or not."""
    return sorted([*globals(), *_HOMES])
