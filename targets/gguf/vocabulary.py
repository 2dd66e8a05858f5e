"""The tokenizer as GGUF metadata: pieces, their types, merges or scores, and special tokens.

Gemma 4 is ``tokenizer.ggml.model = gemma4``: byte-fallback BPE by merges over text whose spaces became
U+2581. Gemma 3 predates that model in llama.cpp and is ``llama``: SentencePiece BPE by scores, where
the two adjacent pieces whose union has the highest score merge first. A merge's rank orders unions in
the same way, so minus the rank of the first merge that makes a piece is its score.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import gguf

from converter.architecture import Architecture
from converter.tokenizer import Tokenizer
from targets.gguf.header import Header, Strings

#: Special tokens that llama.cpp must render, since chat parsers read them (llama.cpp's own choice).
VISIBLE: Final = frozenset(
    (
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    )
)
#: End-of-turn tokens by text: Gemma 4's and Gemma 3's.
_END_OF_TURN: Final = ("<turn|>", "<end_of_turn>")
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE: Final = "\u2581"
#: Score of pieces that no merge makes, as in SentencePiece files converted by llama.cpp.
_NO_MERGE: Final = -1000.0


def add_vocabulary(header: Header, architecture: Architecture, tokenizer: Tokenizer) -> None:
    """Add everything that llama.cpp needs to tokenise exactly as the checkpoint's tokenizer."""
    header.add_token_list(Strings(tokenizer.tokens))
    header.add_token_types(list(token_types(tokenizer)))
    if architecture.family == "gemma4":
        header.add_tokenizer_model("gemma4")
        header.add_token_scores([_NO_MERGE] * len(tokenizer.tokens))
        header.add_token_merges(Strings([f"{left} {right}" for left, right in tokenizer.merges]))
    else:
        header.add_tokenizer_model("llama")
        header.add_tokenizer_pre("default")
        header.add_token_scores(merge_scores(tokenizer))
    _add_special(header, architecture, tokenizer)
    if tokenizer.chat_template:
        header.add_chat_template(tokenizer.chat_template)


def token_types(tokenizer: Tokenizer) -> Iterator[int]:
    """GGUF type of every token.

    Special tokens are control tokens, but for the visible ones. Other added tokens are matched before
    anything else, as in the checkpoint's tokenizer, and so user-defined; one that holds U+2581 stays an
    ordinary piece, because a user-defined token's text is rendered as it is, without becoming spaces.
    """
    for index, text in enumerate(tokenizer.tokens):
        added = tokenizer.added.get(index)
        if text in VISIBLE and added is not None:
            yield gguf.TokenType.USER_DEFINED
        elif _BYTE.fullmatch(text):
            yield gguf.TokenType.BYTE
        elif added is not None and added.special:
            yield gguf.TokenType.CONTROL
        elif added is not None and _SPACE not in text:
            yield gguf.TokenType.USER_DEFINED
        else:
            yield gguf.TokenType.NORMAL


def merge_scores(tokenizer: Tokenizer) -> list[float]:
    """SentencePiece scores equivalent to the merges: minus the rank of a piece's first merge."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(tokenizer.merges):
        ranks.setdefault(left + right, rank)
    return [float(-ranks[text]) if text in ranks else _NO_MERGE for text in tokenizer.tokens]


def _add_special(header: Header, architecture: Architecture, tokenizer: Tokenizer) -> None:
    eos = tokenizer.eos_id if tokenizer.eos_id is not None else next(iter(architecture.eos), None)
    ids = {"bos": tokenizer.bos_id, "eos": eos, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    for name, index in ids.items():
        if index is not None:
            getattr(header, f"add_{name}_token_id")(index)
    for text in _END_OF_TURN:
        if text in tokenizer.tokens:
            header.add_eot_token_id(tokenizer.tokens.index(text))
    header.add_add_space_prefix(False)
    header.add_add_bos_token(tokenizer.add_bos)
    header.add_add_eos_token(False)
