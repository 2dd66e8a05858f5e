"""Where an engine's text leaves the reference's, and how far apart the reference held the two.

Both take the likeliest token each time. Rounding of activations may turn a near-tie, and from then on two
texts have nothing in common. So what is judged is the first token that differs. The reference's logits there
say what the engine's choice costs: the log-probability of the reference's own token less that of the
engine's, in nats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.tokenizer import Tokenizer
from validation.runners import Answer

#: Characters of the engine's text that are shown beyond the reference's.
_MORE: Final = 20
#: What stands in a text for bytes that are no whole character.
_BROKEN: Final = "\ufffd"
#: The first two bits of bytes that are not the first of a character.
_FOLLOWS: Final = 0b10


@dataclass(frozen=True, slots=True)
class Continuation:
    """The reference's continuation of a prompt."""

    #: The one that ends it is included if it came.
    tokens: tuple[int, ...]
    #: The texts of its first 0, 1, 2, ... tokens.
    texts: tuple[str, ...]
    #: By which each token was chosen, float32 ``[tokens, vocabulary]``.
    logits: NDArray[np.float32]

    @property
    def text(self) -> str:
        """The whole text."""
        return self.texts[-1]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first difference of an engine's text from the reference's."""

    #: Index of the token.
    token: int
    #: Index of the character in the text.
    character: int
    #: The reference's token as the vocabulary writes it.
    reference: str
    #: The engine's, likewise.
    engine: str
    #: Between both tokens, in nats; ``None`` where the texts do not tell it.
    gap: float | None


class Vocabulary:
    """Token ids by their text."""

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int]) -> None:
        self._tokens = tokenizer.tokens
        self.ends = frozenset(ends)
        self._ids: dict[str, list[int]] = {}
        for id in range(len(tokenizer.tokens)):
            if id not in tokenizer.fillers and id not in self.ends:
                text = tokenizer.bytes_of(id).decode("utf-8", "replace")
                self._ids.setdefault(text, []).append(id)
        self._longest = max(map(len, self._ids))

    def name(self, id: int) -> str:
        """A token as the vocabulary writes it."""
        return self._tokens[id]

    def candidates(self, rest: str, piece: str | None) -> list[int]:
        """Tokens with which ``rest`` may begin.

        They are those of its first ``piece`` if there are such, else all whose text it begins with. For no
        text they are those that end an answer.
        """
        if not rest:
            return sorted(self.ends)
        if piece is not None and piece in self._ids:
            return self._ids[piece]
        lengths = range(1, min(self._longest, len(rest)) + 1)
        return [id for length in lengths for id in self._ids.get(rest[:length], ())]


def characters(tokens: Iterable[bytes]) -> int:
    """How many characters the texts of tokens have, in UTF-8, one behind the other."""
    return sum(byte >> 6 != _FOLLOWS for token in tokens for byte in token)


def first_divergence(reference: Continuation, answer: Answer, vocabulary: Vocabulary) -> Divergence | None:
    """The first token at which the texts differ, ``None`` if the engine says all that the reference does.

    Where the engine's text does not tell its token, it is taken to be the one of those possible that the
    reference holds likeliest: the gap is at least as large as is said. No gap is told behind bytes that are
    no characters, which models of random weights say: the texts may be equal there and the tokens not.
    """
    text = "".join(answer.pieces)
    step = _first_step(reference, text, vocabulary.ends)
    if step is None:
        return None
    own, start = reference.tokens[step], len(reference.texts[step])
    if start >= len(text) and not answer.whole:
        return None
    starts: dict[int, str] = {}
    begin = 0
    for piece in answer.pieces:
        starts[begin] = piece
        begin += len(piece)
    logits = reference.logits[step].astype(np.float64)
    others = [id for id in vocabulary.candidates(text[start:], starts.get(start)) if id != own]
    other = max(others, key=lambda id: float(logits[id]), default=None)
    said = "" if other is None else vocabulary.name(other)
    told = other is not None and _BROKEN not in reference.texts[step]
    gap = float(logits[own] - logits[other]) if told else None
    return Divergence(step, start, vocabulary.name(own), said, gap)


def _first_step(reference: Continuation, text: str, ends: Collection[int]) -> int | None:
    for step, token in enumerate(reference.tokens):
        if token in ends:
            return None if text == reference.texts[step] else step
        # bytes at the end may be the beginning of a character
        if not text.startswith(reference.texts[step + 1].rstrip(_BROKEN)):
            while step and not text.startswith(reference.texts[step]):
                step -= 1
            return step
    return None


def equal_characters(first: str, second: str) -> int:
    """How many characters two texts have in common from their beginning."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def comparison(
    prompt: str, kind: str, reference: Continuation, answer: Answer, vocabulary: Vocabulary
) -> dict[str, Any]:
    """A prompt's part of the report; of the engine's text as much as the reference has, and a little more."""
    text = "".join(answer.pieces)
    found = first_divergence(reference, answer, vocabulary)
    return {
        "kind": kind,
        "prompt": prompt,
        "reference": reference.text,
        "engine": text[: len(reference.text) + _MORE],
        "tokens": len(reference.tokens),
        "equal_characters": equal_characters(reference.text, text),
        "divergence": None if found is None else asdict(found),
    }


def largest_gap(compared: Sequence[Mapping[str, Any]]) -> float:
    """The largest gap at a first divergence in nats, as far as gaps are known; 0 where no text diverges."""
    gaps = [one["divergence"]["gap"] for one in compared if one["divergence"]]
    return max((gap for gap in gaps if gap is not None), default=0.0)
