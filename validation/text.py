"""The text a model is judged on, and its cut into token sequences.

The shipped text (``passages.toml``) holds prose, code, several languages and a chat turn. Each passage is
tokenised on its own and starts with BOS; kinds share the positions evenly. The ids are made once, by the
checkpoint's own tokenizer in ``transformers`` (in a child process, see ``validation.tokens``), and every
runtime gets the same ids.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.errors import UsageError, ValidationError
from validation.worker import Progress, run_worker

SHIPPED = Path(__file__).with_name("passages.toml")
#: A user's own text is cut into sequences of about this many tokens.
SEQUENCE = 256


@dataclass(frozen=True, slots=True)
class Passage:
    """Text of one ``kind``: either ``text``, or ``turns`` of (role, content) for the chat template."""

    kind: str
    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token sequences, each with BOS first, and the kind of each."""

    sequences: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]

    @property
    def positions(self) -> int:
        """Tokens of all sequences together; each is a position with logits."""
        return sum(map(len, self.sequences))


def read_passages(file: Path | None = None) -> tuple[Passage, ...]:
    """The shipped passages, or the whole of a user's UTF-8 text file as one; raises ``UsageError``."""
    if file is not None:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: cannot be read as UTF-8 text ({error})") from error
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


def tokenize(
    model: Path, passages: Sequence[Passage], positions: int, vocabulary: int, progress: Progress
) -> Tokens:
    """Token sequences of ``positions`` tokens in all, made by the tokenizer of the checkpoint ``model``.

    A chat is left out if the checkpoint has no chat template. Raises ``UsageError`` when the text is too
    short, ``ValidationError`` when the tokenizer cannot be loaded or makes ids outside ``vocabulary``.
    """
    request: Mapping[str, object] = {
        "model": str(model.resolve()),
        "passages": [{"text": passage.text, "turns": passage.turns} for passage in passages],
    }
    result = run_worker("validation.tokens", request, progress, what="tokenizer")
    bos = result["bos"]
    found = [
        (passage.kind, tuple(ids))
        for passage, ids in zip(passages, result["ids"], strict=True)
        if ids is not None
    ]
    outside = [token for _, ids in found for token in (bos, *ids) if not 0 <= token < vocabulary]
    if outside:
        raise ValidationError(f"tokenizer: makes token {outside[0]}, outside the vocabulary of {vocabulary}")
    if len(passages) == 1 and not passages[0].turns:
        return _cut_evenly(found[0][1], positions, bos)
    return _cut_by_kind(found, positions, bos)


def _cut_evenly(ids: Sequence[int], positions: int, bos: int) -> Tokens:
    """One long text in consecutive sequences of nearly equal length, none much longer than ``SEQUENCE``."""
    count = max(1, -(-positions // SEQUENCE))
    if len(ids) < positions - count:
        raise UsageError(
            f"the text has {len(ids)} tokens, too few for {positions} positions;"
            f" give a longer text or --positions {len(ids)}"
        )
    lengths = [positions // count + (index < positions % count) for index in range(count)]
    sequences, start = [], 0
    for length in lengths:
        sequences.append((bos, *ids[start : start + length - 1]))
        start += length - 1
    return Tokens(tuple(sequences), ("text",) * count)


def _cut_by_kind(found: Sequence[tuple[str, tuple[int, ...]]], positions: int, bos: int) -> Tokens:
    """Every passage cut at its share; what a short passage leaves goes to the others."""
    available = [len(ids) + 1 for _, ids in found]
    if sum(available) < positions:
        raise UsageError(
            f"the shipped text has {sum(available)} tokens for this tokenizer,"
            f" too few for {positions} positions; give a longer text with --text"
        )
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    members = {kind: [index for index, (other, _) in enumerate(found) if other == kind] for kind in kinds}
    of_kind = _shares([sum(available[index] for index in members[kind]) for kind in kinds], positions)
    lengths = [0] * len(found)
    for kind, share in zip(kinds, of_kind, strict=True):
        of_member = _shares([available[index] for index in members[kind]], share)
        for index, length in zip(members[kind], of_member, strict=True):
            lengths[index] = length
    kept = [
        (kind, (bos, *ids)[:length]) for (kind, ids), length in zip(found, lengths, strict=True) if length
    ]
    return Tokens(tuple(ids for _, ids in kept), tuple(kind for kind, _ in kept))


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
