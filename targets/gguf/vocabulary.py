"""The tokenizer as GGUF metadata: pieces, their types, merges or scores, and special tokens.

llama.cpp has two models for Gemma's tokenizers, between which a family chooses. One is byte-fallback BPE by
merges over text whose spaces became U+2581; it is exact for any checkpoint. The other is SentencePiece BPE by
scores: of all adjacent pieces whose union is a token, the union with the highest score merges first. It is
older, so that every llama.cpp knows it. It serves where the merges say the same as scores can, which holds
for merges that were derived from a SentencePiece model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import gguf

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.generation import end_tokens
from converter.checkpoint.special_tokens import (
    CHANNEL,
    CHANNEL_END,
    EOS_TEXT,
    GEMMA3_TURN_END,
    QUOTE,
    TOOL_CALL,
    TOOL_CALL_END,
    TOOL_RESPONSE,
    TOOL_RESPONSE_END,
    TURN_END,
)
from converter.checkpoint.tokenizer import Tokenizer
from targets.gguf.family import gguf_family
from targets.gguf.header import Header, Items

#: llama.cpp's names of the two models (``tokenizer.ggml.model``).
BY_MERGES: Final = "gemma4"
BY_SCORES: Final = "llama"
#: The first build of llama.cpp for each. That by merges came a day after Gemma 4 (ggml-org/llama.cpp, pull
#: request 21343); 8665 is the first release known to hold it. That by scores is older than GGUF.
FIRST_BUILDS: Final[Mapping[str, int]] = {BY_MERGES: 8665, BY_SCORES: 0}
#: Special tokens that llama.cpp must render, since chat parsers read them (llama.cpp's own choice).
VISIBLE: Final = frozenset(
    {CHANNEL, CHANNEL_END, TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END} | {QUOTE}
)
#: Tokens of Gemma's vocabularies at which llama.cpp ends an answer by their text, whatever a file says.
_ENDS_BY_TEXT: Final = frozenset({EOS_TEXT, TURN_END, GEMMA3_TURN_END, TOOL_RESPONSE})
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE: Final = "\u2581"
#: Score of tokens that no merge makes, as in SentencePiece files converted by llama.cpp.
_NO_MERGE: Final = -1000.0


def add_vocabulary(header: Header, architecture: Architecture, tokenizer: Tokenizer) -> None:
    """Add everything that llama.cpp needs to tokenise exactly as the checkpoint's tokenizer."""
    model = gguf_family(architecture).tokenizer_model(tokenizer)
    header.add_tokenizer_model(model)
    header.add_token_list(Items(tokenizer.tokens))
    header.add_token_types(Items(token_types(tokenizer)))
    if model == BY_SCORES:
        header.add_tokenizer_pre("default")
        header.add_token_scores(Items(merge_scores(tokenizer)))
    else:
        header.add_token_merges(Items(f"{left} {right}" for left, right in tokenizer.merges))
    _add_special(header, architecture, tokenizer)
    header.add_add_space_prefix(tokenizer.space_prefix)
    # as llama.cpp's converter has it: llama.cpp itself sets it for Gemma 4, and warns where a file has not.
    # Where a chat template writes the token as well, llama.cpp and Ollama drop one of the two.
    header.add_add_bos_token(True)
    header.add_add_eos_token(False)
    if tokenizer.chat_template:
        header.add_chat_template(tokenizer.chat_template)


def vocabulary_warnings(architecture: Architecture, tokenizer: Tokenizer) -> list[str]:
    """Where llama.cpp's token ids will differ from the checkpoint's tokenizer, one line each."""
    warnings = []
    if tokenizer.beyond:
        warnings.append(
            f"gguf: {len(tokenizer.beyond)} added tokens have no embedding and are left out of the vocabulary"
        )
    mixed = [
        text
        for index, text in enumerate(tokenizer.tokens)
        if "\n" in text and text.strip("\n") and index not in tokenizer.added
    ]
    if mixed and gguf_family(architecture).tokenizer_model(tokenizer) == BY_MERGES:
        warnings.append(
            f"gguf: {len(mixed)} tokens mix newlines with other text, such as {mixed[0]!r}; llama.cpp never "
            "uses them"
        )
    if lost := lost_ends(architecture, tokenizer):
        warnings.append(
            f"gguf: tokens {', '.join(map(str, lost))} end an answer too, for which llama.cpp has no place: "
            "it goes on after them"
        )
    return warnings


