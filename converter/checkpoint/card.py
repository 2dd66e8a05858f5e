"""The model card: what the front matter of a ``README.md`` says of licence, languages and origin.

The front matter is YAML between two lines of three hyphens at the file's beginning
(https://huggingface.co/docs/hub/model-cards). It describes the model and decides nothing, so one that cannot
be read is left out with a warning. Scalars are read as plain text: no tag makes an object, and ``no`` stays a
language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

import yaml

from converter.checkpoint.documents import Files
from converter.errors import CheckpointError
from converter.system.untrusted import kind, shown

NAME: Final = "README.md"
#: Longest front matter in bytes; the parser takes a second for this much.
LONGEST: Final = 64 << 10
_LONGEST_TEXT: Final = 1024
_MOST_TEXTS: Final = 256
_FENCE: Final = "---"


@dataclass(frozen=True, slots=True)
class Card:
    """What a model card says, each field empty where it says nothing."""

    #: The model's.
    name: str | None = None
    license: str | None = None
    #: ``license_name`` and ``license_link`` are for ``license: other``.
    license_name: str | None = None
    license_link: str | None = None
    #: Their codes.
    languages: tuple[str, ...] = ()
    #: The pipeline's is among them.
    tags: tuple[str, ...] = ()
    #: Repositories or addresses of what the model was made from.
    base_models: tuple[str, ...] = ()
    #: The card, where there is one.
    file: Path | None = None
    #: Lines about what of it is left out.
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """What it says, without what it says nothing of."""
        said = {
            "license": self.license,
            "license_name": self.license_name,
            "license_link": self.license_link,
            "languages": list(self.languages),
            "base_models": list(self.base_models),
        }
        return {key: value for key, value in said.items() if value}


def read_card(files: Files) -> Card:
    """The model card among a checkpoint's files; an empty one without ``README.md``. Raises nothing: what
    cannot be read or has the wrong type is left out, and said in ``warnings``."""
    if NAME not in files:
        return Card()
    try:
        head = files.head(NAME, LONGEST + 1)
    except CheckpointError as error:
        return Card(warnings=(f"{NAME}: {str(error).removeprefix(f'{files.where(NAME)}: ')}",))
    path = files.path(NAME)
    try:
        text = _front_matter(head)
        values = yaml.load(text, yaml.BaseLoader) if text else {}
    except Exception as error:  # PyYAML raises more than its own errors at what strangers write
        return Card(file=path, warnings=(f"{NAME}: its front matter is left out: {_reason(error)}",))
    if not isinstance(values, dict):
        return Card(file=path, warnings=(f"{NAME}: its front matter is left out: it is no mapping",))
    return _card(path, values)


def telling_order(names: Iterable[str]) -> list[str]:
    """Names of a checkpoint's files sorted, the card last: that another one differs tells more."""
    return sorted(names, key=lambda name: (name == NAME, name))


def _front_matter(head: bytes) -> str:
    """The lines between the fences, empty without any; raises ``ValueError`` for what is none to the end."""
    start = head.removeprefix(b"\xef\xbb\xbf")
    if start.split(b"\n", 1)[0].rstrip() != _FENCE.encode():
        return ""
    whole = len(head) <= LONGEST
    # a character may be cut in two at the end of what was read, which is behind the front matter
    lines = start.decode("utf-8", "strict" if whole else "ignore").splitlines()
    for index, line in enumerate(lines[1:], 1):
        if line.rstrip() == _FENCE:
            # tabs, which YAML forbids, are common in cards
            return "\n".join(lines[1:index]).replace("\t", "  ")
    raise ValueError("it does not end" if whole else f"it has more than {LONGEST} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 2}: {error.problem}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return shown(str(error))[1:-1] or type(error).__name__


def _card(path: Path, values: Mapping[object, object]) -> Card:
    warnings: list[str] = []

    def texts(*keys: str) -> tuple[str, ...]:
        found: list[str] = []
        for key in keys:
            value = values.get(key, [])
            listed = value if isinstance(value, list) else [value]
            found += [one for one in listed if _is_text(one) and one not in ("", "~", "null")]
            for wrong in [one for one in listed if not _is_text(one)][:1]:
                # what stands for itself many times over must not be written out
                what = shown(wrong) if isinstance(wrong, str) else kind(wrong)
                warnings.append(f"{NAME}: {key} is left out where it is {what}")
        if len(found) > _MOST_TEXTS:
            warnings.append(f"{NAME}: of {len(found)} values of {keys[0]} the first {_MOST_TEXTS} are kept")
        return tuple(dict.fromkeys(found[:_MOST_TEXTS]))

    def text(*keys: str) -> str | None:
        return next(iter(texts(*keys)), None)

    return Card(
        name=text("model_name", "name"),
        license=",".join(texts("license")) or None,
        license_name=text("license_name"),
        license_link=text("license_link"),
        languages=texts("languages", "language"),
        tags=texts("tags", "pipeline_tag"),
        base_models=texts("base_model"),
        file=path,
        warnings=tuple(warnings),
    )


def _is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a line of text that any file and terminal can show."""
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.isprintable()
