"""Child process of ``llamacpp_text``: what llama.cpp makes of text with the vocabulary of a GGUF file."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from converter.checkpoint.special_tokens import BOS, EOS
from converter.errors import ValidationError
from converter.system.bounds import LOADING_MEMORY, LOADING_SECONDS, bounded
from converter.system.child import serve
from converter.system.progress import StageProgress
from validation.runtimes.llamacpp_library import open_library
from validation.runtimes.llamacpp_model import Log

#: Most bytes of a chat template, as of a checkpoint's.
_TEMPLATE_BYTES: Final = 4 << 20
#: Most tokens that llama.cpp is believed to make of a byte of text.
_TOKENS_PER_BYTE: Final = 4
_FEWEST: Final = 64


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """An open vocabulary."""

    llama: Any
    #: Must outlive the pointers.
    log: Log
    version: str
    #: llama.cpp's pointer to the model.
    model: int
    #: llama.cpp's pointer to the vocabulary.
    vocabulary: int


_OPEN: dict[str, _Vocabulary] = {}


def read(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """What llama.cpp says of ``artifact`` and of the request's ``texts``.

    * ``version``
    * ``tokens`` of the texts, with those that the vocabulary adds to prompts if they are to ``begin``
    * ``ends``: ids that end an answer
    * ``hidden``: ids of tokens that are not shown
    * ``template``, ``None`` without one
    * ``special``: the texts of tokens that templates write
    """
    with bounded(LOADING_SECONDS, LOADING_MEMORY):
        if request["artifact"] not in _OPEN:
            _OPEN[request["artifact"]] = _open(request["artifact"])
        opened = _OPEN[request["artifact"]]
        tokens = []
        for text in request["texts"]:
            tokens.append(_tokenize(opened, text.encode("utf-8"), bool(request.get("begin"))))
            progress(len(tokens), len(request["texts"]))
        ids = range(opened.llama.llama_vocab_n_tokens(opened.vocabulary))
        return {
            "version": opened.version,
            "tokens": tokens,
            "ends": [id for id in ids if opened.llama.llama_vocab_is_eog(opened.vocabulary, id)],
            "hidden": [id for id in ids if _is_hidden(opened, id)],
            "template": _template(opened),
            "special": {
                name: opened.llama.llama_vocab_get_text(opened.vocabulary, id).decode("utf-8", "replace")
                for name, id in (
                    (BOS, opened.llama.llama_vocab_bos(opened.vocabulary)),
                    (EOS, opened.llama.llama_vocab_eos(opened.vocabulary)),
                )
                if id in ids
            },
        }


def _open(artifact: str) -> _Vocabulary:
    library = open_library()
    llama = library.functions
    log = Log(llama)
    params = llama.llama_model_default_params()
    params.vocab_only = True
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(os.fsencode(artifact), params)
    if not model:
        raise ValidationError(f"cannot load it ({log.first_error or 'it does not say why'})")
    return _Vocabulary(llama, log, library.version, model, llama.llama_model_get_vocab(model))


def _tokenize(opened: _Vocabulary, text: bytes, begin: bool) -> list[int]:
    """Token ids of a text, its special tokens read as such. If it is to ``begin``, the vocabulary's own
    tokens in front and behind are added, and no others ever."""
    size = _TOKENS_PER_BYTE * len(text) + _FEWEST
    buffer = (ctypes.c_int32 * size)()
    count = opened.llama.llama_tokenize(opened.vocabulary, text, len(text), buffer, size, begin, True)
    if count < 0:
        raise ValidationError(f"makes {-count} tokens of {len(text)} bytes of text")
    return buffer[:count]


def _is_hidden(opened: _Vocabulary, id: int) -> bool:
    """Whether a token that has a text is shown as none."""
    if not opened.llama.llama_vocab_get_text(opened.vocabulary, id):
        return False
    buffer = ctypes.create_string_buffer(1)  # of a longer text only the length is told
    return bool(opened.llama.llama_token_to_piece(opened.vocabulary, id, buffer, 1, 0, False) == 0)


def _template(opened: _Vocabulary) -> str | None:
    template = opened.llama.llama_model_chat_template(opened.model, None)
    if template is None:
        return None
    if len(template) > _TEMPLATE_BYTES:
        raise ValidationError(f"tokenizer.chat_template has {len(template):,} bytes, more than any")
    try:
        text: str = template.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValidationError(f"tokenizer.chat_template is no UTF-8: {error.reason}") from error
    return text


if __name__ == "__main__":
    serve(read)
