"""A release file, read and checked before anything is done: TOML whose keys docs/schemas/release.schema.json
describes.

Every error names the file, the line and the key, and what may be meant.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from converter.errors import QatconvertError, UsageError
from converter.names import Source, file_name, resolve
from converter.pipeline.release.places import Path as Key
from converter.pipeline.release.places import line_of, lines_of
from converter.system.untrusted import kind, read_text, shown
from targets.options import Option, declarations, meant
from targets.target import known_targets

#: Version of the file's layout.
SCHEMA: Final = 1
_BYTES: Final = 1 << 20
_MOST_MODELS: Final = 256
_TOP: Final = ("schema", "name", "output", "defaults", "models")
_DEFAULTS: Final = ("targets", "options", "validation", "publish")
_MODEL: Final = ("model", "revision", "name", *_DEFAULTS)
_VALIDATION: Final = (
    "positions",
    "text",
    "gates",
    "baseline",
    "same_weights",
    "reference_dtype",
    "max_memory_gb",
    "allow_unrun",
    "runtimes",
)
#: How a model is published, and what its card says; ``repo`` is each model's own.
_PUBLISH: Final = ("private", "create_pr", "tag", "message", "card")
_CARD: Final = ("license", "languages", "base_model", "quantized_by", "tags")
_MOST_POSITIONS: Final = 1 << 24


@dataclass(frozen=True)
class Item:
    """One model of a release."""

    source: Source
    #: What names its files and its directory in the output.
    name: str
    targets: tuple[str, ...]
    #: Options by target, as ``Conversion`` takes them.
    options: Mapping[str, Mapping[str, object]]
    #: What ``validation.settings.read_settings`` takes.
    validation: Mapping[str, Any]
    #: Where it is published, ``None`` if it is not: what ``publication.publishing.Request`` takes.
    destination: Mapping[str, Any] | None = None

    @property
    def model(self) -> str:
        """The MODEL argument that means the same."""
        source = self.source
        if source.repo is None:
            return source.alias or str(source.path)
        return f"{source.repo}@{source.revision}" if source.revision else source.repo


@dataclass(frozen=True)
class Release:
    """A release file."""

    name: str
    #: Where artifacts and what is kept between runs go.
    output: Path
    items: tuple[Item, ...]


def read_release(path: Path) -> Release:
    """Read a release file; places in it are relative to its directory. Opens no model.

    Raises ``UsageError`` that names file, line and key.
    """
    try:
        text = read_text(path, _BYTES)
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply") from error
    except QatconvertError as error:
        raise UsageError(str(error)) from error
    lines = lines_of(text)

    def wrong(key: Key, problem: str) -> UsageError:
        line = line_of(lines, key)
        place = f"{path}:{line}" if line else str(path)
        return UsageError(f"{place}: {_told(key)} {problem}" if key else f"{place}: {problem}")

    return _release(_Table(values, (), wrong), path)


def _told(key: Key) -> str:
    """``models[0].options.onnx``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True)
class _Table:
    """Typed look-ups in a table."""

    values: Mapping[str, Any]
    key: Key
    wrong: Callable[[Key, str], UsageError] = field(repr=False)

    def check(self, known: Collection[str]) -> None:
        """Refuse keys that mean nothing."""
        for name in self.values:
            if name not in known:
                near = meant(name, known) or f" (known: {', '.join(known)})"
                raise self.wrong((*self.key, name), f"is no key here{near}")

    def get(self, name: str, expected: type, what: str, default: Any = None) -> Any:
        """A value of a type, which a boolean is not a number of."""
        value = self.values.get(name, default)
        if name in self.values and (
            not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)
        ):
            raise self.wrong((*self.key, name), f"is {kind(value)}, expected {what}")
        return value

    def table(self, name: str) -> _Table:
        """A table; an empty one where it is absent."""
        return _Table(self.get(name, dict, "a table", {}), (*self.key, name), self.wrong)

    def texts(self, name: str, default: Sequence[str] = ()) -> list[str]:
        """A list of strings."""
        values = self.get(name, list, "a list of strings", list(default))
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.wrong((*self.key, name, index), f"is {kind(value)}, expected a string")
        return list(values)


