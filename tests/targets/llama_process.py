"""Run as a script: loads a GGUF file in llama.cpp and prints what it found as JSON.

A process of its own, because llama.cpp ends the process on a failed assertion. Request on standard input:
``{"path", "texts", "run"}``. Answer: ``{"ids", "pieces", "metadata", "ends", "suppressed"}``, the token ids
of each text (special tokens parsed, beginning of sequence added), their text when they are detokenised, the
file's metadata, all ids that end an answer, and those that its sampling never takes.
"""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp


def main() -> None:
    request = json.load(sys.stdin)
    llama = llama_cpp.Llama(
        request["path"], n_ctx=64, n_batch=64, vocab_only=not request["run"], verbose=True, n_gpu_layers=0
    )
    ids = [llama.tokenize(text.encode("utf-8"), add_bos=True, special=True) for text in request["texts"]]
    pieces = [llama.detokenize(one[1:], special=True).decode("utf-8", "replace") for one in ids]
    if request["run"]:
        llama.eval([llama.token_bos(), 7, 8, 9])
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    ends = [id for id in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, id)]
    answer = {"ids": ids, "pieces": pieces, "metadata": llama.metadata, "ends": ends}
    json.dump({**answer, "suppressed": suppressed(vocabulary)}, sys.stdout)


def suppressed(vocabulary: object) -> list[int]:
    """Of llama.cpp's own list, for which llama-cpp-python 0.3.36 has no binding."""
    get = llama_cpp.llama_cpp._lib.llama_vocab_get_suppress_tokens
    get.argtypes, get.restype = (
        [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32)],
        ctypes.POINTER(ctypes.c_int32),
    )
    count = ctypes.c_int32()
    listed = get(vocabulary, ctypes.byref(count))
    return listed[: count.value]


if __name__ == "__main__":
    main()
