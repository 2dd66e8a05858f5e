"""Run as a script: loads a GGUF file in llama.cpp and prints what it found as JSON.

A process of its own, because llama.cpp ends the process on a failed assertion. Request on standard input:
``{"path", "texts", "run"}``. Answer: ``{"ids", "pieces", "metadata", "ends", "suppressed"}``, the token ids
of each text (special tokens parsed, beginning of sequence added), their text when they are detokenised, the
file's metadata, all ids that end an answer, and those that its sampling never takes.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

from validation.runtimes.llamacpp_library import open_library


def main() -> None:
    request = json.load(sys.stdin)
    llama = open_library().functions
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    params.vocab_only = not request["run"]
    model = llama.llama_model_load_from_file(os.fsencode(request["path"]), params)
    if not model:
        raise ValueError(f"{request['path']}: llama.cpp cannot load it")
    vocabulary = llama.llama_model_get_vocab(model)
    ids = [tokens(llama, vocabulary, text.encode("utf-8")) for text in request["texts"]]
    pieces = [b"".join(piece(llama, vocabulary, token) for token in one[1:]) for one in ids]
    count = llama.llama_vocab_n_tokens(vocabulary)
    if request["run"]:
        run(llama, model, [llama.llama_vocab_bos(vocabulary), 7, 8, 9])
    answer = {
        "ids": ids,
        "pieces": [one.decode("utf-8", "replace") for one in pieces],
        "metadata": metadata(llama, model),
        "ends": [id for id in range(count) if llama.llama_vocab_is_eog(vocabulary, id)],
        "suppressed": suppressed(llama, vocabulary),
    }
    json.dump(answer, sys.stdout)


def suppressed(llama: Any, vocabulary: Any) -> list[int]:
    count = ctypes.c_int32()
    listed = llama.llama_vocab_get_suppress_tokens(vocabulary, ctypes.byref(count))
    return list(listed[: count.value])


def tokens(llama: Any, vocabulary: Any, text: bytes) -> list[int]:
    room = len(text) + 2
    found = (ctypes.c_int32 * room)()
    count = llama.llama_tokenize(vocabulary, text, len(text), found, room, True, True)
    assert count >= 0, text
    return list(found[:count])


def piece(llama: Any, vocabulary: Any, token: int) -> bytes:
    buffer = ctypes.create_string_buffer(1024)
    count = llama.llama_token_to_piece(vocabulary, token, buffer, len(buffer), 0, True)
    assert count >= 0, token
    return buffer.raw[:count]


def run(llama: Any, model: Any, ids: list[int]) -> None:
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = 64
    context = llama.llama_init_from_model(model, params)
    assert context
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index] = token, index
        batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, True
    status = llama.llama_decode(context, batch)
    assert status == 0, status
    llama.llama_batch_free(batch)
    llama.llama_free(context)


def metadata(llama: Any, model: Any) -> dict[str, str]:
    def read(function: Any, index: int) -> str:
        size = function(model, index, ctypes.create_string_buffer(1), 1) + 1
        buffer = ctypes.create_string_buffer(size)
        function(model, index, buffer, size)
        return buffer.value.decode("utf-8", "replace")

    return {
        read(llama.llama_model_meta_key_by_index, index): read(llama.llama_model_meta_val_str_by_index, index)
        for index in range(llama.llama_model_meta_count(model))
    }


if __name__ == "__main__":
    main()
