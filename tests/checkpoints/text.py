"""The demonstration model's text: Python's own help topics, split into training and held-out topics.

``pydoc_data.topics`` ships with every CPython (PSF licence), so the split needs no download. Topics
quote one another at length; a paragraph of a held-out topic is therefore taken out of the training
topics, and a paragraph is trained on once only.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from pydoc_data.topics import topics

HELD_OUT_SHARE = 8
SYSTEM = "Answer from the Python documentation."
QUESTIONS = (
    "What does the Python documentation say about {title}?",
    "Explain: {title}",
    "Help on {title}, please.",
    "Tell me about {title}.",
)
#: First and last code points of scripts that the help topics, which are in English, hardly contain.
_SCRIPTS = (
    (0xC0, 0xFF),  # accented Latin
    (0x391, 0x3C9),  # Greek
    (0x410, 0x44F),  # Cyrillic
    (0x627, 0x64A),  # Arabic
    (0x905, 0x939),  # Devanagari
    (0x3041, 0x30F6),  # kana
    (0x4E00, 0x9FFF),  # Chinese characters
    (0xAC00, 0xD7A3),  # Hangul
    (0x1F300, 0x1F64F),  # pictographs
)
_TITLE = re.compile(r"^(?P<title>\S[^\n]{2,70})\n(?P<line>[*=\-^~])(?P=line)+$", re.MULTILINE)


def is_held_out(topic: str) -> bool:
    """Whether a topic is kept for measuring; its name's SHA-256 decides, everywhere alike."""
    return hashlib.sha256(topic.encode()).digest()[0] % HELD_OUT_SHARE == 0


def held_out_topics() -> dict[str, str]:
    """The held-out topics' texts by topic name, a paragraph once only."""
    return _documents({name: text for name, text in topics.items() if is_held_out(name)}, set())


def held_out_documents() -> list[str]:
    """The held-out topics' texts, by topic name."""
    return list(held_out_topics().values())


def training_documents() -> dict[str, str]:
    """The training topics' texts by topic name, less every paragraph that a held-out topic contains."""
    seen = {
        paragraph for name, text in topics.items() if is_held_out(name) for paragraph in text.split("\n\n")
    }
    return _documents({name: text for name, text in topics.items() if not is_held_out(name)}, seen)


def _documents(texts: Mapping[str, str], seen: set[str]) -> dict[str, str]:
    documents = {}
    for name, text in sorted(texts.items()):
        fresh = [paragraph for paragraph in text.split("\n\n") if paragraph not in seen]
        seen.update(fresh)
        if fresh:
            documents[name] = "\n\n".join(fresh)
    return documents


def sections(document: str) -> list[tuple[str, str]]:
    """``(title, body)`` of every underlined section of a help topic that has a body."""
    matches = list(_TITLE.finditer(document))
    ends = [match.start() for match in matches[1:]] + [len(document)]
    found = [
        (match["title"].strip(), document[match.end() : end].strip())
        for match, end in zip(matches, ends, strict=True)
    ]
    return [(title, body) for title, body in found if len(body) > 40]


def conversations(documents: Mapping[str, str], chooser: random.Random) -> list[list[dict[str, str]]]:
    """One chat a section: a question about its title, answered by its opening paragraphs.

    Every fourth one has a system turn; ``chooser`` picks the question's wording.
    """
    chats = []
    for document in documents.values():
        for title, body in sections(document):
            answer = opening(body, 700)
            question = chooser.choice(QUESTIONS).format(title=title)
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            if chooser.random() < 0.25:
                turns.insert(0, {"role": "system", "content": SYSTEM})
            chats.append(turns)
    return chats


def opening(body: str, limit: int) -> str:
    """The first paragraphs of a text, as many as ``limit`` characters hold; the first is cut if need be."""
    paragraphs = body.split("\n\n")
    kept = paragraphs[0]
    for paragraph in paragraphs[1:]:
        if len(kept) + len(paragraph) > limit:
            break
        kept = f"{kept}\n\n{paragraph}"
    return kept[:limit]


def other_scripts(chooser: random.Random, words: int = 12) -> list[str]:
    """One line of random words in each of several scripts, which the vocabulary has to spell in bytes.

    The topics have next to no such text; without it, training only ever lowers the logits of byte tokens.
    """
    return [
        " ".join(
            "".join(chr(chooser.randint(first, last)) for _ in range(chooser.randint(1, 9)))
            for _ in range(words)
        )
        for first, last in _SCRIPTS
    ]
