"""The manifest: what was read, how every tensor was stored, what was written, by which versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Final

from converter.errors import CheckpointError

if TYPE_CHECKING:
    from converter.checkpoint.opened import Checkpoint

#: Version of the manifest's layout.
SCHEMA: Final = 1
#: Largest manifest that is read; that of a model of 10,000 tensors has 3 MB.
LARGEST: Final = 64 << 20
_PIECE = 16 << 20
#: Packages that can change the bytes of an artifact or the figures of a report.
_LIBRARIES = (
    "ai-edge-litert",
    "flatbuffers",
    "gguf",
    "huggingface-hub",
    "litert-converter",
    "litert-lm",
    "litert-lm-builder",
    "litert-torch",
    "llama-cpp-python",
    "mobius-onnx",
    "numba",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "protobuf",
    "torch",
    "transformers",
    "xllamacpp",
)


def sha256(path: Path, stop: Event | None = None) -> str:
    """Hexadecimal SHA-256 of a file. Raises as ``hexdigest`` does."""
    return hexdigest(path, hashlib.sha256(), stop)


def hexdigest(
    path: Path,
    digest: hashlib._Hash,
    stop: Event | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> str:
    """What ``digest`` says of a file, after what it was given before; releases the GIL. ``advance`` counts
    bytes. Raises ``CancelledError`` once ``stop`` is set."""
    # Large pieces: after each, the thread has to wait for its turn again.
    buffer = memoryview(bytearray(min(_PIECE, max(1, path.stat().st_size))))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            if stop is not None and stop.is_set():
                raise CancelledError
            digest.update(buffer[:count])
            advance(count)
    return digest.hexdigest()


class Digests:
    """SHA-256 and size of files, computed in the background while others are read, written or run."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="sha256")
        self._digests: dict[Path, Future[str]] = {}
        self._known: dict[Path, str] = {}
        self._stop = Event()

    def add(self, files: Iterable[Path]) -> None:
        """Begin with ``files``, as far as they have not begun yet."""
        for path in files:
            if path in self._digests:
                continue
            if path in self._known:
                self._digests[path] = Future()
                self._digests[path].set_result(self._known[path])
            else:
                self._digests[path] = self._pool.submit(sha256, path, self._stop)

    def know(self, digests: Mapping[Path, str]) -> None:
        """The SHA-256 of files that were read whole already, should they be added."""
        self._known.update(digests)

    def entries(self, root: Path) -> list[dict[str, object]]:
        """``{"path", "bytes", "sha256"}`` per file below ``root``, sorted by path; waits for the digests.

        Raises ``CheckpointError`` for a file that can no longer be read.
        """
        try:
            return [
                {
                    "path": path.relative_to(root).as_posix(),
                    "bytes": path.stat().st_size,
                    "sha256": digest.result(),
                }
                for path, digest in sorted(self._digests.items())
                if path.is_relative_to(root)
            ]
        except OSError as error:
            raise CheckpointError(f"{error.filename}: cannot be read any more: {error.strerror}") from error

    def wait(self) -> None:
        """Wait for what has begun; what goes wrong shows when its entry is asked for."""
        wait(list(self._digests.values()))

    def close(self) -> None:
        """Give up digests that are not needed any more; the program's end would wait for them."""
        self._stop.set()
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
    options: Mapping[str, object],
    checkpoint: Checkpoint,
    source: Mapping[str, object],
    files: Sequence[Mapping[str, object]],
    targets: Mapping[str, Mapping[str, object]],
    artifacts: Sequence[Mapping[str, object]],
) -> dict[str, object]:
    """The manifest of a conversion; holds no time, host or outside path.

    ``options`` concern the whole conversion, ``files`` and ``artifacts`` are the digests of what was read and
    written, ``targets`` maps each target to its storage plan and its own options.
    """
    return {
        "schema": SCHEMA,
        "tool": {"name": "qatconvert", "version": version("qatconvert")},
        "libraries": library_versions(),
        "options": dict(options),
        "source": {**source, "format": checkpoint.format, "files": list(files)},
        "targets": dict(targets),
        "left_out": [
            {"name": item.name, "shape": list(item.shape), "dtype": item.dtype, "reason": item.reason}
            for item in checkpoint.left_out
        ],
        "artifacts": list(artifacts),
    }


def files_of(directory: Path) -> list[Path]:
    """Every file in a directory and those below it."""
    return [path for path in directory.rglob("*") if path.is_file()]


def renewed(earlier: Mapping[str, object], artifacts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """``earlier`` for a conversion in which ``artifacts`` replace files of the same name; empty if it is no
    manifest."""
    listed = earlier.get("artifacts")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        return {}
    names = {entry["path"] for entry in artifacts}
    entries = [*artifacts, *(entry for entry in listed if entry.get("path") not in names)]
    return {**earlier, "artifacts": sorted(entries, key=lambda entry: str(entry.get("path")))}


def write(path: Path, content: Mapping[str, object]) -> None:
    """Write the manifest; the same content gives the same bytes."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
