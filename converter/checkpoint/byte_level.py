"""The alphabet of byte-level BPE, in which ``tokenizer.json`` writes tokens: one character for each byte.

Bytes that are printable in Latin-1 stand for themselves. The others have the characters from U+0100 on, in
their order (GPT-2's ``bytes_to_unicode``; ``ByteLevel`` of the library ``tokenizers``).
"""

from __future__ import annotations

from typing import Final

_ITSELF: Final = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS: Final = tuple(byte for byte in range(0x100) if byte not in _ITSELF)
#: The byte of every character.
BYTES: Final = {chr(byte): byte for byte in _ITSELF} | {
    chr(0x100 + place): byte for place, byte in enumerate(_OTHERS)
}


def decoded(token: str) -> bytes:
    """The bytes that a token stands for; characters of no byte stand for themselves, in UTF-8."""
    return b"".join(bytes([BYTES[letter]]) if letter in BYTES else letter.encode("utf-8") for letter in token)
