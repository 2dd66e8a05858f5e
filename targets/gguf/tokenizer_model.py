"""A GGUF model with the tokenizer and the chat templates of another, and next to no weights.

llama.cpp's server reads templates from a model that it loads whole. What it makes of them depends on the keys
``tokenizer.*`` alone. So these go, byte for byte, into a model of one layer whose weights are zeros. It loads
at once, whatever the size of the other.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import gguf

from converter.errors import CheckpointError
from targets.gguf.metadata import read_entries
from targets.gguf.reading import split_files
from targets.writing import destination_error

TEMPLATE: Final = "tokenizer.chat_template"
_TOKENS: Final = "tokenizer.ggml.tokens"
_VERSION: Final = 3
_ARCHITECTURE: Final = "llama"
#: Size of everything that has one: hidden states, the head, the feed-forward layer.
_WIDTH: Final = 32
_CONTEXT: Final = 512
_VALUES: Final = (
    ("context_length", _CONTEXT),
    ("embedding_length", _WIDTH),
    ("feed_forward_length", _WIDTH),
    ("block_count", 1),
    ("attention.head_count", 1),
)
_EPSILON: Final = 1e-6
_MATRICES: Final = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_VECTORS: Final = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")


def write_tokenizer_model(artifact: Path, path: Path, template: str | None = None) -> None:
    """Write a model with the tokenizer of the model whose (first) file is ``artifact`` to ``path``, and with
    ``template`` instead of its chat template if one is given.

    Its weights are a hole in the file where the file system has such. Raises ``CheckpointError`` for a
    damaged artifact and ``DestinationError`` if ``path`` cannot be written.
    """
    contents = read_entries(split_files(artifact)[0])
    entries = [(key, value) for key, value in contents.entries if key.startswith("tokenizer.")]
    if template is not None:
        entries = [one for one in entries if one[0] != TEMPLATE]
        entries.append((TEMPLATE, struct.pack("<I", gguf.GGUFValueType.STRING) + _text(template)))
    tokens = next((value for key, value in entries if key == _TOKENS), None)
    if tokens is None:
        raise CheckpointError(f"{artifact}: has no {_TOKENS}")
    shapes = _shapes(int.from_bytes(tokens[8:16], "little"))
    head = _header([*_hyperparameters(), *entries], shapes)
    begin = -(-len(head) // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT
    try:
        with path.open("wb") as stream:
            stream.write(head)
            stream.truncate(begin + sum(_bytes(shape) for shape in shapes.values()))
    except OSError as error:
        raise destination_error(path, error) from error


def _hyperparameters() -> list[tuple[str, bytes]]:
    texts = [("general.architecture", _ARCHITECTURE)]
    entries = [(key, struct.pack("<I", gguf.GGUFValueType.STRING) + _text(text)) for key, text in texts]
    for name, value in _VALUES:
        entries.append((f"{_ARCHITECTURE}.{name}", struct.pack("<II", gguf.GGUFValueType.UINT32, value)))
    epsilon = struct.pack("<If", gguf.GGUFValueType.FLOAT32, _EPSILON)
    return [*entries, (f"{_ARCHITECTURE}.attention.layer_norm_rms_epsilon", epsilon)]


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Every tensor with its dimensions, the columns first."""
    matrices = {f"blk.0.{name}": (_WIDTH, _WIDTH) for name in _MATRICES}
    vectors = {name: (_WIDTH,) for name in _VECTORS}
    return {"token_embd": (_WIDTH, vocabulary), **matrices, **vectors}


def _bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a float32 tensor; all are multiples of the alignment."""
    size = 4
    for dimension in shape:
        size *= dimension
    return size


def _header(entries: list[tuple[str, bytes]], shapes: dict[str, tuple[int, ...]]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(shapes), len(entries))]
    for key, value in entries:
        parts += [_text(key), value]
    offset = 0
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType.F32
        place = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        parts += [_text(f"{name}.weight"), place]
        offset += _bytes(shape)
    return b"".join(parts)


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data
