"""GGUF, the format of llama.cpp and Ollama: the trained codes as Q4_0 blocks."""

from __future__ import annotations

from targets.gguf.artifact import GgufTarget
from targets.gguf.metadata import Metadata, read_metadata
from targets.gguf.modelfile import modelfile, modelfile_of_gguf

__all__ = ["GgufTarget", "Metadata", "modelfile", "modelfile_of_gguf", "read_metadata", "target"]

#: The object of the entry point ``gguf``.
target = GgufTarget()
