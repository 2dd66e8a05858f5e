"""Pages of the documentation: the commands in them, what they show, and what was printed instead."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
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


def matches(shown: str, printed: str) -> bool:
    """Whether ``printed`` is what the page shows, ``...`` standing for anything; trailing blanks apart."""

    def stripped(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    pattern = ".*?".join(re.escape(part) for part in re.split(r"\.\.\.", stripped(shown)))
    return re.fullmatch(pattern, stripped(printed), re.DOTALL) is not None
