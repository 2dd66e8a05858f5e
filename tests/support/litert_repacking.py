"""Bundles with other sections than the target wrote."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

from targets.litert.bundle import Section, read_sections, write_bundle

TOKENIZER = "HF_Tokenizer_Zlib"


def repack(bundle: Path, destination: Path, kind: str, change: Callable[[bytes], bytes]) -> Path:
    """Write ``bundle`` to ``destination``, the section ``kind`` with what ``change`` makes of it."""
    data = bundle.read_bytes()
    sections = []
    for section in read_sections(bundle):
        content = data[section.offset : section.offset + section.size]
        content = change(content) if section.kind == kind else content
        sections.append(Section(section.kind, content, section.model_type))
    write_bundle(destination, sections)
    return destination


def edit_tokenizer(edit: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A change to the text of ``tokenizer.json`` in a section of the kind ``TOKENIZER``."""

    def change(content: bytes) -> bytes:
        text = edit(zlib.decompress(content[8:]))
        return len(text).to_bytes(8, "little") + zlib.compress(text)

    return change
