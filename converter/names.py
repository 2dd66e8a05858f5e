"""What a MODEL argument means: an alias, a repository, a directory or a file.

This module reads no model and imports nothing heavy, because every command's `--help` passes through it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from converter.errors import CheckpointError, DestinationError, QatconvertError, UsageError
from converter.filenames import CONFIG
from converter.system.replacing import write_whole
from converter.system.untrusted import read_object

PUBLISHED_SIZES = ("E2B", "E4B", "12B", "26B-A4B", "31B")
MOBILE_SIZES = ("E2B", "E4B")
#: The checkpoints that ship with qatconvert.
SHIPPED = ("gemma4-demo", "gemma4-demo-mobile")

_SIZE = re.compile(r"e?\d{1,4}(\.\d{1,2})?b(-a\d{1,4}(\.\d{1,2})?b)?")
_MAPPED_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./+-]{0,198}[A-Za-z0-9_+-])?")
_MAPPING_LIMIT = 1 << 20
#: Names whose likeness differs by less are proposed together.
_AS_CLOSE = 0.05
#: Windows' absolute paths (`C:/models`).
_DRIVE = re.compile(r"[A-Za-z]:/")


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    kind: Literal["demo", "directory", "file", "gguf", "hub"]
    #: Safe in a file name: the alias itself, a directory's or file's own name, or the last part of a
    #: repository in lower case.
    name: str
    #: Set for all but "hub".
    path: Path | None = None
    #: Set for "hub", as is `revision`.
    repo: str | None = None
    #: None: the default branch.
    revision: str | None = None
    #: The short name that led here.
    alias: str | None = None
    #: One line that the command should show on standard error, once the model is opened: something else has
    #: the same name and was not taken.
    note: str | None = None


@dataclass(frozen=True)
class KnownModel:
    """A short name and its repository."""

    name: str
    #: `OWNER/NAME[@REVISION]`; None for the demo.
    repo: str | None
    #: Who set it.
    origin: Literal["built-in", "user"]


def resolve(name: str) -> Source:
    """What `name` means: the first of these that fits, and never something else in its place.

    1. What looks like a path (`./x`, `/x`, `../x`, `~/x`, `x/`, `a/b/c`, `x.gguf`, `C:/x`, `a\\b`, `.`)
       is a path.
    2. A short name: a built-in alias, then the user's own mapping, then the pattern `gemma4-SIZE`; each with
       `@REVISION` if wished. A mapping may take a name of the pattern. It cannot take a built-in alias: such
       a conflict (a hand-written file, or an alias that came with a later version) is an error.
       A directory of the same name in the working directory is not read; `note` says how to mean it.
    3. A directory that exists, or a file that is GGUF or that a registered kind of source recognises. `note`
       says so where the name of a directory could be a repository too.
    4. `OWNER/NAME[@REVISION]`, a repository. Where the working directory has a directory OWNER, only with
       `@REVISION`: without it, this is taken for a path that does not exist.

    Short names do not depend on case. Raises UsageError for anything else (with the names that come close)
    and for a path that does not exist. Raises CheckpointError for any other file and a
    damaged mapping.
    """
    if not name or len(name) > 4096 or "\0" in name:
        raise UsageError("MODEL is no name: give a short name, OWNER/NAME, a directory or a GGUF file")
    if "://" in name:
        raise UsageError(f"{printable(name)} is an address: give the repository as OWNER/NAME")
    if _looks_like_path(name):
        return _local(name)
    base, at, revision = name.partition("@")
    if base.isascii() and (source := _short_name(base.lower())):
        source = _at_revision(source, base, revision) if at else source
        return replace(source, note=_directory_passed_over(name))
    if _exists(name):
        return _local(name)
    if base.count("/") == 1:
        if not at:
            _refuse_local_owner(base)
        return _repository(base, _checked_revision(revision) if at else None)
    if at and _exists(base):
        raise UsageError(f"{printable(base)} is a local path, which has no revisions: leave out @REVISION")
    raise UsageError(_unknown(base))


def known_models() -> tuple[KnownModel, ...]:
    """Every built-in alias in the order of sizes, then the user's own mappings by name.

    Raises CheckpointError when the user's mapping file is damaged.
    """
    user = read_mapping()
    return (
        *(KnownModel(name, repo, "built-in") for name, repo in built_in_models().items()),
        *(KnownModel(name, user[name], "user") for name in sorted(user)),
    )


def add_model(name: str, repo: str) -> KnownModel:
    """Write `name` -> `repo` (`OWNER/NAME[@REVISION]`) to the user's mapping, over an earlier `name`.

    Raises UsageError for a name or repository that is not well-formed and for a built-in alias (those always
    mean the built-in repository). Raises CheckpointError when the mapping file is damaged, DestinationError
    when it cannot be written.
    """
    name = _checked_name(name)
    if name in built_in_models():
        raise UsageError(f"{name} is a built-in name and stays what it is: choose another, such as my-{name}")
    base, at, revision = repo.partition("@")
    _repository(base, _checked_revision(revision) if at else None)
    write_mapping({**read_mapping(), name: repo})
    return KnownModel(name, repo, "user")


def remove_model(name: str) -> KnownModel:
    """Take `name` out of the user's mapping and return what it was.

    Raises UsageError when the mapping has no such name, CheckpointError when the file is damaged,
    DestinationError when it cannot be written.
    """
    user = read_mapping()
    name = name.lower()
    if name not in user:
        own = ", ".join(sorted(user)) or "none"
        raise UsageError(f"{printable(name)} is not in {mapping_file()} (names there: {own})")
    write_mapping({key: repo for key, repo in user.items() if key != name})
    return KnownModel(name, user[name], "user")


def built_in_models() -> dict[str, str | None]:
    """The built-in aliases and their repositories; None for those that ship with qatconvert."""
    models: dict[str, str | None] = {}
    for size in PUBLISHED_SIZES:
        models[f"gemma4-{size.lower()}"] = _unquantized(size)
    for size in MOBILE_SIZES:
        models[f"gemma4-{size.lower()}-mobile"] = f"google/gemma-4-{size}-it-qat-mobile-transformers"
    return {**models, **dict.fromkeys(SHIPPED)}


def mapping_file() -> Path:
    """The user's names: `models.json` in QATCONVERT_HOME, else in the platform's application folder."""
    home = os.environ.get("QATCONVERT_HOME")
    if not home:
        import click

        home = click.get_app_dir("qatconvert")
    return Path(home).expanduser() / "models.json"


def read_mapping() -> dict[str, str]:
    """The user's mapping, name -> `OWNER/NAME[@REVISION]`; empty without a file.

    The file is `{"schema": 1, "models": {NAME: REPOSITORY}}`; CheckpointError when it is anything else.
    """
    path = mapping_file()
    if not path.exists():
        return {}
    try:
        return _checked_mapping(read_object(path, _MAPPING_LIMIT))
    except QatconvertError as error:
        raise CheckpointError(f"{printable(str(error), 300)}: repair or delete {path}") from None


def write_mapping(models: Mapping[str, str]) -> None:
    """Replace the user's mapping in one step: a reader sees the old file or the new one, never a part.

    Raises DestinationError when the file cannot be written.
    """
    path = mapping_file()
    text = json.dumps({"schema": 1, "models": dict(sorted(models.items()))}, indent=2) + "\n"
    try:
        write_whole(path, text, durable=True)
    except OSError as error:
        raise DestinationError(f"{path}: cannot be written ({error.strerror})") from None


def printable(text: str, limit: int = 120) -> str:
    """`text` on one line of at most `limit` characters, control and other unprintable characters escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def one_line(text: str) -> str:
    """A message on one line: blank space joined, unprintable characters escaped, a long one cut inside.

    What strangers wrote (names of files and tensors) must neither steer a terminal nor flood it.
    """
    joined = " ".join(text.split())
    shown = printable(joined, limit=10 * len(joined))
    return shown if len(shown) <= 1000 else f"{shown[:600]} … {shown[-397:]}"


