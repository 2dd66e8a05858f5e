"""The text a model is judged on, and its cut into token sequences.

The shipped text (``passages.toml``) holds prose, code, several languages and a chat turn. Each passage is
tokenised on its own and starts with BOS, if the tokenizer has one. Kinds share the positions evenly. The ids
are made once, by the checkpoint's own tokenizer in ``transformers``, and every runtime gets the same ids.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.errors import CheckpointError, UsageError, ValidationError
from converter.system.child import Worker
from converter.system.progress import StageProgress, no_progress
from converter.system.untrusted import read_text

SHIPPED = Path(__file__).with_name("passages.toml")
#: Most bytes of a user's own text: the tokenizer takes 10 s and 0.3 GB for a megabyte.
_LARGEST_TEXT = 4 << 20
#: A user's own text is cut into sequences of about this many tokens.
SEQUENCE = 256
#: Compared positions beyond the sliding window, and their largest share of all.
BEYOND = 64
_SHARE_BEYOND = 8
#: Share of all positions that the long sequence has before them, where the window is long enough: their
#: tokens are computed anyway, and those of another sequence would be computed too.
_SHARE_BEFORE = 2
#: The kind of the long sequence.
LONG = "beyond the window"


@dataclass(frozen=True, slots=True)
class Passage:
    """Text of one kind: either ``text`` or ``turns``."""

    kind: str
    text: str = ""
    #: (role, content) of each turn, for the chat template.
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token sequences."""

    #: Each with BOS first, if there is one.
    sequences: tuple[tuple[int, ...], ...]
    #: The kind of each sequence.
    kinds: tuple[str, ...]
    #: Of each sequence, the index of the first position whose logits are compared: those before it are
    #: context.
    firsts: tuple[int, ...]
    #: How many positions of the last sequence lie beyond the sliding window.
    far: int = 0

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], firsts: Sequence[int] | None = None) -> Tokens:
        """Sequences of one kind. ``firsts`` is 0 for each by default."""
        return cls(
            tuple(map(tuple, sequences)),
            ("text",) * len(sequences),
            (0,) * len(sequences) if firsts is None else tuple(firsts),
        )

    @property
    def positions(self) -> int:
        """Positions of all sequences whose logits are compared."""
        return sum(len(ids) - first for ids, first in zip(self.sequences, self.firsts, strict=True))

    @property
    def ids(self) -> frozenset[int]:
        """The tokens that occur."""
        return frozenset(id for ids in self.sequences for id in ids)

    @property
    def whole(self) -> Tokens:
        """The sequences all of whose positions are compared."""
        kept = [index for index, first in enumerate(self.firsts) if not first]
        return Tokens(
            tuple(self.sequences[index] for index in kept),
            tuple(self.kinds[index] for index in kept),
            (0,) * len(kept),
        )

    @property
    def beyond(self) -> slice:
        """The rows of logits of the positions beyond the sliding window, which come last."""
        return slice(self.positions - self.far, self.positions)

    def fewer(self, most: int) -> Tokens:
        """The same sequences, of which at most ``most`` positions are compared (but one of each).

        They are the last ones of each by its share, and those beyond the window up to half of all.
        """
        if self.positions <= most:
            return self
        far = min(self.far, most // 2)
        counts = [len(ids) - first for ids, first in zip(self.sequences, self.firsts, strict=True)]
        counts[-1] -= self.far
        kept = [max(1, count * (most - far) // max(1, sum(counts))) if count else 0 for count in counts]
        kept[-1] += far
        firsts = (len(ids) - count for ids, count in zip(self.sequences, kept, strict=True))
        return Tokens(self.sequences, self.kinds, tuple(firsts), far)

    def rows_of(self, fewer: Tokens) -> NDArray[np.intp]:
        """The rows of these logits that are those of ``fewer``."""
        ends = accumulate(len(ids) - first for ids, first in zip(self.sequences, self.firsts, strict=True))
        counts = (len(ids) - first for ids, first in zip(fewer.sequences, fewer.firsts, strict=True))
        return np.concatenate(
            [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)], dtype=np.intp
        )


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids of whole passages."""

    #: The id of BOS, ``None`` for a tokenizer without one.
    bos: int | None
    #: (kind, ids without BOS) of each.
    passages: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def begin(self) -> tuple[int, ...]:
        """What every sequence begins with: BOS, or nothing."""
        return () if self.bos is None else (self.bos,)


def read_passages(file: Path | None = None) -> tuple[Passage, ...]:
    """The shipped passages, or the whole of a user's UTF-8 text file as one. Raises ``UsageError``."""
    if file is not None:
        try:
            text = read_text(file, _LARGEST_TEXT)
        except CheckpointError as error:
            raise UsageError(str(error)) from error
        if not text.strip():
            raise UsageError(f"{file}: holds no text")
        return (Passage("text", text),)
    entries = tomllib.loads(SHIPPED.read_text("utf-8"))["passage"]
    return tuple(
        Passage(
            entry["kind"],
            entry.get("text", ""),
            tuple((turn["role"], turn["content"]) for turn in entry.get("turns", ())),
        )
        for entry in entries
    )


def digest(passages: Sequence[Passage]) -> str:
    """SHA-256 of the passages, to tell one evaluation text from another."""
    plain = [[passage.kind, passage.text, passage.turns] for passage in passages]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def encode(
    model: Path,
    passages: Sequence[Passage],
    vocabulary: int,
    worker: Worker,
    progress: StageProgress = no_progress,
) -> Encoding:
    """Token ids of the passages, by the tokenizer of the checkpoint ``model`` (in a ``reference_worker``).

    A chat is left out if the checkpoint has no chat template. Raises ``ValidationError`` when the tokenizer
    cannot be loaded, the template fails, or an id is outside ``vocabulary``.
    """
    request: Mapping[str, object] = {
        "task": "tokenize",
        "model": str(model.resolve()),
        "passages": [{"text": passage.text, "turns": passage.turns} for passage in passages],
    }
    result = worker.call(request, progress, what="tokenizer")
    found = [
        (passage.kind, tuple(ids))
        for passage, ids in zip(passages, result["ids"], strict=True)
        if ids is not None
    ]
    encoding = Encoding(result["bos"], tuple(found))
    for token in (*encoding.begin, *(token for _, ids in found for token in ids)):
        if not 0 <= token < vocabulary:
            raise ValidationError(f"tokenizer: makes token {token}, outside the vocabulary of {vocabulary}")
    return encoding


def cut(encoding: Encoding, positions: int, window: int | None = None, context: int | None = None) -> Tokens:
    """Sequences with ``positions`` compared positions in all.

    With a sliding ``window`` there is one long sequence. Its last ``BEYOND`` positions (an eighth of
    ``positions`` if that is less) stand behind so many tokens that none of them sees the first. A window that
    is wrong in either direction changes them. Up to half of ``positions`` are the ones before them, but for
    the first ``BEYOND``, where the text is long enough. The text of the long sequence is that of all passages
    one behind the other, as often as it takes. It is left out if it is longer than ``context``, the most
    tokens that model and artifact take.

    The rest are the passages. A text of a single kind is cut into consecutive sequences of nearly equal
    length, none much longer than ``SEQUENCE``. Otherwise every passage is cut at its share, and what a short
    one leaves goes to the others. Raises ``UsageError`` when there are too few tokens.
    """
    beyond = min(BEYOND, positions // _SHARE_BEYOND) if window is not None else 0
    if window is not None and context is not None:
        beyond = max(0, min(beyond, context - window))
    if window is None or not beyond:
        return _cut_passages(encoding, positions, 0)
    before = 0
    available = len(encoding.begin) + sum(len(ids) for _, ids in encoding.passages)
    if available >= window + beyond:  # no text comes twice
        before = max(0, min(window - BEYOND, positions // _SHARE_BEFORE))
    passages = _cut_passages(encoding, positions - beyond - before, beyond + before)
    return Tokens(
        (*passages.sequences, _long(encoding, window + beyond)),
        (*passages.kinds, LONG),
        (*passages.firsts, window - before),
        beyond,
    )


def _long(encoding: Encoding, length: int) -> tuple[int, ...]:
    """``length`` tokens of all passages one behind the other, as often as it takes, behind the
    beginning."""
    every = [id for _, ids in encoding.passages for id in ids]
    return tuple(islice(chain(encoding.begin, cycle(every)), length))


def _cut_passages(encoding: Encoding, positions: int, beyond: int) -> Tokens:
    """``positions`` of the passages alone; ``beyond`` more were asked for in all."""
    begin, passages = encoding.begin, encoding.passages
    if len(passages) == 1:
        kind, ids = passages[0]
        count = max(1, -(-positions // SEQUENCE))
        if len(ids) + count * len(begin) < positions:
            raise _too_few(len(ids) + len(begin), positions + beyond)
        lengths = [positions // count + (index < positions % count) for index in range(count)]
        counts = [length - len(begin) for length in lengths]
        starts = accumulate(counts, initial=0)
        cuts = [ids[start : start + taken] for start, taken in zip(starts, counts, strict=False)]
        return Tokens(tuple((*begin, *piece) for piece in cuts), (kind,) * count, (0,) * count)
    available = [len(begin) + len(ids) for _, ids in passages]
    if sum(available) < positions:
        raise _too_few(sum(available), positions + beyond)
    lengths = _lengths([kind for kind, _ in passages], available, positions)
    kept = [
        (kind, (*begin, *ids)[:length])
        for (kind, ids), length in zip(passages, lengths, strict=True)
        if length
    ]
    return Tokens(tuple(ids for _, ids in kept), tuple(kind for kind, _ in kept), (0,) * len(kept))


def _too_few(available: int, positions: int) -> UsageError:
    return UsageError(
        f"the text has {available} tokens, too few for {positions} positions;"
        f" give a longer one with --text, or --positions {available}"
    )


def _lengths(kinds: Sequence[str], available: Sequence[int], positions: int) -> list[int]:
    """Each passage's share of ``positions``: even among kinds, then among the passages of a kind."""
    members = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)}
    of_kind = _shares([sum(available[i] for i in indices) for indices in members.values()], positions)
    lengths = [0] * len(kinds)
    for indices, share in zip(members.values(), of_kind, strict=True):
        for index, length in zip(indices, _shares([available[i] for i in indices], share), strict=True):
            lengths[index] = length
    return lengths


def _shares(available: Sequence[int], total: int) -> list[int]:
    """Split ``total`` as evenly as ``available`` allows, so that nobody gets more than it has."""
    shares = [0] * len(available)
    left = min(total, sum(available))
    while left:
        open_ = [index for index, limit in enumerate(available) if shares[index] < limit]
        step = max(1, left // len(open_))
        for index in open_:
            given = min(step, available[index] - shares[index], left)
            shares[index] += given
            left -= given
    return shares
