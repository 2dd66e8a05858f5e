"""Run as a script: loads a GGUF file in llama.cpp and prints what it found as JSON.

A process of its own, because llama.cpp ends the process on a failed assertion. Request on standard input:
``{"path", "texts", "run"}``. Answer: ``{"ids": [[...], ...], "pieces": [...], "metadata": {...}}``,
the token ids of each text (special tokens parsed, beginning of sequence added), their text when they are
detokenised, and the file's metadata.
"""

from __future__ import annotations

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
    json.dump({"ids": ids, "pieces": pieces, "metadata": llama.metadata}, sys.stdout)


if __name__ == "__main__":
    main()
