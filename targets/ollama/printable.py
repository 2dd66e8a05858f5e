"""What Go prints: which characters Ollama's parser keeps of a Modelfile.

``strconv.IsPrint`` knows letters, marks, numbers, punctuation, symbols and the plain space, by Unicode 15.0
(https://pkg.go.dev/strconv#IsPrint). The parser keeps tabs and line ends too, and drops the rest.
"""

from __future__ import annotations

import unicodedata
from typing import Final

_PRINTED: Final = frozenset("LMNPS")
#: What stands for a character that is dropped, by its category: separators of words, lines and paragraphs.
_SEPARATORS: Final = {"Zs": " ", "Zl": "\n", "Zp": "\n\n"}
#: First and last of the characters that Unicode 15.0 has and 14.0, which Python 3.11 knows, has not.
_UNICODE_15: Final = (
    (0xCF3, 0xCF3),
    (0xECE, 0xECE),
    (0x10EFD, 0x10EFF),
    (0x1123F, 0x11241),
    (0x11B00, 0x11B09),
    (0x11F00, 0x11F10),
    (0x11F12, 0x11F3A),
    (0x11F3E, 0x11F59),
    (0x1342F, 0x1342F),
    (0x13440, 0x13455),
    (0x1B132, 0x1B132),
    (0x1B155, 0x1B155),
    (0x1D2C0, 0x1D2D3),
    (0x1DF25, 0x1DF2A),
    (0x1E030, 0x1E06D),
    (0x1E08F, 0x1E08F),
    (0x1E4D0, 0x1E4F9),
    (0x1F6DC, 0x1F6DC),
    (0x1F774, 0x1F776),
    (0x1F77B, 0x1F77F),
    (0x1F7D9, 0x1F7D9),
    (0x1FA75, 0x1FA77),
    (0x1FA87, 0x1FA88),
    (0x1FAAD, 0x1FAAF),
    (0x1FABB, 0x1FABD),
    (0x1FABF, 0x1FABF),
    (0x1FACE, 0x1FACF),
    (0x1FADA, 0x1FADB),
    (0x1FAE8, 0x1FAE8),
    (0x1FAF7, 0x1FAF8),
    (0x31350, 0x323AF),
)


def is_kept(letter: str) -> bool:
    """Whether the parser keeps a character."""
    if letter in " \t\r\n":
        return True
    category = unicodedata.category(letter)
    if category == "Cn":
        return any(first <= ord(letter) <= last for first, last in _UNICODE_15)
    return category[0] in _PRINTED


def printed(text: str) -> str:
    """``text`` with nothing in it that the parser drops. Other spaces, such as the no-break one, and other
    line ends become plain ones. Soft hyphens, joiners and control characters are left out."""
    return "".join(one if is_kept(one) else _SEPARATORS.get(unicodedata.category(one), "") for one in text)
