"""Gemma in Ollama: which commands its Modelfile needs.

Ollama itself makes Gemma 4's prompts (``RENDERER``) and takes its answers apart (``PARSER``). Its renderers
are ``gemma4-small`` (E2B and E4B, which have per-layer embeddings) and ``gemma4-large`` (all others). A bare
``gemma4`` would leave the choice to the name that the user gives the model, else to its number of weights, by
which the 12B is small (``server/renderer_resolution.go``). Gemma 3 has no renderer; Ollama uses the chat
template in the GGUF.
"""

from __future__ import annotations

from typing import Final

from converter.checkpoint.architecture.gemma import SAMPLING
from converter.checkpoint.special_tokens import GEMMA3_TURN_END, TURN_END
from targets.ollama.family import Commands, OllamaFamily

#: The first Ollama that drops the begin token of its renderer where the file adds one too (0.21 has both
#: renderers, but two begin tokens), and the first that runs the 12B (earlier ones divide by zero).
_REQUIRES: Final = "0.30.0"
_REQUIRES_12B: Final = "0.30.5"
#: Weights of the 12B, with room for its kin.
_12B: Final = range(10 * 10**9, 16 * 10**9)


def _gemma4(parameters: int, per_layer_embeddings: bool) -> Commands:
    is_12b = parameters in _12B and not per_layer_embeddings
    return Commands(
        renderer=f"gemma4-{'small' if per_layer_embeddings else 'large'}",
        parser="gemma4",
        requires=_REQUIRES_12B if is_12b else _REQUIRES,
    )


GEMMA3: Final = OllamaFamily(GEMMA3_TURN_END, SAMPLING)
GEMMA4: Final = OllamaFamily(TURN_END, SAMPLING, _gemma4)
