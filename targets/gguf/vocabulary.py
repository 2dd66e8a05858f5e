"""The tokenizer as GGUF metadata: pieces, their types, merges or scores, and special tokens.

Which of its tokenizers llama.cpp is to read them into says the family (``targets.gguf.family``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import gguf

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.generation import end_tokens
from converter.checkpoint.tokenizer import Tokenizer
from converter.checkpoint.tokenizer_pipeline import SPACE
from targets.gguf.ends import ENDS_BY_TEXT
from targets.gguf.family import gguf_family
from targets.gguf.header import Header, Items

_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")


def add_vocabulary(header: Header, architecture: Architecture, tokenizer: Tokenizer) -> None:
    """Add everything that llama.cpp needs to tokenise exactly as the checkpoint's tokenizer."""
    model = gguf_family(architecture).tokenizer_model(tokenizer)
    header.add_tokenizer_model(model.name)
    header.add_token_list(Items(tokenizer.tokens))
    header.add_token_types(Items(token_types(tokenizer, model.visible)))
    if model.pre is not None:
        header.add_tokenizer_pre(model.pre)
    if model.scores is not None:
        header.add_token_scores(Items(model.scores(tokenizer)))
    else:
        header.add_token_merges(Items(f"{left} {right}" for left, right in tokenizer.merges))
    _add_special(header, architecture, tokenizer)
    header.add_add_space_prefix(tokenizer.space_prefix)
    # where a chat template writes the token as well, llama.cpp and Ollama drop one of the two
    header.add_add_bos_token(model.adds_bos)
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
    warnings += gguf_family(architecture).tokenizer_model(tokenizer).warnings(tokenizer)
    if lost := lost_ends(architecture, tokenizer):
        warnings.append(
            f"gguf: tokens {', '.join(map(str, lost))} end an answer too, for which llama.cpp has no place: "
            "it goes on after them"
        )
    return warnings


def lost_ends(architecture: Architecture, tokenizer: Tokenizer) -> list[int]:
    """Ids of tokens that end an answer for which llama.cpp has no place in a file."""
    return list(_special(architecture, tokenizer).lost)


def token_types(tokenizer: Tokenizer, visible: Collection[str]) -> list[int]:
    """GGUF type of every token.

    Special tokens are control tokens, but for those that are to be ``visible``. Other added tokens are
    matched before anything else, as in the checkpoint's tokenizer, and so user-defined. Where U+2581 stands
    for a space, one that holds it stays an ordinary piece: a user-defined token's text is rendered as it is.
    """
    types = [int(gguf.TokenType.NORMAL)] * len(tokenizer.tokens)
    for index, text in enumerate(tokenizer.tokens if tokenizer.byte_fallback else ()):
        if text.startswith("<0x") and _BYTE.fullmatch(text):
            types[index] = gguf.TokenType.BYTE
    for index, added in tokenizer.added.items():
        if index >= len(types) or (types[index] == gguf.TokenType.BYTE and added.content not in visible):
            continue
        as_written = tokenizer.byte_level or SPACE not in added.content
        if added.content in visible or (not added.special and as_written):
            types[index] = gguf.TokenType.USER_DEFINED
        elif added.special:
            types[index] = gguf.TokenType.CONTROL
    for index in tokenizer.fillers:
        types[index] = gguf.TokenType.UNUSED
    return types


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
    rest.sort(key=lambda id: tokenizer.tokens[id] in ENDS_BY_TEXT)
    spare = ("eot", "eom") if eot is None else ("eom",)
    # a model without a token that prompts begin with may still have one, which tools then put before nothing
    bos = tokenizer.bos if tokenizer.bos is not None else architecture.bos
    ids = {"bos": bos, "eos": eos, "unk": tokenizer.unk, "pad": tokenizer.pad}
    ids |= {"mask": tokenizer.mask, "eot": eot}
    ids |= dict(zip(spare, rest, strict=False))
    lost = [id for id in rest[len(spare) :] if tokenizer.tokens[id] not in ENDS_BY_TEXT]
    return _Special(ids, ends, lost)


def _add_special(header: Header, architecture: Architecture, tokenizer: Tokenizer) -> None:
    special = _special(architecture, tokenizer)
    for name, index in special.ids.items():
        if index is not None:
            getattr(header, f"add_{name}_token_id")(index)
    if len(special.ends) > 1:  # Ollama's own engine reads all of them here; llama.cpp does not
        header.add_array("tokenizer.ggml.eos_token_ids", Items(special.ends))
