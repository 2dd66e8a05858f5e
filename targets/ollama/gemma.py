"""Gemma in Ollama: which commands its Modelfile needs.

Ollama itself makes Gemma 4's prompts (``RENDERER``) and takes its answers apart (``PARSER``). Its renderers
are ``gemma4-small`` (E2B and E4B, which have per-layer embeddings) and ``gemma4-large`` (all others). A bare
``gemma4`` would leave the choice to the name that the user gives the model, else to its number of weights, by
which the 12B is small (``server/renderer_resolution.go``). Gemma 3 has no renderer; Ollama uses the chat
template in the GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from converter.checkpoint.generation import RECOMMENDED
from converter.errors import TargetError
from targets.ollama.modelfile import Modelfile
from targets.ollama.printable import printed

#: Context of a new model in tokens, where nothing else is asked for: Ollama reserves memory for all of it.
CONTEXT: Final = 8192

_END_OF_TURN: Final = {"gemma4": "<turn|>", "gemma3": "<end_of_turn>"}
#: The first Ollama that drops the begin token of its renderer where the file adds one too (0.21 has both
#: renderers, but two begin tokens), and the first that runs the 12B (earlier ones divide by zero).
_REQUIRES: Final = "0.30.0"
_REQUIRES_12B: Final = "0.30.5"
#: Weights of the 12B, with room for its kin.
_12B: Final = range(10 * 10**9, 16 * 10**9)


def gemma_modelfile(
    model: str,
    architecture: str,
    parameters: int,
    *,
    per_layer_embeddings: bool,
    context: int | None = None,
    num_ctx: int | None = None,
    sampling: Mapping[str, float] | None = None,
    system: str | None = None,
    licenses: Sequence[str] = (),
    stops: Sequence[str] = (),
    penalties: Mapping[str, float] | None = None,
) -> Modelfile:
    """The Modelfile of a Gemma.

    ``model`` is the path of the GGUF relative to the Modelfile (of its directory, if it has several files),
    ``architecture`` GGUF's name (``gemma4``), ``parameters`` the number of weights,
    ``per_layer_embeddings`` whether the model has such (E2B, E4B), ``context`` the trained
    context length, ``sampling`` the values of temperature, top_p and top_k (default: the recommended),
    ``stops`` the texts of tokens that end an answer beside the family's end of a turn, ``penalties`` the
    values of min_p and repetition_penalty where they change anything, and of repeat_last_n where it is not
    the whole text. Of ``licenses``, which only people read, what Ollama would drop is replaced (``printed``).
    ``num_ctx`` defaults to 8192 or the trained context, whichever is less. Raises ``TargetError`` for
    another architecture.
    """
    if architecture not in _END_OF_TURN:
        raise TargetError(
            f"ollama: no Modelfile is known for architecture {architecture!r} (known: gemma3, gemma4)"
        )
    is_12b = architecture == "gemma4" and parameters in _12B and not per_layer_embeddings
    values: dict[str, object] = {**RECOMMENDED, **(sampling or {})}
    values["num_ctx"] = num_ctx or min(CONTEXT, context or CONTEXT)
    gemma4 = architecture == "gemma4"
    penalties = penalties or {}
    if "min_p" in penalties:
        values["min_p"] = penalties["min_p"]
    if "repetition_penalty" in penalties:  # over the whole text, as in transformers
        last = int(penalties.get("repeat_last_n", -1))
        values |= {"repeat_penalty": penalties["repetition_penalty"], "repeat_last_n": last}
    # a stop from the Modelfile replaces the one that Ollama sets by itself, so it is always given
    return Modelfile(
        model=model,
        renderer=f"gemma4-{'small' if per_layer_embeddings else 'large'}" if gemma4 else None,
        parser="gemma4" if gemma4 else None,
        parameters=(
            *((name, str(value)) for name, value in values.items()),
            *(("stop", text) for text in _stops(architecture, stops)),
        ),
        system=system,
        requires=(_REQUIRES_12B if is_12b else _REQUIRES) if gemma4 else None,
        licenses=tuple(printed(text) for text in licenses),
    )


def _stops(architecture: str, stops: Sequence[str]) -> list[str]:
    """Each text once, the end of a turn last: of a parameter, some readers keep the last."""
    turn = _END_OF_TURN[architecture]
    return [*(text for text in dict.fromkeys(stops) if text != turn), turn]
