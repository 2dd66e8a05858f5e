"""Child process of ``llamacpp``: logits of a GGUF file, by llama.cpp's C interface."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import ValidationError
from converter.system.child import serve
from converter.system.processors import processors
from converter.system.progress import StageProgress
from validation.logits import LogitRows
from validation.runtimes.llamacpp_library import open_library

#: Most tokens of one batch: their logits lie in memory together (256 x 262144 x 4 bytes = 0.27 GB).
_BATCH = 256
_F32 = 0  # GGML_TYPE_F32
_ERROR = 4  # GGML_LOG_LEVEL_ERROR


def write_logits(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Write float32 logits for ``artifact`` to ``output`` (.npy): of every position of ``sequences`` from its
    sequence's index in ``firsts`` on (of all without it)."""
    sequences: list[list[int]] = request["sequences"]
    firsts: list[int] = request.get("firsts") or [0] * len(sequences)
    library = open_library()
    llama = library.functions
    log = Log(llama)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(os.fsencode(request["artifact"]), _model_params(llama))
    if not model:
        raise ValidationError(f"cannot load the model ({log.first_error or 'it does not say why'})")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    longest = max(map(len, sequences))
    _check_sequences(sequences, vocabulary, llama.llama_model_n_ctx_train(model))
    context = llama.llama_init_from_model(model, _context_params(llama, longest, processors()))
    if not context:
        raise ValidationError(f"cannot make a context ({log.first_error or 'it does not say why'})")
    rows = sum(len(ids) - first for ids, first in zip(sequences, firsts, strict=True))
    total = sum(map(len, sequences))
    done = 0
    with LogitRows(Path(request["output"]), rows, vocabulary) as output:
        for ids, first in zip(sequences, firsts, strict=True):
            llama.llama_memory_clear(llama.llama_get_memory(context), True)
            for start in range(0, len(ids), _BATCH):
                batch = ids[start : start + _BATCH]
                output.write(_decode(llama, context, batch, start, first, vocabulary))
                done += len(batch)
                progress(done, total)
    return {
        "vocabulary": vocabulary,
        "version": library.version,
        "settings": {"kv_cache": "f32", "flash_attention": False},
    }


def _check_sequences(sequences: Sequence[Sequence[int]], vocabulary: int, context: int) -> None:
    """Raise ``ValidationError`` for a token or a length that the model does not have."""
    if outside := [token for ids in sequences for token in ids if not 0 <= token < vocabulary]:
        raise ValidationError(f"token {outside[0]} is outside its vocabulary of {vocabulary}")
    longest = max(map(len, sequences))
    if longest > context:
        raise ValidationError(
            f"a sequence of {longest} tokens is longer than the context of {context} that the metadata give"
            " (context_length); take a shorter text"
        )


class Log:
    """llama.cpp's log on standard error, and its first error, which is the cause of those that follow."""

    def __init__(self, llama: Any) -> None:
        self.first_error = ""
        self._callback = llama.llama_log_callback(self._note)  # must outlive every call of llama.cpp
        llama.llama_log_set(self._callback, ctypes.c_void_p())

    def _note(self, level: int, text: bytes, _user_data: object) -> None:
        line = text.decode("utf-8", "replace")
        sys.stderr.write(line)
        if level == _ERROR and not self.first_error:
            self.first_error = line.strip()


def _model_params(llama: Any) -> Any:
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    return params


def _context_params(llama: Any, longest: int, threads: int) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = longest
    params.n_batch = params.n_ubatch = min(longest, _BATCH)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = _F32
    params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.offload_kqv = params.op_offload = False
    return params


def _decode(
    llama: Any, context: Any, tokens: Sequence[int], start: int, first: int, vocabulary: int
) -> NDArray[np.float32]:
    """Logits ``[rows, vocabulary]`` of consecutive tokens, the first of which is at position ``start``. Rows
    are of those that lie at position ``first`` or behind it. They lie in llama.cpp's memory, which the next
    call uses again."""
    wanted = range(max(start, first), start + len(tokens))
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = start + index in wanted
        if status := llama.llama_decode(context, batch):
            raise ValidationError(f"llama_decode fails with status {status}")
        if not wanted:
            return np.empty((0, vocabulary), np.float32)
        return np.ctypeslib.as_array(llama.llama_get_logits(context), (len(wanted), vocabulary))
    finally:
        llama.llama_batch_free(batch)


if __name__ == "__main__":
    serve(write_logits)
