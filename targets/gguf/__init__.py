"""GGUF, the format of llama.cpp and Ollama: the trained codes as Q4_0 blocks."""

from __future__ import annotations

from targets.gguf.metadata import Metadata, read_metadata
from targets.gguf.target import GgufTarget

__all__ = ["GgufTarget", "Metadata", "read_metadata", "target"]

#: The object of the entry point ``gguf``.
target = GgufTarget()
