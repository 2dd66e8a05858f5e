"""How a checkpoint wants its answers sampled and ended, from ``generation_config.json`` and its tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.documents import Documents
from converter.checkpoint.tokenizer import Tokenizer
from converter.filenames import GENERATION_CONFIG
from converter.system.untrusted import Settings

#: Settings of ``generation_config.json`` that bear on an answer, and the value that changes nothing, beside
#: those that every target holds. Names and neutral values are those of transformers' ``GenerationConfig``.
_FURTHER: Final[Mapping[str, object]] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
    "min_p": 0.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": None,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "typical_p": 1.0,
}


@dataclass(frozen=True, slots=True)
class Generation:
    """What ``generation_config.json`` asks for, checked."""

    #: ``temperature``, ``top_p`` and ``top_k``, as far as the file has them. One that asks for no sampling
    #: (``do_sample`` false) has temperature 0, by which every runtime takes the likeliest token.
    sampling: Mapping[str, float] = field(default_factory=dict)
    #: ``min_p`` and ``repetition_penalty`` where they change anything.
    penalties: Mapping[str, float] = field(default_factory=dict)
    #: Ids of tokens that must never be generated; 12B names its image and audio placeholders.
    suppressed: tuple[int, ...] = ()
    #: Names of all other settings that change answers, the penalties among them, in a fixed order.
    further: tuple[str, ...] = ()

    def limits(self, target: str, runtime: str, held: Collection[str] = ()) -> list[str]:
        """A line about the settings that change answers and that ``runtime`` cannot be told, none if there
        are none. ``held`` are those that it can be told beside sampling and tokens."""
        lost = [name for name in self.further if name not in held]
        if not lost:
            return []
        return [f"{target}: generation_config.json sets {', '.join(lost)}, which {runtime} cannot be told"]


def read_generation(documents: Documents, vocabulary: int) -> Generation:
    """What a checkpoint's ``generation_config.json`` says; nothing if there is none.

    Raises ``CheckpointError`` for a damaged file and for suppressed ids that are none below
    ``vocabulary``."""
    settings = documents.optional(GENERATION_CONFIG)
    return Generation(
        sampling=_sampling(settings),
        penalties=_penalties(settings),
        suppressed=_suppressed(settings, vocabulary),
        further=tuple(name for name in _FURTHER if _asked(settings, name)),
    )


def _sampling(settings: Settings) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, most in (("temperature", math.inf), ("top_p", 1.0)):
        if settings.values.get(name) is not None:
            found[name] = settings.number(name, positive=False)
            if not 0 <= found[name] <= most:
                raise settings.error(name, f"is {found[name]}, outside 0..{most:g}")
    top_k = settings.optional_integer("top_k", low=0)
    if top_k is not None:
        found["top_k"] = top_k
    if settings.values.get("do_sample") is not None and not settings.flag("do_sample", True):
        found["temperature"] = 0.0
    return found


def _penalties(settings: Settings) -> dict[str, float]:
    found = {
        name: settings.number(name) for name in ("min_p", "repetition_penalty") if _asked(settings, name)
    }
    if found.get("min_p", 0.0) > 1:
        raise settings.error("min_p", f"is {found['min_p']}, outside 0..1")
    return found


def _asked(settings: Settings, name: str) -> bool:
    """Whether a setting is there and changes anything."""
    value = settings.values.get(name)
    return value not in (None, [], {}) and value != _FURTHER[name]


def _suppressed(settings: Settings, vocabulary: int) -> tuple[int, ...]:
    listed = settings.values.get("suppress_tokens") or []
    if not isinstance(listed, list):
        raise settings.error("suppress_tokens", "is not a list of token ids")
    for index in listed:
        if type(index) is not int or not 0 <= index < vocabulary:
            raise settings.error("suppress_tokens", f"holds {index!r}, which is no token id")
    return tuple(listed)


def end_tokens(architecture: Architecture, tokenizer: Tokenizer) -> list[int]:
    """Ids that end an answer: those that the checkpoint names, and the end of a turn even where it does not
    (as in llama.cpp)."""
    turns = [tokenizer.tokens.index(text) for text in architecture.end_of_turn if text in tokenizer.tokens]
    return list(dict.fromkeys([*tokenizer.end_ids, *architecture.eos, *turns]))


def end_texts(architecture: Architecture, tokenizer: Tokenizer) -> list[str]:
    """Texts of the end tokens that are cut out of a text as a whole, such as ``<turn|>``: wherever the text
    comes up, the token is meant. What has quotes or unprintable characters is left out."""
    ids = [id for id in end_tokens(architecture, tokenizer) if id in tokenizer.added]
    return [text for text in (tokenizer.tokens[id] for id in ids) if is_stop(text)]


def is_stop(text: str) -> bool:
    """Whether every runtime can be told to stop at a text: it has no quotes and nothing unprintable."""
    return text.isprintable() and text.strip() == text and '"' not in text
