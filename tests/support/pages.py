"""Pages of the documentation: the commands in them, what they show, and what was printed instead."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
#: A line of a table of figures up to the number.
_DIVERGENCE = r"^ *mean KLD +\d+\.\d+"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: str) -> list[tuple[str, str]]:
    """Commands of a page with the output that it shows, in order."""
    found = []
    for block in _BLOCK.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            more = list(takewhile(lambda line: line.startswith("> "), lines[1:]))
            command = "\n".join([lines[0], *(line[2:] for line in more)])
            found.append((command, "\n".join(lines[1 + len(more) :]).rstrip()))
    return found


def matches(shown: str, printed: str, share: float = 0.0) -> bool:
    """Whether ``printed`` is what the page shows, ``...`` standing for anything; trailing blanks apart.

    A divergence may be another number by that ``share`` of the one shown: processors round logits otherwise.
    All else is the same, blocks and sizes too.
    """

    def stripped(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    expected: list[float] = []
    pattern = ""
    for part in re.split(rf"(\.\.\.|{_DIVERGENCE})", stripped(shown), flags=re.MULTILINE):
        if part == "...":
            pattern += ".*?"
        elif re.match(_DIVERGENCE, part):
            expected.append(float(part.split()[-1]))
            pattern += re.escape(part.rstrip("0123456789.")) + r"(\d+\.\d+)"
        else:
            pattern += re.escape(part)
    found = re.fullmatch(pattern, stripped(printed), re.DOTALL)
    if found is None:
        return False
    return all(
        abs(float(number) - right) <= share * right
        for number, right in zip(found.groups(), expected, strict=True)
    )
