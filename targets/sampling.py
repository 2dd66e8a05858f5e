"""How a checkpoint wants its answers sampled and ended, from ``generation_config.json`` and its tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from converter.architecture import Architecture
from converter.document import Settings, read_object
from converter.tokenizer import Tokenizer

#: Google's recommendation for both families, where a checkpoint has no ``generation_config.json``.
RECOMMENDED: Final = {"temperature": 1.0, "top_p": 0.95, "top_k": 64}
#: End-of-turn tokens by text: Gemma 4's and Gemma 3's.
_END_OF_TURN: Final = ("<turn|>", "<end_of_turn>")


def read_generation(directory: Path) -> Settings:
    """What a checkpoint's ``generation_config.json`` says, nothing if there is none.

    Raises ``CheckpointError`` for a damaged file."""
    path = directory / "generation_config.json"
    return Settings(read_object(path) if path.exists() else {}, str(path))


def read_sampling(directory: Path) -> dict[str, float]:
    """Temperature, top_p and top_k of a checkpoint's ``generation_config.json``, as far as it has them.

    Raises ``CheckpointError`` for a damaged file."""
    settings = read_generation(directory)
    found: dict[str, float] = {}
    for name, most in (("temperature", math.inf), ("top_p", 1.0)):
        if settings.values.get(name) is not None:
            found[name] = settings.number(name, positive=False)
            if not 0 <= found[name] <= most:
                raise settings.error(name, f"is {found[name]}, outside 0..{most:g}")
    top_k = settings.optional_integer("top_k", low=0)
    if top_k is not None:
        found["top_k"] = top_k
    return found


def read_suppressed(directory: Path, vocabulary: int) -> list[int]:
    """Ids of the tokens that must never be generated (12B names its image and audio placeholders).

    Raises ``CheckpointError`` for a damaged file and for ids that are none below ``vocabulary``."""
    settings = read_generation(directory)
    listed = settings.values.get("suppress_tokens") or []
    if not isinstance(listed, list):
        raise settings.error("suppress_tokens", "is not a list of token ids")
    for index in listed:
        if type(index) is not int or not 0 <= index < vocabulary:
            raise settings.error("suppress_tokens", f"holds {index!r}, which is no token id")
    return listed


def end_tokens(architecture: Architecture, tokenizer: Tokenizer) -> list[int]:
    """Ids that end an answer: those that the checkpoint names, and the end of a turn even where it does not
    (as in llama.cpp)."""
    turns = [tokenizer.tokens.index(text) for text in _END_OF_TURN if text in tokenizer.tokens]
    return list(dict.fromkeys([*tokenizer.end_ids, *architecture.eos, *turns]))
