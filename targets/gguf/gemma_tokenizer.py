"""Gemma's tokenizers in llama.cpp, which has two models for them.

One is byte-fallback BPE by merges over text whose spaces became U+2581; it is exact for any checkpoint. The
other is SentencePiece BPE by scores: of all adjacent pieces whose union is a token, the union with the
highest score merges first. It is older, so that every llama.cpp knows it. It serves where the merges say the
same as scores can, which holds for merges that were derived from a SentencePiece model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Final

from converter.checkpoint.special_tokens import (
    CHANNEL,
    CHANNEL_END,
    QUOTE,
    TOOL_CALL,
    TOOL_CALL_END,
    TOOL_RESPONSE,
    TOOL_RESPONSE_END,
)
from converter.checkpoint.tokenizer import Tokenizer
from converter.checkpoint.tokenizer_pipeline import LENGTH, SPACE, SPACE_PREFIX
from converter.errors import TargetError
from targets.gguf.family import TokenizerModel
from targets.tokenization import steps_beside

#: Special tokens that llama.cpp must render, since chat parsers read them (llama.cpp's own choice).
VISIBLE: Final = frozenset(
    {CHANNEL, CHANNEL_END, TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END} | {QUOTE}
)
#: Score of tokens that no merge makes, as in SentencePiece files converted by llama.cpp.
_NO_MERGE: Final = -1000.0


def by_merges_or_scores(tokenizer: Tokenizer) -> TokenizerModel:
    """By scores, which every llama.cpp knows and Gemma 3's files have, where they say what the merges do."""
    return BY_SCORES if scores_suffice(tokenizer) else BY_MERGES


def _check(tokenizer: Tokenizer) -> None:
    if tokenizer.bos is None:
        raise TargetError("gguf: the tokenizer has no token that begins a sequence; llama.cpp aborts without")
    if not tokenizer.byte_fallback:
        raise TargetError("gguf: the tokenizer has no byte fallback; llama.cpp's tokenizers of Gemma need it")


def _check_merges(tokenizer: Tokenizer) -> None:
    _check(tokenizer)
    if tokenizer.space_prefix:
        raise TargetError(
            "gguf: the tokenizer puts a space before the text; llama.cpp's tokenizer of Gemma 4 cannot"
        )


def _mixed_newlines(tokenizer: Tokenizer) -> list[str]:
    mixed = [
        text
        for index, text in enumerate(tokenizer.tokens)
        if "\n" in text and text.strip("\n") and index not in tokenizer.added
    ]
    if not mixed:
        return []
    return [
        f"gguf: {len(mixed)} tokens mix newlines with other text, such as {mixed[0]!r}; llama.cpp never "
        "uses them"
    ]


def merge_scores(tokenizer: Tokenizer) -> list[float]:
    """SentencePiece scores that order unions as the merges do: minus the rank of the first merge that
    makes a token."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(tokenizer.merges):
        ranks.setdefault(left + right, rank)
    return [float(-ranks[text]) if text in ranks else _NO_MERGE for text in tokenizer.tokens]


def scores_suffice(tokenizer: Tokenizer) -> bool:
    """Whether SentencePiece's rule gives the merges' result: the merges of each token follow each other,
    and every way to make any token of two pieces that can come about is among them.

    Added tokens that are cut out of the text before it is merged can be left aside.
    """
    aside = frozenset(token.content for token in tokenizer.added.values() if SPACE not in token.content)
    return _merges_are_whole(tokenizer.tokens, tokenizer.merges, aside)


@lru_cache(maxsize=1)
def _merges_are_whole(
    tokens: Sequence[str], ordered: Sequence[tuple[str, str]], aside: frozenset[str]
) -> bool:
    """See ``scores_suffice``; the last answer is kept, as a vocabulary of 262,144 takes two seconds and is
    asked about whenever it is written or compared."""
    merges = {pair for pair in ordered if pair[0] + pair[1] not in aside}
    pieces = {left + right for left, right in merges}
    previous = ""
    done: set[str] = set()
    for left, right in ordered:
        union = left + right
        if union in aside:
            continue
        if union != previous and union in done:
            return False
        done.add(union)
        previous = union
    for text in tokens:
        for cut in range(1, len(text) if text not in aside else 0):
            left, right = text[:cut], text[cut:]
            possible = (cut == 1 or left in pieces) and (len(right) == 1 or right in pieces)
            if possible and (left, right) not in merges:
                return False
    return True


#: It came a day after Gemma 4 (ggml-org/llama.cpp, pull request 21343); 8665 is the first release known to
#: hold it. A file's limits to length concern training alone. llama.cpp itself puts BOS before prompts of
#: Gemma 4, and warns where a file does not say so.
BY_MERGES: Final = TokenizerModel(
    "gemma4",
    lacking=partial(steps_beside, {LENGTH}),
    first_build=8665,
    check=_check_merges,
    visible=VISIBLE,
    adds_bos=True,
    warnings=_mixed_newlines,
)
#: Older than GGUF. It knows the prefix.
BY_SCORES: Final = TokenizerModel(
    "llama",
    lacking=partial(steps_beside, {LENGTH, SPACE_PREFIX}),
    pre="default",
    check=_check,
    scores=merge_scores,
    visible=VISIBLE,
    adds_bos=True,
)
