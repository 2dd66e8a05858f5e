"""GGUF, the format of llama.cpp and Ollama: the trained codes as Q4_0 blocks."""

from __future__ import annotations

from targets.gguf.artifact import GgufTarget, modelfile
from targets.gguf.metadata import Metadata, read_metadata

__all__ = ["GgufTarget", "Metadata", "modelfile", "read_metadata", "target"]

#: The object of the entry point ``gguf``.
target = GgufTarget()
