"""Child process of ``llamacpp``: all logits of a GGUF file, by llama.cpp's C interface."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import ValidationError
from converter.worker import Progress, serve
from targets.writing import processors
from validation.logits import create_logits

#: Most tokens of one batch: their logits lie in memory together (256 x 262144 x 4 bytes = 0.27 GB).
_BATCH = 256
_F32 = 0  # GGML_TYPE_F32
_ERROR = 4  # GGML_LOG_LEVEL_ERROR


def write_logits(request: dict[str, Any], progress: Progress) -> Mapping[str, object]:
    """Write float32 logits of every position of ``sequences`` for ``artifact`` to ``output`` (.npy)."""
    import llama_cpp

    sequences: list[list[int]] = request["sequences"]
    longest = max(map(len, sequences))
    log = _Log(llama_cpp)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(request["artifact"]), _model_params(llama_cpp))
    if not model:
        raise ValidationError(f"cannot load the model ({log.first_error or 'it does not say why'})")
    threads = processors()
    context = llama_cpp.llama_init_from_model(model, _context_params(llama_cpp, longest, threads))
    if not context:
        raise ValidationError(f"cannot make a context ({log.first_error or 'it does not say why'})")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    if outside := [token for ids in sequences for token in ids if not 0 <= token < vocabulary]:
        raise ValidationError(f"token {outside[0]} is outside its vocabulary of {vocabulary}")
    output = create_logits(Path(request["output"]), sum(map(len, sequences)), vocabulary)
    row = 0
    for ids in sequences:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            output[row : row + len(batch)] = _decode(llama_cpp, context, batch, start, vocabulary)
            row += len(batch)
            progress(row, output.shape[0])
    return {
        "vocabulary": vocabulary,
        "version": _version(llama_cpp),
        "settings": {"kv_cache": "f32", "flash_attention": False},
    }


class _Log:
    """llama.cpp's log on standard error, and its first error, which is the cause of those that follow."""

    def __init__(self, llama_cpp: Any) -> None:
        self.first_error = ""
        self._callback = llama_cpp.llama_log_callback(self._note)  # must outlive every call of llama.cpp
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p())

    def _note(self, level: int, text: bytes, _user_data: object) -> None:
        line = text.decode("utf-8", "replace")
        sys.stderr.write(line)
        if level == _ERROR and not self.first_error:
            self.first_error = line.strip()


def _model_params(llama_cpp: Any) -> Any:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    return params


def _context_params(llama_cpp: Any, longest: int, threads: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = longest
    params.n_batch = params.n_ubatch = min(longest, _BATCH)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = _F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.offload_kqv = params.op_offload = False
    return params


def _decode(
    llama_cpp: Any, context: Any, tokens: Sequence[int], start: int, vocabulary: int
) -> NDArray[np.float32]:
    """Logits ``[tokens, vocabulary]`` of consecutive tokens, the first at position ``start``."""
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = True
        if status := llama_cpp.llama_decode(context, batch):
            raise ValidationError(f"llama_decode fails with status {status}")
        pointer = llama_cpp.llama_get_logits(context)
        logits = np.ctypeslib.as_array(pointer, (len(tokens), vocabulary))
        return logits.astype(np.float32)
    finally:
        llama_cpp.llama_batch_free(batch)


def _version(llama_cpp: Any) -> str:
    """llama.cpp's own version where it tells one, ggml's commit, and the package's version."""
    own = llama_cpp.llama_version().decode() if hasattr(llama_cpp, "llama_version") else ""
    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.glob("lib/*ggml-base*"))))
    library.ggml_commit.restype = ctypes.c_char_p
    commit = library.ggml_commit().decode()
    return f"{own} ({commit}), llama-cpp-python {version('llama-cpp-python')}".strip()


if __name__ == "__main__":
    serve(write_logits)
