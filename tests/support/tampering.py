"""Changes to artifacts, generated over everything that is in them: each makes another model or file of it.

``gguf_tamperings``, ``onnx_tamperings``, ``byte_flips`` and others give ``Tampering`` objects; ``applied``
makes one on a copy of the artifact's files. Names say what is changed, so that a failing test names it.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np


@dataclass(frozen=True)
class Tampering:
    """``change(directory)`` changes files in a copy of the artifact's directory. ``describes``: it may change
    what only describes the model, so that a difference need not decide."""

    name: str
    change: Callable[[Path], None]
    describes: bool = False


def applied(tampering: Tampering, source: Path, scratch: Path) -> Path:
    """A fresh copy of the directory ``source`` at ``scratch``, tampered with."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source, scratch)
    tampering.change(scratch)
    return scratch


def byte_flips(directory: Path, file: str, count: int, seed: int = 0) -> Iterator[Tampering]:
    """``count`` single bytes anywhere in a file, each given another value."""
    chance = random.Random(seed)
    size = (directory / file).stat().st_size
    for _ in range(count):
        place, mask = chance.randrange(size), chance.randrange(1, 256)
        yield Tampering(f"{file}: byte {place} ^ {mask:#04x}", _flip(file, place, mask), describes=True)


def _flip(file: str, place: int, mask: int) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        with (directory / file).open("r+b") as stream:
            stream.seek(place)
            (byte,) = stream.read(1)
            stream.seek(place)
            stream.write(bytes([byte ^ mask]))

    return change


def file_tamperings(names: Sequence[str], added: Sequence[str]) -> Iterator[Tampering]:
    """Every one of some files changed at its end, in its middle and deleted; and files added."""
    for name in names:
        yield Tampering(f"{name} deleted", lambda directory, name=name: (directory / name).unlink())
        yield Tampering(f"{name} emptied", lambda directory, name=name: (directory / name).write_bytes(b""))
        yield Tampering(f"{name}: a letter", lambda directory, name=name: _other_letter(directory / name))
    for name in added:
        yield Tampering(f"{name} added", lambda directory, name=name: _add(directory / name))


