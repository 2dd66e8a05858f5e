"""LiteRT for LiteRT-LM on Android: the trained codes as blockwise INT4 in a ``.litertlm`` bundle."""

from __future__ import annotations

from targets.litert.artifact import LitertTarget

__all__ = ["LitertTarget", "target"]

#: The object of the entry point ``litert``.
target = LitertTarget()
