"""What a manifest lists, read as a stranger's file, and what lies in a directory; no model is read.

A manifest tells a program which files to open, so no name in it is taken on trust. One that leads out of its
directory is refused, and so is a file that is no manifest or of another layout.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from converter.errors import CheckpointError
from converter.filenames import MANIFEST
from converter.pipeline import manifest
from converter.system.untrusted import Settings, kind, read_object, shown

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LARGEST_FILE: Final = 1 << 62
#: Characters of a version or a name in a message.
_MOST_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Listed:
    """What a manifest says of one file."""

    #: The size of the file.
    bytes: int
    #: In lower case.
    sha256: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a conversion's checkpoint came from: a repository and its commit, or a directory or file."""

    repo: str | None
    #: The commit.
    revision: str | None
    #: The name of the directory or file.
    path: str | None
    #: Those that were read, by name.
    files: Mapping[str, Listed]

    @property
    def text(self) -> str:
        """The origin in words."""
        if self.repo is not None:
            return f"{self.repo} at commit {self.revision}"
        what = "file" if self.path in self.files else "directory"
        return f"the {what} {self.path}, which has no commit"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A conversion as its manifest describes it."""

    path: Path
    #: The version of qatconvert that wrote the files.
    tool: str
    #: Versions of libraries by name.
    libraries: Mapping[str, str]
    origin: Origin
    #: What is recorded for each target: ``targets.target.Plan.as_dict``, and ``chosen``.
    targets: Mapping[str, Mapping[str, object]]
    #: Those of the output directory, by their names below it.
    files: Mapping[str, Listed]
    #: What the source's model card says: texts, and tuples of them.
    card: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that lies in a directory."""

    #: ``file``, ``directory``, ``link``, ``special`` (a pipe, a device, a socket) or ``unreadable``.
    kind: str
    #: The size of a file.
    bytes: int = 0


def read_manifest(output: Path) -> Manifest:
    """The manifest of an output directory.

    Raises ``CheckpointError`` for a directory that is none or has no manifest. It raises it too for a
    manifest that is a link, too large, no manifest, of another layout, or that lists a file outside of the
    directory.
    """
    path = output / MANIFEST
    try:
        if not stat.S_ISDIR(output.stat().st_mode):
            raise CheckpointError(f"{output}: is not a directory; give the output directory of a conversion")
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CheckpointError(f"{path}: is not a regular file; refused")
    except FileNotFoundError as error:
        missing = f"has no {MANIFEST}; give the output directory of a conversion"
        raise CheckpointError(f"{output}: {missing if output.exists() else 'no such directory'}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{output}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    content = Settings(read_object(path, manifest.LARGEST), str(path))
    tool = _section(content, "tool")
    if tool.text("name", "") != "qatconvert":
        raise tool.error("name", "is not 'qatconvert': this is another program's manifest")
    schema = content.values.get("schema")
    if type(schema) is not int or schema != manifest.SCHEMA:
        problem = f"is {shown(schema)}, and this version reads {manifest.SCHEMA}"
        raise content.error("schema", f"{problem}: use qatconvert {_text(tool, 'version')}")
    libraries, targets = _section(content, "libraries"), _section(content, "targets")
    return Manifest(
        path,
        _text(tool, "version"),
        {name: _text(libraries, name) for name in libraries.values},
        _origin(_section(content, "source")),
        {name: _section(targets, name).values for name in targets.values},
        _listed(content, "artifacts"),
        _card(_section(content, "source")),
    )


def walk(directory: Path) -> dict[str, Entry]:
    """Everything in a directory, at any depth, hidden or not, by its name below it; no link is followed."""
    found: dict[str, Entry] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(directory / folder))
        except OSError:
            found[folder or "."] = Entry("unreadable")
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            found[name] = _entry(entry)
            if found[name].kind == "directory":
                waiting.append(name)
    return found


def folders(name: str) -> Iterator[str]:
    """Names of the directories that a file lies in, the innermost first."""
    for parent in PurePosixPath(name).parents:
        if parent.name:
            yield parent.as_posix()


def _entry(entry: os.DirEntry[str]) -> Entry:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return Entry("unreadable")
    if stat.S_ISREG(status.st_mode):
        return Entry("file", status.st_size)
    if stat.S_ISDIR(status.st_mode):
        return Entry("directory")
    return Entry("link" if stat.S_ISLNK(status.st_mode) else "special")


def _section(settings: Settings, key: str) -> Settings:
    section = settings.section(key)
    if section is None:
        raise settings.error(key, "is missing: this is no manifest of qatconvert")
    return section


def _text(settings: Settings, key: str) -> str:
    """A short printable text; it will stand in messages."""
    value = settings.text(key, "")
    if not value or len(value) > _MOST_TEXT or not value.isprintable():
        raise settings.error(shown(key), f"is {shown(value)}, expected a short printable text")
    return value


def _optional(settings: Settings, key: str) -> str | None:
    return None if settings.values.get(key) is None else _text(settings, key)


def _origin(source: Settings) -> Origin:
    repo, revision, path = (_optional(source, key) for key in ("repo", "revision", "path"))
    if repo is None and path is None:
        raise source.error("repo", "and path are null: the manifest names no source")
    if repo is not None and revision is None:
        raise source.error("revision", "is null: the manifest names a repository but no commit")
    return Origin(repo, revision, path, _listed(source, "files"))


def _card(source: Settings) -> dict[str, str | tuple[str, ...]]:
    """What of a model card can be told; it decides nothing, so what has another type is left out."""
    card = source.values.get("card")
    found: dict[str, str | tuple[str, ...]] = {}
    for key, value in card.items() if isinstance(card, dict) else ():
        if isinstance(value, str) and value.isprintable():
            found[key] = value
        elif isinstance(value, list) and all(isinstance(one, str) and one.isprintable() for one in value):
            found[key] = tuple(value)
    return found


def _listed(settings: Settings, key: str) -> dict[str, Listed]:
    """A list of ``{"path", "bytes", "sha256"}``, by path."""
    entries = settings.values.get(key)
    if not isinstance(entries, list):
        raise settings.error(key, f"is {kind(entries)}, expected a list")
    found: dict[str, Listed] = {}
    for index, entry in enumerate(entries):
        place = Settings({}, settings.where).error(f"{key}[{index}]", "")
        if not isinstance(entry, dict):
            raise CheckpointError(f"{place}is {kind(entry)}, expected an object")
        one = Settings(entry, str(place).strip())
        name = one.text("path", "")
        if not _stays_inside(name):
            raise one.error("path", f"is {shown(name)}, which is no plain name below the directory; refused")
        if name in found:
            raise one.error("path", f"is {shown(name)}, which is listed twice")
        digest = one.text("sha256", "")
        if not _DIGEST.fullmatch(digest):
            raise one.error("sha256", f"is {shown(digest)}, expected 64 hexadecimal digits")
        found[name] = Listed(one.integer("bytes", low=0, high=_LARGEST_FILE), digest)
    return found


def _stays_inside(name: str) -> bool:
    """Whether a listed name is that of a file below the directory: relative, without ``..``, and not the
    manifest itself."""
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and path.as_posix() == name and not path.is_absolute()
    return plain and bool(path.name) and ".." not in path.parts and name != MANIFEST