def _release(top: _Table, path: Path) -> Release:
    top.check(_TOP)
    schema = top.get("schema", int, "a number", SCHEMA)
    if schema != SCHEMA:
        raise top.wrong(("schema",), f"is {schema}, and this version reads {SCHEMA}")
    name = top.get("name", str, "a string", path.stem)
    if file_name(name) != name:
        raise top.wrong(("name",), f"{shown(name)} cannot name a directory")
    output = top.get("output", str, "a string", f"{name}-release")
    defaults = top.table("defaults")
    defaults.check(_DEFAULTS)
    models = top.get("models", list, "a list of tables ([[models]])", [])
    if not models:
        raise top.wrong((), "no [[models]]: name at least one model")
    if len(models) > _MOST_MODELS:
        raise top.wrong(("models",), f"has {len(models)} models; at most {_MOST_MODELS}")
    items = []
    for index, values in enumerate(models):
        if not isinstance(values, dict):
            raise top.wrong(("models", index), f"is {kind(values)}, expected a table")
        items.append(_item(_Table(values, ("models", index), top.wrong), defaults, path.parent))
    _check_apart(items, top)
    return Release(name, Path(os.path.normpath(path.parent / output)), tuple(items))


def _check_apart(items: Sequence[Item], top: _Table) -> None:
    """Refuse a model that is listed twice, and two with one directory."""
    seen: dict[object, int] = {}
    for index, item in enumerate(items):
        source = item.source
        place = source.path.resolve() if source.path else source.repo
        keys: list[tuple[object, str]] = [((place, source.revision), "model"), ((item.name,), "name")]
        if item.destination is not None:
            keys.append((("repository", item.destination["repo"].lower()), "repo"))
        for what, key in keys:
            first = seen.setdefault(what, index)
            if first != index and key == "repo":
                problem = f"is that of models[{first}] too: a repository has the artifacts of one model"
                raise top.wrong(("models", index, "publish", "repo"), problem)
            if first != index and key == "model":
                problem = (
                    f"{shown(item.model)} is listed twice (models[{first}] too): give all its targets there"
                )
                raise top.wrong(("models", index, "model"), problem)
            if first != index and key == "name":
                problem = f"{shown(item.name)} is that of models[{first}] too: give one of them another name"
                raise top.wrong(("models", index, "name"), problem)


def _item(table: _Table, defaults: _Table, folder: Path) -> Item:
    table.check(_MODEL)
    model = table.get("model", str, "a string")
    if not model:
        raise table.wrong(table.key, "has no model: give a short name, OWNER/NAME or a directory")
    revision = table.get("revision", str, "a string")
    source = _source(table, model, revision, folder)
    name = table.get("name", str, "a string", source.name)
    if file_name(name) != name:
        raise table.wrong((*table.key, "name"), f"{shown(name)} cannot name files")
    owner = table if "targets" in table.values else defaults
    targets = owner.texts("targets", ["gguf"])
    for index, target in enumerate(targets):
        if target not in known_targets():
            near = meant(target, known_targets()) or f" (known: {', '.join(known_targets())})"
            raise table.wrong((*owner.key, "targets", index), f"{shown(target)} is no target{near}")
    if not targets:
        raise table.wrong((*owner.key, "targets"), "is empty: name at least one target")
    options = _options(defaults, targets, strict=False)
    for target, own in _options(table, targets, strict=True).items():
        options[target] = {**options.get(target, {}), **own}
    validation = {**_validation(defaults, folder), **_validation(table, folder)}
    destination = _destination(table, defaults)
    return Item(source, name, tuple(dict.fromkeys(targets)), options, validation, destination)


def _destination(table: _Table, defaults: _Table) -> dict[str, Any] | None:
    """Where a model is published, and how; what it says comes before the defaults, key by key."""
    from converter.pipeline.publication.card import Fields
    from converter.pipeline.publication.publishing import is_repository

    common = defaults.table("publish")
    common.check(_PUBLISH)
    own = table.table("publish")
    own.check(("repo", *_PUBLISH))
    merged, card = _published(common), _card(common)
    if "publish" not in table.values:
        return None
    repo = own.get("repo", str, "a string")
    if not isinstance(repo, str) or not is_repository(repo):
        problem = "is missing" if repo is None else f"is {shown(repo)}, which is no repository"
        raise own.wrong((*own.key, "repo"), f"{problem}: give OWNER/NAME")
    merged |= _published(own)
    if merged.get("create_pr") and (merged.get("tag") or merged.get("private")):
        other = "tag" if merged.get("tag") else "private"
        raise own.wrong((*own.key, other), "has no effect with create_pr: leave out one of them")
    return {"repo": repo, **merged, "fields": Fields(**{**card, **_card(own)})}


def _published(table: _Table) -> dict[str, Any]:
    kinds: dict[str, tuple[type, str]] = {
        "private": (bool, "true or false"),
        "create_pr": (bool, "true or false"),
        "tag": (str, "a string"),
        "message": (str, "a string"),
    }
    return {name: table.get(name, *kinds[name]) for name in table.values if name in kinds}


def _card(table: _Table) -> dict[str, Any]:
    """What the model card says, by the names that ``Fields`` has."""
    card = table.table("card")
    card.check(_CARD)
    listed = {name: tuple(card.texts(name)) for name in ("languages", "tags") if name in card.values}
    return {name: card.get(name, str, "a string") for name in card.values if name not in listed} | listed