def file_name(text: str) -> str:
    """`text` reduced to letters, digits, dot, dash and underscore, to be a part of any file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "model"


def _unquantized(size: str) -> str:
    return f"google/gemma-4-{size.upper()}-it-qat-q4_0-unquantized"


def _looks_like_path(text: str) -> bool:
    return (
        text in (".", "..")
        or text.startswith(("/", "./", "../", "~"))
        or text.endswith(("/", ".gguf"))
        or _DRIVE.match(text) is not None
        or "\\" in text
        or text.partition("@")[0].count("/") > 1
    )


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # a name too long for the file system
        return False


def _local(text: str) -> Source:
    shown = printable(text)
    try:
        path = Path(text).expanduser() if text.startswith("~") else Path(text)
        if path.is_dir():
            note = None
            if not _looks_like_path(text) and _is_repository(text):
                note = f"{shown} is read as the local directory; the Hub's repository would be {shown}@main"
            return Source("directory", file_name(path.resolve().name), path=path, note=note)
        if not path.exists():
            raise UsageError(f"{shown}: no such file or directory")
        magic = b""
        if path.is_file():
            with path.open("rb") as file:
                magic = file.read(4)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{shown}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if magic == b"GGUF":
        return Source("gguf", file_name(path.name.removesuffix(".gguf")), path=path)
    return _other_file(path, shown)


def _other_file(path: Path, shown: str) -> Source:
    """A file that a registered kind of source recognises; raises ``CheckpointError`` for any other one."""
    from converter.checkpoint.source import find_kind

    kind, broken = find_kind(path) if path.is_file() else (None, ())
    if kind is None:
        told = f"{shown}: not a GGUF file (safetensors: give the directory with config.json)"
        raise CheckpointError("; ".join([told, *broken]))
    return Source("file", file_name(path.name.removesuffix(kind.suffix)), path=path)


def _short_name(name: str) -> Source | None:
    if not _MAPPED_NAME.fullmatch(name):
        return None
    built_in = built_in_models()
    user = read_mapping().get(name)
    if name in built_in:
        if user is not None and user != built_in[name]:
            raise UsageError(
                f"{name} is built in and also maps to {user} in {mapping_file()}: "
                f"give the repository itself, or run: qatconvert models remove {name}"
            )
        return _shipped(name) if name in SHIPPED else Source("hub", name, repo=built_in[name], alias=name)
    if user is not None:
        repo, at, revision = user.partition("@")
        return Source("hub", name, repo=repo, revision=revision if at else None, alias=name)
    size = name.removeprefix("gemma4-")
    if size != name and _SIZE.fullmatch(size):
        return Source("hub", name, repo=_unquantized(size), alias=name)
    if size != name and _SIZE.fullmatch(size.removesuffix("-mobile")):
        sizes = ", ".join(MOBILE_SIZES)
        raise UsageError(
            f"{name}: mobile checkpoints are published for {sizes} only; "
            f"for another one run: qatconvert models add {name} OWNER/NAME"
        )
    return None


def _shipped(name: str) -> Source:
    path = Path(__file__).parent / "demo" / name
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: the shipped checkpoint is missing: install qatconvert again")
    return Source("demo", name, path=path, alias=name)


def _at_revision(source: Source, base: str, revision: str) -> Source:
    if source.kind != "hub":
        raise UsageError(f"{base} ships with qatconvert and has no revisions: leave out @REVISION")
    return replace(source, revision=_checked_revision(revision))


def _directory_passed_over(name: str) -> str | None:
    if not _exists(name):
        return None
    return f"{name} is the model of that name; the local {name} is not read (write ./{name} to mean it)"


def _refuse_local_owner(text: str) -> None:
    """Raise UsageError for `a/b` where `a` is a directory that has no `b`: it may be either, and a path that
    is not there must not become a download."""
    owner = text.partition("/")[0]
    if owner and _exists(owner) and Path(owner).is_dir():
        shown = printable(text)
        repository = f" (the Hub's repository would be {shown}@main)" if _is_repository(text) else ""
        raise UsageError(f"{shown}: no such file or directory in {printable(owner)}{repository}")


def _is_repository(text: str) -> bool:
    """The Hub's own rules for OWNER/NAME, so that no other text reaches an address or a folder's name."""
    parts = text.split("/")
    forbidden = ".." in text or "--" in text or text.endswith(".git")
    return len(parts) == 2 and not forbidden and all(_REPO_PART.fullmatch(part) for part in parts)


def _repository(repo: str, revision: str | None) -> Source:
    if not _is_repository(repo):
        raise UsageError(
            f"{printable(repo)} is no repository: OWNER/NAME (letters, digits, dots, dashes, underscores)"
        )
    return Source("hub", file_name(repo.partition("/")[2]).lower(), repo=repo, revision=revision)


def _checked_revision(revision: str) -> str:
    hidden = any(part.startswith(".") or part.endswith(".lock") or not part for part in revision.split("/"))
    if hidden or ".." in revision or not _REVISION.fullmatch(revision):
        raise UsageError(f"@{printable(revision)} is not a revision: give a branch, a tag or a commit")
    return revision


def _checked_name(name: str) -> str:
    lower = name.lower() if name.isascii() else ""  # some other letters have an ASCII lower case
    if not _MAPPED_NAME.fullmatch(lower) or ".." in lower or _looks_like_path(lower):
        raise UsageError(
            f"{printable(name)} is no short name: give up to 64 letters, digits, dots, dashes, underscores"
        )
    return lower


def _checked_mapping(document: Mapping[str, object]) -> dict[str, str]:
    models = document.get("models")
    if document.get("schema") != 1 or not isinstance(models, dict):
        raise CheckpointError('the list of names is not {"schema": 1, "models": {NAME: REPOSITORY}}')
    for name, repo in models.items():
        if not isinstance(repo, str) or _checked_name(name) != name:
            raise CheckpointError(f"the list of names has a bad entry {printable(name)}")
        base, at, revision = repo.partition("@")
        _repository(base, _checked_revision(revision) if at else None)
    return models


def _unknown(name: str) -> str:
    import difflib

    names = [model.name for model in known_models()]
    close = difflib.get_close_matches(name.lower(), names, n=4, cutoff=0.5)
    nearness = {near: difflib.SequenceMatcher(None, near, name.lower()).ratio() for near in close}
    close = [near for near in close if nearness[near] > nearness[close[0]] - _AS_CLOSE]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names: {', '.join(names)};"
    return (
        f"{printable(name)} is no known model: {hint} "
        "MODEL is a short name, OWNER/NAME[@REVISION], a directory, a GGUF file or another source"
    )
