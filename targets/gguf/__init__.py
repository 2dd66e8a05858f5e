"""GGUF, the format of llama.cpp and Ollama: the trained codes as Q4_0 blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from targets.gguf.artifact import GgufTarget

    #: The object of the entry point ``gguf``.
    target: GgufTarget

__all__ = ["GgufTarget", "target"]


def __getattr__(name: str) -> object:
    """Load the target when it is asked for: what declares its options, beside it, does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from targets.gguf.artifact import GgufTarget

    globals().update(GgufTarget=GgufTarget, target=GgufTarget())
    return globals()[name]
