"""How a model wants its answers sampled, from ``generation_config.json``, as GGUF metadata."""

from __future__ import annotations

from pathlib import Path

from converter.document import Settings, read_object
from targets.gguf.header import Header, Items
from targets.ollama import read_sampling


def add_generation(header: Header, directory: Path, vocabulary: int) -> None:
    """Add the sampling that llama.cpp takes as its default, and the tokens that must never be generated (12B
    names its image and audio placeholders). Raises ``CheckpointError`` for a damaged file."""
    sampling = read_sampling(directory)
    if "temperature" in sampling:
        header.add_sampling_temp(sampling["temperature"])
    if "top_p" in sampling:
        header.add_sampling_top_p(sampling["top_p"])
    if "top_k" in sampling:
        header.add_sampling_top_k(int(sampling["top_k"]))
    suppressed = _suppressed(directory / "generation_config.json", vocabulary)
    if suppressed:
        header.add_array("tokenizer.ggml.suppress_tokens", Items(suppressed))


def _suppressed(path: Path, vocabulary: int) -> list[int]:
    if not path.exists():
        return []
    settings = Settings(read_object(path), str(path))
    listed = settings.values.get("suppress_tokens") or []
    if not isinstance(listed, list):
        raise settings.error("suppress_tokens", "is not a list of token ids")
    for index in listed:
        if type(index) is not int or not 0 <= index < vocabulary:
            raise settings.error("suppress_tokens", f"holds {index!r}, which is no token id")
    return listed
