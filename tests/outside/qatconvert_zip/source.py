"""A checkpoint in one ZIP file whose members are stored as they are, so that tensors are read by byte ranges.

The members are the files of a checkpoint's directory, without folders. Layout of the format: PKWARE's
APPNOTE.TXT 6.3.10. Its directory at the end of the file is read by Python's ``zipfile``. It says where the
local header of a member lies, behind which its bytes follow.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import BinaryIO, ClassVar
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from converter.checkpoint.safetensors import Shard, Shards, Stretch, has_shards, open_shards
from converter.checkpoint.source import SourceKind
from converter.errors import CheckpointError
from converter.system.amounts import amount
from converter.system.digests import Digests
from converter.system.untrusted import shown

SUFFIX = ".zip"
#: Most bytes that are read of the directory at once, so that a hostile one does not fill the memory.
MOST_DIRECTORY = 1 << 20
_MAGIC = b"PK\x03\x04"
#: A member's local header up to the lengths of its name and of the extra field, which follow it.
_LOCAL = struct.Struct("<4s22xHH")
_ENCRYPTED, _UTF8 = 0x1, 0x800
_PIECE = 16 << 20


class Unpacked:
    """The directory that a ZIP is unpacked to when it is first asked for. It goes with its last user, or with
    the process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._directory: Path | None = None

    def of(self, members: Mapping[str, Shard]) -> Path:
        """The directory with ``members``. Raises ``CheckpointError`` where there is no room for them, or for
        a file that has become shorter."""
        with self._lock:
            if self._directory is None:
                made = Path(tempfile.mkdtemp(prefix="qatconvert-zip-"))
                weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
                unpack(members, made)
                self._directory = made
            return self._directory


@dataclass(frozen=True)
class Archive:
    """The source; see ``converter.checkpoint.source.CheckpointSource``."""

    kind: ClassVar[str] = "zip-archive"
    file: Path
    #: By name.
    members: Mapping[str, Stretch]
    #: The ZIP file, once it was read.
    files: tuple[Path, ...] = ()
    unpacked: Unpacked = field(default_factory=Unpacked)

    def __str__(self) -> str:
        return str(self.file)

    def __contains__(self, name: object) -> bool:
        return name in self.members

    def path(self, name: str) -> Path:
        return self.file

    def where(self, name: str) -> str:
        return f"{self.file}: {name}"

    def head(self, name: str, most: int) -> bytes:
        if name not in self.members:
            raise CheckpointError(f"{self.where(name)}: cannot be read: no such member")
        shard = self.shard(name)
        return shard.read(0, min(most, shard.size), "its content")

    def names(self) -> list[str]:
        return sorted(self.members)

    def shard(self, name: str) -> Shard:
        return Shard(self.file, self.members[name])

    def with_files(self, files: Iterable[Path]) -> Archive:
        return replace(self, files=tuple(dict.fromkeys(files)))

    def tensors(self) -> Shards:
        return open_shards(self)

    def has_weights(self) -> bool:
        return has_shards(self)

    def entries(self, digests: Digests) -> list[dict[str, object]]:
        own = {file.name for file in self.files}
        return [entry for entry in digests.entries(self.file.parent) if entry["path"] in own]

    def directory(self) -> Path:
        return self.unpacked.of({name: self.shard(name) for name in self.members})


def recognises(path: Path) -> bool:
    """Whether a file begins as a ZIP does."""
    if not path.name.endswith(SUFFIX) or not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def open_archive(path: Path) -> Archive:
    """The source in a ZIP file. Raises ``CheckpointError`` for a file that is damaged, and for members that
    are compressed, encrypted, in folders, twice there, or where other members lie."""
    try:
        with path.open("rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise CheckpointError(f"{path}: is not a regular file")
            with ZipFile(_Bounded(stream, path)) as archive:
                members = [_member(path, stream, info) for info in archive.infolist()]
                end = archive.start_dir
    except (BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: is no whole ZIP file: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    _check_apart(path, members, end)
    return Archive(path, {member.name: member for member in members})


class _Bounded:
    """A file of which nobody reads much at once."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, count: int = -1) -> bytes:
        data = self._stream.read(MOST_DIRECTORY + 1 if count < 0 else min(count, MOST_DIRECTORY + 1))
        if len(data) > MOST_DIRECTORY:
            raise CheckpointError(f"{self._path}: has a directory of more than {MOST_DIRECTORY} bytes")
        return data


def _member(path: Path, stream: BinaryIO, info: ZipInfo) -> Stretch:
    """Where a member's bytes lie, which are those of the checkpoint's file."""
    name = info.filename
    where = f"{path}: member {shown(name)}"
    plain = name and name.isprintable() and not set("/\\:") & set(name) and not name.startswith(".")
    if not plain or name != info.orig_filename:
        raise CheckpointError(f"{where} is no plain file name; refused")
    if (
        info.flag_bits & _ENCRYPTED
        or info.compress_type != ZIP_STORED
        or info.file_size != info.compress_size
    ):
        raise CheckpointError(f"{where} is not stored as it is: make the archive with zip -0")
    stream.seek(info.header_offset)
    magic, length, extra = _LOCAL.unpack(stream.read(_LOCAL.size))
    encoding = "utf-8" if info.flag_bits & _UTF8 else "cp437"
    if magic != _MAGIC or stream.read(length) != name.encode(encoding):
        raise CheckpointError(f"{where} has another local header than the directory says")
    return Stretch(name, info.header_offset + _LOCAL.size + length + extra, info.file_size)


def _check_apart(path: Path, members: list[Stretch], end: int) -> None:
    """Members have names of their own, and none lies where another one or the directory does."""
    begin = 0
    names: set[str] = set()
    for member in sorted(members, key=lambda member: (member.begin, member.size)):
        where = f"{path}: member {shown(member.name)}"
        if member.name in names:
            raise CheckpointError(f"{where} is there twice")
        if member.begin < begin or member.begin + member.size > end:
            raise CheckpointError(f"{where} overlaps what lies beside it")
        begin = member.begin + member.size
        names.add(member.name)


def unpack(members: Mapping[str, Shard], directory: Path) -> None:
    """Write members to files of their names. Raises ``CheckpointError``."""
    needed, free = sum(shard.size for shard in members.values()), shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"{directory}: {amount(needed)} needed to unpack the checkpoint, {amount(free)} free: set TMPDIR "
            "to a place that has it"
        )
    buffer = memoryview(bytearray(min(_PIECE, max(1, *(shard.size for shard in members.values())))))
    for name, shard in members.items():
        with (directory / name).open("wb") as file:
            for begin in range(0, shard.size, len(buffer)):
                piece = buffer[: min(len(buffer), shard.size - begin)]
                shard.read_into(piece, begin, "its content")
                file.write(piece)


KIND = SourceKind("zip-archive", recognises, open_archive, suffix=SUFFIX)
