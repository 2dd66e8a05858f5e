"""The JSON files of a checkpoint, and its chat template."""

from __future__ import annotations

from pathlib import Path
from random import Random

from converter.checkpoint.opened import open_checkpoint
from fuzzing import Damage, Files, Format, damages
from fuzzing.safetensors import write_small
from targets.gguf import target as gguf
from targets.litert.metadata import metadata_sections
from targets.onnx.side_files import generation_files, generation_warnings

_TEMPLATE = "chat_template.jinja"
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_GENERATION, _TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"
#: Files that a checkpoint may have beside them.
_OTHERS = {
    "special_tokens_map.json": b'{"eos_token": {"content": "<eos>"}}',
    "chat_template.json": b'{"chat_template": "x"}',
}


def damage(files: Files, random: Random) -> Damage:
    """One or two files with other contents."""
    found: dict[str, bytes | None] = {}
    for _ in range(random.choice((1, 1, 1, 2))):
        name = random.choice(
            (_CONFIG, _CONFIG, _TOKENIZER, _GENERATION, _TOKENIZER_CONFIG, _TEMPLATE, *_OTHERS)
        )
        data = files.get(name) or _OTHERS[name]
        if random.random() < 0.03:
            found[name] = None if name in files else b""
        elif name == _TEMPLATE:
            found[name] = damages.with_bytes(data, random)
        else:
            found[name] = damages.with_json(data, random)
    return found


def read(directory: Path) -> None:
    """Open the checkpoint, and make of it what targets make of its files."""
    checkpoint = open_checkpoint(directory)
    gguf.plan(checkpoint, "model", {})
    generation_files(checkpoint)
    generation_warnings(checkpoint)
    metadata_sections(checkpoint, 64)


FORMAT = Format("documents", lambda directory: write_small(directory, 1), damage, read)
