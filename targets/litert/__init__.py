"""LiteRT for LiteRT-LM on Android: the trained codes as blockwise INT4 in a ``.litertlm`` bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from targets.litert.artifact import LitertTarget

    #: The object of the entry point ``litert``.
    target: LitertTarget

__all__ = ["LitertTarget", "target"]


def __getattr__(name: str) -> object:
    """Load the target when it is asked for: its child processes, which import modules beside it, do not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from targets.litert.artifact import LitertTarget

    globals().update(LitertTarget=LitertTarget, target=LitertTarget())
    return globals()[name]
