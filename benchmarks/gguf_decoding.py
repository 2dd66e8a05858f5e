"""How many tokens a second llama.cpp decodes of GGUF files, one after the other.

    python benchmarks/gguf_decoding.py FILE...

Files are measured in turns, so that what else the machine does falls on all of them alike. The best of the
rounds counts. ``--threads`` is the number of threads, ``--rounds`` and ``--tokens`` how often and how long.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from converter.system.processors import processors
from validation.runtimes.llamacpp_library import open_library
from validation.runtimes.llamacpp_model import Log, _context_params, _decode, _model_params

_PROMPT = 16


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description="Tokens a second that llama.cpp decodes.")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    llama = open_library().functions
    log = Log(llama)  # on standard error
    llama.llama_backend_init()
    contexts = {file: _context(llama, file, options.threads) for file in options.files}
    best = dict.fromkeys(options.files, 0.0)
    for _ in range(options.rounds):
        for file, context in contexts.items():
            best[file] = max(best[file], options.tokens / _seconds(llama, context, options.tokens))
    for file, speed in best.items():
        print(log.first_error or f"{file.name}: {file.stat().st_size / 1e6:.0f} MB, {speed:.1f} tokens/s")


def _context(llama: Any, file: Path, threads: int) -> Any:
    model = llama.llama_model_load_from_file(os.fsencode(file), _model_params(llama))
    return llama.llama_init_from_model(model, _context_params(llama, 512, threads))


def _seconds(llama: Any, context: Any, tokens: int) -> float:
    """What ``tokens`` tokens take behind a short prompt, one pass for each."""
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    _decode(llama, context, [2, *range(300, 299 + _PROMPT)], 0, 0, 1)
    begin = time.perf_counter()
    for index in range(tokens):
        _decode(llama, context, [400 + index], _PROMPT + index, 0, 1)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