def lost_ends(architecture: Architecture, tokenizer: Tokenizer) -> list[int]:
    """Ids of tokens that end an answer for which llama.cpp has no place in a file."""
    return list(_special(architecture, tokenizer).lost)


def token_types(tokenizer: Tokenizer) -> list[int]:
    """GGUF type of every token.

    Special tokens are control tokens, but for the visible ones. Other added tokens are matched before
    anything else, as in the checkpoint's tokenizer, and so user-defined. One that holds U+2581 stays an
    ordinary piece, because a user-defined token's text is rendered as it is, without becoming spaces.
    """
    types = [int(gguf.TokenType.NORMAL)] * len(tokenizer.tokens)
    for index, text in enumerate(tokenizer.tokens):
        if text.startswith("<0x") and _BYTE.fullmatch(text):
            types[index] = gguf.TokenType.BYTE
    for index, added in tokenizer.added.items():
        if index >= len(types) or (types[index] == gguf.TokenType.BYTE and added.content not in VISIBLE):
            continue
        if added.content in VISIBLE or (not added.special and _SPACE not in added.content):
            types[index] = gguf.TokenType.USER_DEFINED
        elif added.special:
            types[index] = gguf.TokenType.CONTROL
    for index in tokenizer.fillers:
        types[index] = gguf.TokenType.UNUSED
    return types


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
    aside = frozenset(token.content for token in tokenizer.added.values() if _SPACE not in token.content)
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


@dataclass(frozen=True, slots=True)
class _Special:
    """Special tokens."""

    #: By GGUF's names.
    ids: Mapping[str, int | None]
    #: All that end an answer.
    ends: Sequence[int]
    #: Those of ``ends`` that are lost.
    lost: Sequence[int]


def _special(architecture: Architecture, tokenizer: Tokenizer) -> _Special:
    """Which token has which part.

    llama.cpp (0.3.36's and before) ends an answer at three ids, ``eos``, ``eot`` and ``eom``, and at tokens
    that it knows by their text. So an end that it would not know goes first into the place that is left.
    """
    eos = tokenizer.eos if tokenizer.eos is not None else next(iter(architecture.eos), None)
    turns = [tokenizer.tokens.index(text) for text in architecture.end_of_turn if text in tokenizer.tokens]
    eot = turns[-1] if turns else None
    ends = end_tokens(architecture, tokenizer)
    rest = [id for id in ends if id not in (eos, eot)]
    rest.sort(key=lambda id: tokenizer.tokens[id] in _ENDS_BY_TEXT)
    spare = ("eot", "eom") if eot is None else ("eom",)
    ids = {"bos": tokenizer.bos, "eos": eos, "unk": tokenizer.unk, "pad": tokenizer.pad}
    ids |= {"mask": tokenizer.mask, "eot": eot}
    ids |= dict(zip(spare, rest, strict=False))
    lost = [id for id in rest[len(spare) :] if tokenizer.tokens[id] not in _ENDS_BY_TEXT]
    return _Special(ids, ends, lost)


def _add_special(header: Header, architecture: Architecture, tokenizer: Tokenizer) -> None:
    special = _special(architecture, tokenizer)
    for name, index in special.ids.items():
        if index is not None:
            getattr(header, f"add_{name}_token_id")(index)
    if len(special.ends) > 1:  # Ollama's own engine reads all of them here; llama.cpp does not
        header.add_array("tokenizer.ggml.eos_token_ids", Items(special.ends))
