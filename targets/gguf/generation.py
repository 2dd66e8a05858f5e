"""How a model wants its answers sampled, as GGUF metadata."""

from __future__ import annotations

from typing import Final

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.generation import Generation
from targets.gguf.header import Header, Items

#: What a GGUF tells llama.cpp beyond temperature, top_p, top_k and tokens.
HELD: Final = ("min_p", "repetition_penalty")


def add_generation(header: Header, generation: Generation, architecture: Architecture) -> None:
    """Add the sampling that llama.cpp takes as its default (what is recommended where the checkpoint says
    nothing), and the tokens that must never be generated."""
    sampling = {**architecture.sampling, **generation.sampling}
    header.add_sampling_temp(sampling["temperature"])
    header.add_sampling_top_p(sampling["top_p"])
    header.add_sampling_top_k(int(sampling["top_k"]))
    penalties = generation.penalties
    if "min_p" in penalties:
        header.add_sampling_min_p(penalties["min_p"])
    if "repetition_penalty" in penalties:
        header.add_sampling_penalty_repeat(penalties["repetition_penalty"])
        header.add_sampling_penalty_last_n(-1)  # the whole text, as in transformers
    if generation.suppressed:
        header.add_array("tokenizer.ggml.suppress_tokens", Items(generation.suppressed))