def _other_letter(path: Path) -> None:
    """Change a letter in the middle of a text, outside white space."""
    text = path.read_text("utf-8")
    place = next(i for i in range(len(text) // 2, len(text)) if text[i].isalpha())
    path.write_text(text[:place] + ("b" if text[place] == "a" else "a") + text[place + 1 :], "utf-8")


def _add(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}", "utf-8")


# GGUF -------------------------------------------------------------------------------------------------------


@dataclass
class GgufFile:
    """A GGUF file taken apart, by code of these tests: keys with raw values, tensors with raw data."""

    keys: list[tuple[str, bytes]]
    tensors: list[tuple[str, tuple[int, ...], int, bytes]]

    @classmethod
    def read(cls, path: Path) -> GgufFile:
        """Take a file apart."""
        data = path.read_bytes()
        place = 8
        tensor_count, key_count = struct.unpack_from("<QQ", data, place)
        place += 16
        keys = []
        for _ in range(key_count):
            name, place = _string(data, place)
            end = _value_end(data, place + 4, struct.unpack_from("<I", data, place)[0])
            keys.append((name, data[place:end]))
            place = end
        rows = []
        for _ in range(tensor_count):
            name, place = _string(data, place)
            (count,) = struct.unpack_from("<I", data, place)
            dims = struct.unpack_from(f"<{count}Q", data, place + 4)
            place += 4 + 8 * count
            kind, offset = struct.unpack_from("<IQ", data, place)
            place += 12
            rows.append((name, dims, kind, offset))
        begin = -(-place // 32) * 32
        tensors = []
        for name, dims, kind, offset in rows:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
            length = int(np.prod(dims)) // block * size
            tensors.append((name, dims, kind, data[begin + offset : begin + offset + length]))
        return cls(keys, tensors)

    def write(self, path: Path) -> None:
        """Put the file together again."""
        head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys)))
        for name, value in self.keys:
            head += struct.pack("<Q", len(name.encode())) + name.encode() + value
        offset = 0
        for name, dims, kind, data in self.tensors:
            head += struct.pack("<Q", len(name.encode())) + name.encode()
            head += struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + struct.pack("<IQ", kind, offset)
            offset += -(-len(data) // 32) * 32
        head += bytes(-len(head) % 32)
        path.write_bytes(bytes(head) + b"".join(data + bytes(-len(data) % 32) for *_, data in self.tensors))


def _string(data: bytes, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    return data[place + 8 : place + 8 + length].decode(), place + 8 + length


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _value_end(data: bytes, place: int, kind: int) -> int:
    if kind in _SIZES:
        return place + _SIZES[kind]
    if kind == 8:
        return place + 8 + int(struct.unpack_from("<Q", data, place)[0])
    item, count = struct.unpack_from("<IQ", data, place)
    place += 12
    for _ in range(count):
        place = _value_end(data, place, item)
    return place


#: GGML's number of the type.
Q4_0 = 2
#: Keys that describe a GGUF and decide nothing.
GGUF_DESCRIPTIVE = (
    "general.name",
    "general.license",
    "general.source.repo_url",
    "general.source.url",
    "general.basename",
    "general.size_label",
    "general.license.name",
    "general.license.link",
    "general.base_model.count",
    "general.base_model.0.name",
    "general.base_model.0.organization",
    "general.base_model.0.repo_url",
    "general.tags",
    "general.languages",
)


_Edit = Callable[..., Tampering]


def gguf_tamperings(directory: Path, file: str) -> Iterator[Tampering]:
    """Every key changed, given another type, removed and twice there; keys added; names, types and dimensions
    of tensors changed; tensors removed and added; bytes behind the end."""
    whole, edit = GgufFile.read(directory / file), _editor(file)
    yield from _key_tamperings(whole, edit)
    yield from _structure_tamperings(whole, edit)
    yield Tampering("bytes behind the end", lambda copy: append(copy / file, bytes(32)))
    yield Tampering("the last byte cut off", lambda copy: _cut(copy / file))


def gguf_value_tamperings(directory: Path, file: str) -> Iterator[Tampering]:
    """In every tensor one scale, one code (or value), one sign, and a scale of a block of zeros."""
    yield from _value_tamperings(GgufFile.read(directory / file), _editor(file))


def _editor(file: str) -> _Edit:
    def edit(name: str, change: Callable[[GgufFile], None], describes: bool = False) -> Tampering:
        def run(copy: Path) -> None:
            parsed = GgufFile.read(copy / file)
            change(parsed)
            parsed.write(copy / file)

        return Tampering(name, run, describes)

    return edit


def _key_tamperings(whole: GgufFile, edit: _Edit) -> Iterator[Tampering]:
    for index, (key, value) in enumerate(whole.keys):
        describes = key in GGUF_DESCRIPTIVE
        for name, other in _other_values(value):
            yield edit(
                f"{key}: {name}", lambda one, i=index, k=key, v=other: _put(one.keys, i, (k, v)), describes
            )
        yield edit(f"{key} removed", lambda one, i=index: one.keys.pop(i), describes)
        yield edit(f"{key} twice", lambda one, i=index: one.keys.append(one.keys[i]))
        other = (f"{key}_", value)
        yield edit(f"{key} renamed", lambda one, i=index, row=other: _put(one.keys, i, row), describes)
    for key in (
        "tokenizer.ggml.eos_token_ids",
        "gemma4.rope.scaling.factor",
        "tokenizer.chat_template.tool_use",
    ):
        added = (key, struct.pack("<I", 8) + struct.pack("<Q", 1) + b"1")
        yield edit(f"{key} added", lambda one, added=added: one.keys.append(added))
    for name in ("Phi-3", "modern-BERT"):  # llama.cpp strips spaces by these
        text = struct.pack("<IQ", 8, len(name)) + name.encode()
        yield edit(f"named {name}", lambda one, text=text: _set(one, "general.name", text))
    tag = ("general.basename", struct.pack("<IQ", 8, 1) + b"x")
    yield edit("general.basename added", lambda one: one.keys.append(tag), describes=True)


def _other_values(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Other values of the same type, and the same value of another type where it has one."""
    (kind,) = struct.unpack_from("<I", value)
    if kind == 9:
        (item,) = struct.unpack_from("<I", value, 4)
        last = len(value) - 1 if item != 6 else len(value) - 2
        yield "last item", value[:last] + bytes([value[last] ^ 1]) + value[last + 1 :]
        first = 16 + 8 if item == 8 else 16
        yield "first item", value[:first] + bytes([value[first] ^ 1]) + value[first + 1 :]
        return
    if kind == 8:
        yield "a letter", value[:-1] + bytes([value[-1] ^ 1])
        yield "a letter more", struct.pack("<IQ", 8, len(value) - 11) + value[12:] + b"x"
        return
    yield "lowest bit", value[:4] + bytes([value[4] ^ 1]) + value[5:]
    if kind == 6:
        (number,) = struct.unpack_from("<f", value, 4)
        yield "x1.1", struct.pack("<If", 6, number * 1.1 + 1e-9)
    if kind == 4:
        yield "as int32", struct.pack("<I", 5) + value[4:]


def _value_tamperings(whole: GgufFile, edit: _Edit) -> Iterator[Tampering]:
    """One scale, one code, one value, the scale of a block of zeros, in every tensor."""
    for index, (name, dims, kind, data) in enumerate(whole.tensors):
        changes = {"scale": (0, 1), "code": (len(data) - 1, 0x10), "sign": (1, 0x80)}
        if kind == Q4_0 and (zero := _zero_block(data)) is not None:
            changes["scale of zeros"] = (zero, 0x01)
        for label, (place, mask) in changes.items():
            row = (name, dims, kind, _flipped(data, place, mask))
            yield edit(f"{name}: {label}", lambda one, i=index, row=row: _put(one.tensors, i, row))


def _structure_tamperings(whole: GgufFile, edit: _Edit) -> Iterator[Tampering]:
    """Each tensor renamed, removed, stored twice, with another dimension, or in another type in turn, so that
    every kind of change meets many tensors."""
    for index, (name, dims, kind, data) in enumerate(whole.tensors):
        rows = {
            "renamed": (name.replace("weight", "scale"), dims, kind, data),
            "another dimension": (name, (*dims, 1), kind, data),
            "another type": (name, dims, *_other_type(kind, data)),
        }
        if len(dims) == 2 and dims[0] != dims[1] and dims[1] % 32 == 0:
            rows["dimensions exchanged"] = (name, dims[::-1], kind, data)
        changes = [
            edit(f"{name}: {label}", lambda one, i=index, row=row: _put(one.tensors, i, row))
            for label, row in rows.items()
        ]
        changes.append(edit(f"{name} removed", lambda one, i=index: one.tensors.pop(i)))
        extra = (f"{name}.more", dims, kind, data)
        changes.append(edit(f"{name} once more", lambda one, row=extra: one.tensors.append(row)))
        yield changes[index % len(changes)]


def _other_type(kind: int, data: bytes) -> tuple[int, bytes]:
    """The same numbers in another type, as far as it holds them."""
    if kind == 0:
        with np.errstate(over="ignore"):
            return 1, np.frombuffer(data, "<f4").astype("<f2").tobytes()
    values = gguf.quants.dequantize(np.frombuffer(data, np.uint8), gguf.GGMLQuantizationType(kind))
    return 0, values.astype("<f4").tobytes()


def _flipped(data: bytes, place: int, mask: int) -> bytes:
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


def _zero_block(data: bytes) -> int | None:
    """Where a block begins whose codes all stand for zero."""
    blocks = np.frombuffer(data, np.uint8).reshape(-1, 18)
    found = np.flatnonzero((blocks[:, 2:] == 0x88).all(axis=1))
    return int(found[0]) * 18 if found.size else None


def _put(items: list, index: int, item: object) -> None:  # type: ignore[type-arg]
    items[index] = item


def _set(one: GgufFile, key: str, value: bytes) -> None:
    one.keys[[name for name, _ in one.keys].index(key)] = (key, value)


def append(path: Path, data: bytes) -> None:
    """Write ``data`` behind the end of a file."""
    with path.open("ab") as stream:
        stream.write(data)


def _cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 1)
