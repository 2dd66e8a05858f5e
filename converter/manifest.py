"""The manifest: what was read, how every tensor was stored, what was written, by which versions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from converter.checkpoint import Checkpoint

#: Packages that can change the bytes of an artifact or the figures of a report.
_LIBRARIES = ("gguf", "huggingface-hub", "numba", "numpy", "llama-cpp-python", "torch", "transformers")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces of 1 MiB; releases the GIL."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


class SourceDigests:
    """SHA-256 and size of the source files, computed in the background while they are converted."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._entries: list[tuple[Path, Future[str]]] = [
            (path, self._pool.submit(sha256, path)) for path in sorted(files)
        ]

    def entries(self, root: Path) -> list[dict[str, object]]:
        """``{"path", "bytes", "sha256"}`` per file, paths relative to ``root``; waits for the digests."""
        return [
            {"path": os.path.relpath(path, root), "bytes": path.stat().st_size, "sha256": digest.result()}
            for path, digest in self._entries
        ]

    def close(self) -> None:
        """Give up digests that are not needed any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that matter for the result."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build(
    checkpoint: Checkpoint,
    source: Mapping[str, object],
    files: Sequence[Mapping[str, object]],
    targets: Mapping[str, Mapping[str, object]],
    directory: Path,
) -> dict[str, object]:
    """The manifest of everything that lies in ``directory``; holds no time, host or outside path.

    ``files`` are the source files' digests, ``targets`` maps each target to its storage plan.
    """
    return {
        "schema": 1,
        "tool": {"name": "qatconvert", "version": version("qatconvert")},
        "libraries": library_versions(),
        "source": {**source, "format": checkpoint.format, "files": list(files)},
        "targets": dict(targets),
        "left_out": [
            {"name": item.name, "shape": list(item.shape), "dtype": item.dtype, "reason": item.reason}
            for item in checkpoint.left_out
        ],
        "artifacts": [
            {
                "path": path.relative_to(directory).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        ],
    }


def write(path: Path, content: Mapping[str, object]) -> None:
    """Write the manifest; the same content gives the same bytes."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
