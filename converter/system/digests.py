"""SHA-256 of files: one loop, which gives way to other threads and can be stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

from converter.errors import CheckpointError

_PIECE = 16 << 20


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
