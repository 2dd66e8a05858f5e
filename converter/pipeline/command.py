"""The command line that a report names: what was asked for, in one form, so that it makes the same again.

Places on the machine are no part of it. A directory or a file stands there by its own name, where the output
goes is left to whoever runs it, and what lays the result out elsewhere is left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from converter.names import printable, read_mapping
from converter.pipeline.opening import Model
from converter.pipeline.running import Conversion
from targets.options import Option, declarations, offered

#: What stands for a file of which the content is known alone.
_FILE: Final = "FILE"
#: What stands for a conversion's output directory.
_OUT: Final = "OUT"


def convert_command(request: Conversion, model: Model) -> str:
    """A command line for a POSIX shell that makes the conversion of ``model`` again."""
    words = ["qatconvert", "convert", _model(model)]
    words += [word for target in dict.fromkeys(request.targets) for word in ("--target", target)]
    words += _declared(request.options, runtimes=False)
    words += ["--no-validate"] if request.validation is None else _validation(request.validation)
    return _joined(words)


def validate_command(artifacts: Sequence[Path], model: Model, settings: Mapping[str, Any]) -> str:
    """A command line for a POSIX shell that validates ``artifacts`` again: one, or all of an output
    directory, for which ``OUT`` stands."""
    given = printable(artifacts[0].name) if len(artifacts) == 1 else _OUT
    words = ["qatconvert", "validate", given, "--reference", _model(model)]
    return _joined([*words, *_validation(settings)])


def _model(model: Model) -> str:
    """The MODEL argument: a repository by its commit, under the short name by which files are named unless
    only this user has it; a directory by its own name."""
    source = model.source
    if source.repo is None:
        name = source.path.resolve().name if source.path is not None else source.name
        return source.alias or f"./{printable(name) or source.name}"
    name = source.alias if source.alias and source.alias not in read_mapping() else source.repo
    return f"{name}@{model.place.revision}" if model.place.revision else name


def _declared(given: Mapping[str, object], *, runtimes: bool) -> Iterator[str]:
    """The options of targets or runtimes in ``given``, by name, that the command line has and that are not
    at their defaults."""
    for one in offered(declarations()[0]):
        option, value = one.option, given.get(one.option.name)
        absent = value is None or value is False or value == option.default
        if absent or one.runtime != runtimes or not option.flags or option.outside:
            continue
        for each in value if option.repeatable and isinstance(value, list | tuple) else (value,):
            yield from _words(option, each)


def _words(option: Option, value: object) -> Iterator[str]:
    yield option.flags[0]
    if option.kind == "file":
        yield _FILE
    elif option.kind == "lengths" and isinstance(value, list | tuple):
        yield ",".join(map(str, value))
    elif option.kind != "flag":
        yield str(value)


def _validation(given: Mapping[str, Any]) -> Iterator[str]:
    """The options of a validation that are not at their defaults."""
    from validation.settings import Settings, read_settings

    settings, default = read_settings(given), Settings()
    if settings.positions != default.positions:
        yield from ("--positions", str(settings.positions))
    if settings.text is not None:
        yield from ("--text", printable(Path(settings.text).name))
    if settings.reference_dtype != default.reference_dtype:
        yield from ("--reference-dtype", settings.reference_dtype)
    if settings.max_memory is not None:
        yield from ("--max-memory", f"{settings.max_memory / 1e9:.12g}")
    for name, limit in settings.gates.items():
        yield from ("--gate", f"{name}={limit!r}")
    for name in settings.allow_unrun:
        yield from ("--allow-unrun", name)
    if settings.baseline is not None:
        yield from ("--baseline", settings.baseline)
    if not settings.same_weights:
        yield "--no-same-weights"
    for target, runtime in settings.runtimes.items():
        yield from ("--runtime", f"{target}.{runtime}")
    if settings.foreign:
        yield "--foreign"
    yield from _declared(settings.runtime_options, runtimes=True)


def _joined(words: list[str]) -> str:
    """Words as a shell reads them again, on one line."""
    return " ".join(shlex.quote(word) if word.isprintable() else _escaped(word) for word in words)


def _escaped(word: str) -> str:
    """A word with line ends or other unprintable characters, in the quotes of POSIX.1-2024."""
    kept = "".join(
        c if c.isprintable() and c not in "\\'" else f"\\{c}" if c.isprintable() else _escape(c) for c in word
    )
    return f"$'{kept}'"


def _escape(character: str) -> str:
    """Its bytes in UTF-8, three octal digits each: all shells with these quotes know that escape."""
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogatepass"))
