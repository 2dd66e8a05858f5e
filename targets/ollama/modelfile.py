"""Modelfiles, written and read by Ollama's grammar (``docs/modelfile.mdx`` and ``parser/parser.go``).

A command is a word, a space and a value up to the end of the line. A value in one or three double quotes
may span lines. It ends at the first line end (or the file's end) before which the text, without trailing
space, ends in the same quotes. There are no escapes, and characters that Go does not call printable are
dropped, but for space, tab and line ends. Values that cannot be written so are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from converter.errors import CheckpointError, UsageError
from targets.ollama.printable import is_kept

_SINGLE: Final = ("renderer", "parser", "template", "system", "adapter", "draft", "requires")
_COMMANDS: Final = frozenset(("from", "license", "parameter", "message", *_SINGLE))
_ROLES: Final = ("system", "user", "assistant")
_VERSION: Final = re.compile(r"v?[0-9]+(\.[0-9]+){0,2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
#: Values that stand for themselves, without quotes.
_BARE: Final = re.compile(r"[0-9A-Za-z_./~+-][0-9A-Za-z_.,:/@+-]*")


@dataclass(frozen=True, slots=True)
class Modelfile:
    """The commands of a Modelfile. Fields without a word of their own are the values of the commands of the
    same name."""

    #: FROM's value, a path relative to the Modelfile or a model's name.
    model: str
    #: (name, value) pairs, in which ``stop`` may come several times.
    parameters: tuple[tuple[str, str], ...] = ()
    renderer: str | None = None
    parser: str | None = None
    template: str | None = None
    system: str | None = None
    adapter: str | None = None
    draft: str | None = None
    requires: str | None = None
    licenses: tuple[str, ...] = ()
    #: (role, text) pairs.
    messages: tuple[tuple[str, str], ...] = field(default=())


def write_modelfile(modelfile: Modelfile) -> str:
    """The text of a Modelfile, such that ``parse_modelfile`` gives ``modelfile`` again.

    Raises ``UsageError`` for a value that the grammar has no way to write, a parameter's name that is none,
    an unknown role and a version that is none.
    """
    lines = [f"FROM {_quoted('FROM', modelfile.model)}"]
    for command in ("renderer", "parser", "template"):
        lines += _line(command, getattr(modelfile, command))
    for name, value in modelfile.parameters:
        if not re.fullmatch(r"[0-9A-Za-z_]+", name):
            raise UsageError(f"Modelfile: {name!r} is no parameter's name")
        lines.append(f"PARAMETER {name} {_quoted(f'PARAMETER {name}', value)}")
    for command in ("system", "adapter", "draft"):
        lines += _line(command, getattr(modelfile, command))
    for role, text in modelfile.messages:
        if role not in _ROLES:
            raise UsageError(f"Modelfile: {role!r} is no role (known: {', '.join(_ROLES)})")
        lines.append(f"MESSAGE {role} {_quoted('MESSAGE', text)}")
    if modelfile.requires is not None and not _VERSION.fullmatch(modelfile.requires):
        raise UsageError(f"Modelfile: REQUIRES takes a version such as 0.20.0, not {modelfile.requires!r}")
    lines += _line("requires", modelfile.requires)
    for text in modelfile.licenses:
        lines += _line("license", text)
    return "\n".join(lines) + "\n"


def parse_modelfile(text: str) -> Modelfile:
    """The commands of a Modelfile, as Ollama understands them: of a command that may come once, the last
    counts. Raises ``CheckpointError`` that names the line of a command that Ollama would refuse."""
    single: dict[str, str] = {}
    parameters: list[tuple[str, str]] = []
    messages: list[tuple[str, str]] = []
    licenses: list[str] = []
    model = None
    for name, key, value in _commands(text.removeprefix("\ufeff")):
        if name == "from":
            model = value
        elif name == "parameter":
            parameters.append((key, value))
        elif name == "message":
            messages.append((key, value))
        elif name == "license":
            licenses.append(value)
        else:
            single[name] = value
    if model is None:
        raise CheckpointError("Modelfile: has no FROM line")
    return Modelfile(
        model, tuple(parameters), licenses=tuple(licenses), messages=tuple(messages), **single
    )  # fmt: skip


def _line(command: str, value: str | None) -> list[str]:
    return [] if value is None else [f"{command.upper()} {_quoted(command.upper(), value)}"]


def _quoted(command: str, value: str) -> str:
    """``value`` as it stands in a Modelfile: bare if it is one plain word, in three quotes if it has lines or
    quotes of its own, as the documentation shows it, else in one. What the grammar gives back is decided by
    the parser itself."""
    bare = (value,) if _BARE.fullmatch(value) else ()
    quoted = (f'"{value}"', f'"""{value}"""')
    if "\n" in value or '"' in value:
        quoted = (quoted[1], quoted[0])
    candidates: tuple[str, ...] = (*bare, *quoted, value)
    for candidate in candidates:
        if _read_back(candidate) == value:
            return candidate
    dropped = next((letter for letter in value if not is_kept(letter)), None)
    if dropped is not None:
        raise UsageError(f"Modelfile: {command} cannot hold the character U+{ord(dropped):04X}; remove it")
    raise UsageError(
        f"Modelfile: {command} cannot be quoted, because a line of it ends in quotes that would end the value"
    )


def _read_back(written: str) -> str | None:
    """The value that a parser finds in ``written`` as the rest of a line, ``None`` if another or none."""
    line = f"{written}\n"
    try:
        value, end = _value(line, 0)
    except CheckpointError:
        return None
    return value if end == len(line) else None


def _commands(text: str) -> Iterator[tuple[str, str, str]]:
    """Every command in lower case, a parameter's name or a message's role (else empty), and the value."""
    place = 0
    while (place := _next_command(text, place)) < len(text):
        name, place = _word(text, place, r"[A-Za-z]*")
        if name.lower() not in _COMMANDS:
            raise _error(text, place, f"{name!r} is no command")
        key = ""
        if name.lower() == "parameter":
            key, place = _word(text, place, r"[0-9A-Za-z_]*")
            if not key:
                raise _error(text, place - 1, "one space must precede a parameter's name")
        elif name.lower() == "message":
            key, place = _word(text, place, r"[A-Za-z]*")
            if key not in _ROLES:
                raise _error(text, place, f"{key!r} is no role")
        value, place = _value(text, place)
        yield name.lower(), key, value


def _next_command(text: str, place: int) -> int:
    """Where the next command begins, behind blank space and comments."""
    match = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*(?:[\r\n]|$))*").match(text, place)
    assert match is not None
    return match.end()


def _word(text: str, place: int, pattern: str) -> tuple[str, int]:
    """A word, which a space or a tab must follow, and where the rest begins."""
    match = re.compile(pattern).match(text, place)
    assert match is not None
    if text[match.end() : match.end() + 1] not in (" ", "\t"):
        raise _error(text, place, f"a space must follow {match[0]!r}")
    return str(match[0]), match.end() + 1


def _value(text: str, place: int) -> tuple[str, int]:
    """The value that begins at ``place``, and where the next line begins."""
    end = place
    while True:
        match = re.compile(r"[\r\n]").search(text, end)
        stop = match.start() if match else len(text)
        value = _unquoted("".join(filter(is_kept, text[place:stop])).strip())
        if value is not None:
            return value, min(stop + 1, len(text))
        if match is None:
            raise _error(text, place, "a quoted value does not end")
        end = stop + 1


def _unquoted(value: str) -> str | None:
    """The value without its quotes, ``None`` if the closing ones are not there yet."""
    if value.startswith('"""'):
        return value[3:-3] if len(value) >= 6 and value.endswith('"""') else None
    if value.startswith('"'):
        return value[1:-1] if len(value) >= 2 and value.endswith('"') else None
    return value


def _error(text: str, place: int, what: str) -> CheckpointError:
    line = len(re.findall(r"[\r\n]", text[:place])) + 1
    return CheckpointError(f"Modelfile: line {line}: {what}")