def _source(table: _Table, model: str, revision: str | None, folder: Path) -> Source:
    here = folder / model
    given = str(here) if model.startswith((".", "/")) or here.is_dir() else model
    try:
        return resolve(f"{given}@{revision}" if revision else given)
    except QatconvertError as error:
        raise table.wrong((*table.key, "revision" if revision else "model"), f": {error}") from error


def _options(table: _Table, targets: Collection[str], *, strict: bool) -> dict[str, dict[str, object]]:
    """The options of targets in a table. Those of a target that is not made are refused if ``strict``."""
    given = table.table("options")
    given.check(known_targets())
    declared = {
        one.owner: {option.name: option for option in one.group.options}
        for one in declarations()[0]
        if not one.runtime
    }
    found: dict[str, dict[str, object]] = {}
    for target in given.values:
        own = given.table(target)
        known = {name: one for name, one in declared.get(target, {}).items() if not one.outside}
        own.check(known)
        if target not in targets:
            if strict:
                raise own.wrong(own.key, f"has no effect: {target} is not among the model's targets")
            continue
        found[target] = {name: _value(own, name, known[name]) for name in own.values}
    return found


def _value(table: _Table, name: str, option: Option) -> object:
    key = (*table.key, name)
    if option.repeatable:
        return table.texts(name)
    if option.kind == "flag":
        return table.get(name, bool, "true or false")
    if option.kind == "lengths":
        values = table.get(name, list, "a list of numbers")
        if not values or not all(type(one) is int and one > 0 for one in values):
            raise table.wrong(key, "expected a list of numbers of tokens, as [128, 1024]")
        return tuple(values)
    if option.kind == "integer":
        value = table.get(name, int, "a number")
        if (option.least is not None and value < option.least) or (
            option.most is not None and value > option.most
        ):
            raise table.wrong(key, f"is {value}, outside {option.least}..{option.most}")
        return value
    text = table.get(name, str, "a string")
    if option.choices and text not in option.choices:
        near = meant(text, option.choices) or f" (one of {', '.join(option.choices)})"
        raise table.wrong(key, f"is {shown(text)}{near}")
    return text


def _validation(table: _Table, folder: Path) -> dict[str, Any]:
    """What ``validation.settings.read_settings`` takes."""
    from validation.baseline import NAMES
    from validation.limits import KNOWN

    given = table.table("validation")
    given.check(_VALIDATION)
    found: dict[str, Any] = {}
    if "positions" in given.values:
        positions = given.get("positions", int, "a number")
        if not 1 <= positions <= _MOST_POSITIONS:
            raise given.wrong((*given.key, "positions"), f"is {positions}, outside 1..{_MOST_POSITIONS}")
        found["positions"] = positions
    if "text" in given.values:
        found["text"] = _file(given, "text", folder)
    if "gates" in given.values:
        found["gates"] = _gates(given.table("gates"), KNOWN)
    if "allow_unrun" in given.values:
        found["allow_unrun"] = tuple(_among(given, "allow_unrun", KNOWN))
    if "baseline" in given.values:
        (found["baseline"],) = _among(given, "baseline", NAMES)
    if "reference_dtype" in given.values:
        (found["reference_dtype"],) = _among(given, "reference_dtype", ("float32", "bfloat16", "float16"))
    if "same_weights" in given.values:
        found["same_weights"] = given.get("same_weights", bool, "true or false")
    if "max_memory_gb" in given.values:
        found["max_memory"] = int(_number(given, "max_memory_gb") * 1e9)
    if "runtimes" in given.values:
        runtimes = given.table("runtimes")
        runtimes.check(known_targets())
        found["runtimes"] = {name: runtimes.get(name, str, "a string") for name in runtimes.values}
    return found


def _file(table: _Table, name: str, folder: Path) -> Path:
    given = table.get(name, str, "a string")
    if not (folder / given).is_file():
        raise table.wrong((*table.key, name), f"is {shown(given)}, which is no file")
    return Path(folder / given)


def _gates(table: _Table, known: Collection[str]) -> dict[str, float]:
    table.check(known)
    return {name: _number(table, name) for name in table.values}


def _number(table: _Table, name: str) -> float:
    value = table.values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise table.wrong((*table.key, name), f"is {shown(value)}, expected a number, 0 or more")
    return float(value)


def _among(table: _Table, name: str, known: Collection[str]) -> list[str]:
    """One word or a list of them, each of which is ``known``."""
    given = table.values[name]
    words = table.texts(name) if isinstance(given, list) else [table.get(name, str, "a string")]
    for word in words:
        if word not in known:
            near = meant(word, known) or f" (one of {', '.join(known)})"
            raise table.wrong((*table.key, name), f"is {shown(word)}{near}")
    return words
