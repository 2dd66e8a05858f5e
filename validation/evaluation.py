"""Which text a model is judged on: the user's, else the checkpoint's own, else the one that ships.

A checkpoint brings its own in ``evaluation_text.json``, so that it is judged on what it knows::

    {"about": "where it is from",
     "passages": [{"kind": "prose", "text": "..."},
                  {"kind": "chat", "turns": [{"role": "user", "content": "..."}]}],
     "gates": {"gguf": {"mean_kld": 0.0002}}}

``gates`` are limits by target that this model keeps on this text; ``onnx with grids`` has those of artifacts
that apply static grids of activations, for which ``onnx`` has none. They may be narrower than the general
ones and never wider. The file is a stranger's, like all of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from converter.errors import CheckpointError
from converter.filenames import EVALUATION_TEXT
from converter.system.untrusted import Settings, kind
from validation.limits import KNOWN
from validation.text import Passage, digest, read_passages

#: Most passages of a checkpoint's own file, turns of a chat, and characters of a kind's or a role's name:
#: each passage is tokenised, and each chat rendered, by a template that may be slow.
MOST_PASSAGES: Final = 64
MOST_TURNS: Final = 64
LONGEST_NAME: Final = 40
SHIPPED: Final = "the built-in text"
OWN: Final = f"the checkpoint's {EVALUATION_TEXT}"
#: What follows a target's name in ``gates``, for artifacts that apply static grids of activations.
WITH_GRIDS: Final = " with grids"


@dataclass(frozen=True)
class Evaluation:
    """A text to judge a model on."""

    passages: tuple[Passage, ...]
    #: What the text is called in reports.
    name: str
    #: Limits of gates that come with it, by target.
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Of the passages, to tell one text from another."""
        return digest(self.passages)


def find_evaluation(own: Callable[[], Settings | None], text: Path | None = None) -> Evaluation:
    """The text to judge a checkpoint on: the file ``text`` where the user gave one, else what ``own`` reads,
    the checkpoint's own text (``Checkpoint.evaluation``).

    Raises ``UsageError`` for a ``text`` that cannot be read and ``CheckpointError`` for a file of the
    checkpoint's own that is none.
    """
    if text is not None:
        return Evaluation(read_passages(text), "--text")
    document = own()
    return Evaluation(read_passages(), SHIPPED) if document is None else read_own(document)


def read_own(document: Settings) -> Evaluation:
    """The text and the limits in a checkpoint's file. Raises ``CheckpointError``."""
    _only(document, "about", "passages", "gates")
    document.text("about", "")
    passages = [_passage(entry) for entry in _entries(document, "passages", MOST_PASSAGES)]
    return Evaluation(tuple(passages), OWN, _limits(document))


def _passage(entry: Settings) -> Passage:
    """One passage: text, or turns of a chat."""
    _only(entry, "kind", "text", "turns")
    name = _name(entry, "kind")
    if ("text" in entry.values) == ("turns" in entry.values):
        raise entry.error("text", "and turns: one of both is expected")
    if "text" in entry.values:
        return Passage(name, text=_content(entry, "text"))
    turns = _entries(entry, "turns", MOST_TURNS)
    for turn in turns:
        _only(turn, "role", "content")
    return Passage(name, turns=tuple((_name(turn, "role"), _content(turn, "content")) for turn in turns))


def _limits(document: Settings) -> dict[str, dict[str, float]]:
    """Limits by target and gate."""
    gates = document.section("gates")
    found: dict[str, dict[str, float]] = {}
    for target in gates.values if gates is not None else ():
        own = gates.section(target) if gates is not None else None
        if own is None:
            continue
        for name in own.values:
            if name not in KNOWN:
                raise own.error(name, f"is no gate; known: {', '.join(KNOWN)}")
        found[target] = {name: own.number(name, positive=False) for name in own.values}
    return found


def _entries(settings: Settings, key: str, most: int) -> list[Settings]:
    """A list of between one and ``most`` objects."""
    values = settings.values.get(key)
    if not isinstance(values, list) or not values:
        found = kind(values) if key in settings.values else "missing"
        raise settings.error(key, f"is {found}, expected a list that is not empty")
    if len(values) > most:
        raise settings.error(key, f"has {len(values)} entries, more than {most}")
    where = str(settings.error(key, "")).rstrip()
    entries = []
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise CheckpointError(f"{where}[{index}] is {kind(value)}, expected an object")
        entries.append(Settings(value, f"{where}[{index}]"))
    return entries


def _content(settings: Settings, key: str) -> str:
    """Text that is not empty and that UTF-8 can hold."""
    text = settings.text(key, "")
    if not text.strip():
        raise settings.error(key, "holds no text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise settings.error(key, f"has half a surrogate pair at character {error.start}") from error
    return text


def _name(settings: Settings, key: str) -> str:
    """A short name that can be printed."""
    name = _content(settings, key)
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise settings.error(key, f"is no name of at most {LONGEST_NAME} printable characters")
    return name


def _only(settings: Settings, *known: str) -> None:
    """Refuse keys that mean nothing: a limit that is misspelt would never be kept."""
    unknown: Sequence[str] = [key for key in settings.values if key not in known]
    if unknown:
        raise settings.error(ascii(unknown[0])[1:41].rstrip("'"), f"is unknown; known: {', '.join(known)}")
