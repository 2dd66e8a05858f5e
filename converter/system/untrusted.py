"""JSON files written by strangers: bounded size, no duplicate keys, one-line errors."""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converter.errors import CheckpointError

#: Ends of names, in lower case, of files that Python's pickle reads, which runs what code they hold.
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
#: Largest ``config.json`` that is read; real ones have a few KB.
CONFIG_BYTES: Final = 16 << 20
#: Most values (counted by the commas and brackets of the text) in one file: a value takes up to 60 times
#: the memory of its text. The tokenizer of Gemma 4 has 2 million.
_MOST_VALUES: Final = 3 << 20
#: Most keys (counted by the colons of the text), each of which takes some 350 bytes while it is read. The
#: tokenizer of Gemma 4 has a quarter of them.
_MOST_KEYS: Final = 1 << 20
#: Most memory of a text: one rare character makes each of them take four bytes, and what is read of it is a
#: copy. The tokenizer of Gemma 4 takes 120 MB.
_MOST_MEMORY: Final = 192 << 20
_LARGEST_INTEGER: Final = (1 << 31) - 1
#: Float32's normal range, in which artifacts and runtimes keep numbers.
_LARGEST_NUMBER: Final = (2 - 2**-23) * 2.0**127
_SMALLEST_NUMBER: Final = 2.0**-126


def read_text(path: Path, limit: int) -> str:
    """The UTF-8 text of a regular file of at most ``limit`` bytes; raises ``CheckpointError``."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 at byte {error.start}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; raises ``CheckpointError``."""
    return bounded(read_head(path, limit + 1), limit, str(path))


def read_head(path: Path, most: int) -> bytes:
    """The first bytes of a regular file, at most ``most``; raises ``CheckpointError``."""
    try:
        with open(path, "rb", opener=open_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise CheckpointError(f"{path}: is not a regular file")
            return stream.read(most)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def bounded(data: bytes, limit: int, where: str) -> bytes:
    """``data``, unless it has more than ``limit`` bytes; ``where`` begins the message of the
    ``CheckpointError``."""
    if len(data) > limit:
        raise CheckpointError(f"{where}: larger than the {limit} bytes that such a file may have")
    return data


def open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_object(path: Path, limit: int = CONFIG_BYTES) -> dict[str, object]:
    """The JSON object in a file of at most ``limit`` bytes.

    Raises ``CheckpointError`` for a file that cannot be read or is no JSON object, and for an object
    that names a key twice.
    """
    return parse_object(read_text(path, limit), str(path))


def parse_object(text: str, where: str) -> dict[str, object]:
    """The JSON object in ``text``; ``where`` begins the message of the ``CheckpointError``."""
    if sum(map(text.count, ",[{")) > _MOST_VALUES:
        raise CheckpointError(f"{where}: holds more than {_MOST_VALUES} values")
    if text.count(":") > _MOST_KEYS:
        raise CheckpointError(f"{where}: holds more than {_MOST_KEYS} keys")
    if sys.getsizeof(text) > _MOST_MEMORY:
        raise CheckpointError(f"{where}: its text takes more than {_MOST_MEMORY >> 20} MB of memory")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{where}: JSON nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: holds {kind(value)}, expected a JSON object")
    return value


def kind(value: object) -> str:
    """What a JSON value is, in words for a message: ``an integer``."""
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A JSON value, short enough for a one-line message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise CheckpointError(f"key {shown(key)} appears twice")
            seen.add(key)
    return values


@dataclass(frozen=True, slots=True)
class Settings:
    """Typed look-ups in one JSON object; every error is a ``CheckpointError`` that names the key.

    A key that is absent takes the ``default``. One that is there with the wrong type or out of range is an
    error, and so is ``null`` unless the method says ``optional``.
    """

    values: Mapping[str, object]
    #: What leads to the object: ``config.json: text_config``.
    where: str

    def error(self, key: str, problem: str) -> CheckpointError:
        """The error to raise about ``key``."""
        separator = ": " if self.where.endswith(".json") else "."
        return CheckpointError(f"{self.where}{separator}{key} {problem}")

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = _LARGEST_INTEGER
    ) -> int:
        """An integer in ``[low, high]``; without a ``default`` the key must be there."""
        value = self.values.get(key, default)
        if value is None:
            raise self.error(key, "is missing" if key not in self.values else "is null, expected an integer")
        if type(value) is not int:
            raise self.error(key, f"is {shown(value)}, expected an integer")
        if not low <= value <= high:
            raise self.error(key, f"is {shown(value)}, outside {low}..{high}")
        return value

    def optional_integer(
        self, key: str, default: int | None = None, *, low: int = 0, high: int = _LARGEST_INTEGER
    ) -> int | None:
        """As ``integer``, but ``null`` (and an absent key without ``default``) gives ``None``."""
        if self.values.get(key, default) is None:
            return None
        return self.integer(key, default, low=low, high=high)

    def number(self, key: str, default: float | None = None, *, positive: bool = True) -> float:
        """A number that float32 can hold, not zero if ``positive``; without a ``default`` the key must be
        there."""
        value = self.values.get(key, default)
        if value is None:
            raise self.error(key, "is missing" if key not in self.values else "is null, expected a number")
        if type(value) is not int and type(value) is not float:
            raise self.error(key, f"is {shown(value)}, expected a number")
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        if not math.isfinite(result) or (positive and result <= 0):
            raise self.error(
                key, f"is {shown(value)}, expected a {'positive' if positive else 'finite'} number"
            )
        if abs(result) > _LARGEST_NUMBER or 0 < abs(result) < _SMALLEST_NUMBER:
            raise self.error(key, f"is {shown(value)}, which float32 cannot hold")
        return result

    def optional_number(self, key: str) -> float | None:
        """A positive finite number, or ``None`` for an absent key or ``null``."""
        return None if self.values.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {shown(value)}, expected true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is {shown(value)}, expected a string")
        return value

    def section(self, key: str) -> Settings | None:
        """The object under ``key``, or ``None`` for an absent key or ``null``."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, f"is {kind(value)}, expected an object")
        separator = ": " if self.where.endswith(".json") else "."
        return Settings(value, f"{self.where}{separator}{key}")

    def require(self, key: str, allowed: tuple[object, ...], default: object) -> None:
        """Refuse a value that this program does not convert."""
        value = self.values.get(key, default)
        if not any(type(value) is type(one) and value == one for one in allowed):
            expected = " or ".join("null" if one is None else repr(one) for one in allowed)
            raise self.error(key, f"is {shown(value)}, which is not supported (expected {expected})")
