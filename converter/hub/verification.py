"""What lies in the cache, compared byte for byte with what the Hub lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from converter.hub.repository import RemoteFile, content_digest
from converter.system.digests import hexdigest
from converter.system.files import FileState, state_of
from converter.system.processors import processors

_STREAMS = 4
_GIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Check:
    """A file whose content was compared."""

    #: What the file was when that began.
    state: FileState
    #: What its content has and should have. None where the server gives no digest: there is nothing to
    #: compare with.
    digest: str | None

    @property
    def kind(self) -> str | None:
        """How the content was compared: by its "sha256", by its blob id of "git", or not at all."""
        if self.digest is None:
            return None
        return "sha256" if len(self.digest) == 64 else "git"


def check_all(folder: Path, files: Iterable[RemoteFile], advance: Callable[[int], None]) -> dict[str, Check]:
    """Compare files in `folder`, several at a time; those that are damaged or gone are left out.

    `advance` counts the bytes of the files that are as they should be. Raises OSError for a file that cannot
    be read.
    """
    stop = Event()
    with ThreadPoolExecutor(min(_STREAMS, processors()), thread_name_prefix="check") as threads:
        jobs = {file.name: threads.submit(check, folder / file.name, file, stop, advance) for file in files}
        try:
            checks = {name: job.result() for name, job in jobs.items()}
        except BaseException:
            stop.set()
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return {name: found for name, found in checks.items() if found is not None}


def check(
    path: Path,
    file: RemoteFile,
    stop: Event | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Check | None:
    """Compare the content of `path` with the digest of `file`; None if it is another, or if there is none.

    An ETag that is no digest by all that is known may be git's all the same. Where the content has it, that
    is no chance, and it is the digest from then on. `advance` counts bytes, and takes them back in the end if
    they are the wrong ones.
    """
    state = state_of(path)
    if state is None:
        return None
    likely = file.digest or (file.etag if _GIT.fullmatch(file.etag or "") else None)
    if likely is None:
        advance(state.size)
        return Check(state, None)
    if hexdigest(path, content_digest(likely, state.size), stop, advance) == likely:
        return Check(state, likely)
    if file.digest is None:
        return Check(state, None)
    advance(-state.size)
    return None
