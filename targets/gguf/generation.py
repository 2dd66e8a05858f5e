"""How a model wants its answers sampled, as GGUF metadata."""

from __future__ import annotations

from pathlib import Path

from targets.gguf.header import Header, Items
from targets.sampling import read_sampling, read_suppressed


def add_generation(header: Header, directory: Path, vocabulary: int) -> None:
    """Add the sampling that llama.cpp takes as its default, and the tokens that must never be generated.
    Raises ``CheckpointError`` for a damaged file."""
    sampling = read_sampling(directory)
    if "temperature" in sampling:
        header.add_sampling_temp(sampling["temperature"])
    if "top_p" in sampling:
        header.add_sampling_top_p(sampling["top_p"])
    if "top_k" in sampling:
        header.add_sampling_top_k(int(sampling["top_k"]))
    suppressed = read_suppressed(directory, vocabulary)
    if suppressed:
        header.add_array("tokenizer.ggml.suppress_tokens", Items(suppressed))
