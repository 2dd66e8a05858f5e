"""Files of safetensors as ``transformers`` reads them here: few are open at once, and none is mapped.

``transformers`` opens all files of a checkpoint before it reads the first tensor, and maps them. 200 files
are more than some systems allow, and the pages of a mapped file stay until the last tensor is read, beside
the model. It has no argument for either (5.23). It also ends with a ``KeyError`` for an index of files that
has no ``metadata``, from which it takes nothing that a checkpoint needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from converter.filenames import INDEX

#: Files that are open at once. A checkpoint has fewer as a rule, so that none is opened twice.
_OPEN: Final = 16

_Opener = Callable[[str], Any]


@contextmanager
def few_open_files() -> Iterator[None]:
    """Have ``transformers`` read each tensor into memory of its own, from files that are open while they are
    read and a little longer."""
    from transformers import modeling_utils

    original = modeling_utils.safe_open

    @lru_cache(maxsize=_OPEN)
    def opened(path: str) -> Any:
        return original(path, framework="pt", backend="pread")

    modeling_utils.safe_open = lambda path, **options: _File(opened, path)
    try:
        yield
    finally:
        modeling_utils.safe_open = original
        opened.cache_clear()


@contextmanager
def any_index() -> Iterator[None]:
    """Have ``transformers`` take an index of files that has no ``metadata`` for one that has none in it."""
    from transformers import modeling_utils

    original = modeling_utils.get_checkpoint_shard_files

    def files(directory: str, index: str, **options: Any) -> Any:
        listed = json.loads(Path(index).read_text("utf-8"))
        if isinstance(listed.get("metadata"), dict):
            return original(directory, index, **options)
        with TemporaryDirectory() as temporary:
            completed = Path(temporary) / INDEX
            completed.write_text(json.dumps({**listed, "metadata": {}}), "utf-8")
            return original(directory, str(completed), **options)

    modeling_utils.get_checkpoint_shard_files = files
    try:
        yield
    finally:
        modeling_utils.get_checkpoint_shard_files = original


class _File:
    """What ``transformers`` uses of an open file."""

    def __init__(self, opened: _Opener, path: str) -> None:
        self._opened, self._path = opened, str(path)

    def keys(self) -> Sequence[str]:
        """Names of the tensors."""
        return list(self._opened(self._path).keys())

    def get_slice(self, name: str) -> _Tensor:
        """A tensor, of which nothing is read yet."""
        return _Tensor(self._opened, self._path, name)

    def __exit__(self, *error: object) -> None:
        """Nothing: the file is not this object's."""


class _Tensor:
    """What ``transformers`` uses of a tensor that is not read yet."""

    def __init__(self, opened: _Opener, path: str, name: str) -> None:
        self._opened, self._path, self._name = opened, path, name

    def get_shape(self) -> list[int]:
        """Numbers of elements by dimension."""
        shape: list[int] = self._slice().get_shape()
        return shape

    def get_dtype(self) -> str:
        """The dtype as safetensors names it (``BF16``)."""
        return str(self._slice().get_dtype())

    def __getitem__(self, index: Any) -> Any:
        """The elements of an index as a ``torch.Tensor`` of their own, in the file's dtype."""
        return self._slice()[index]

    def _slice(self) -> Any:
        return self._opened(self._path).get_slice(self._name)
