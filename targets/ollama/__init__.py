"""Ollama: the Modelfile that makes a model of a GGUF."""

from __future__ import annotations

from targets.ollama.family import Model, OllamaFamily, family_modelfile, has_modelfile
from targets.ollama.modelfile import Modelfile, parse_modelfile, write_modelfile
from targets.ollama.printable import printed

__all__ = [
    "Model",
    "Modelfile",
    "OllamaFamily",
    "family_modelfile",
    "has_modelfile",
    "parse_modelfile",
    "printed",
    "write_modelfile",
]
