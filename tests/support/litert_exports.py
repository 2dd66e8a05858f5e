"""Graphs without weights that tests share: each is exported once a session, which takes half a minute.

Processes that run tests side by side share one directory of them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from converter.filenames import CONFIG
from converter.system.progress import StageProgress

#: What of a request is a place, whose contents count.
_PLACES: Final = ("checkpoint", "directory", "vectors")
#: Keys of ``config.json`` that say how weights are stored.
_STORED: Final = ("quantization_config",)

Handler = Callable[[dict[str, Any], StageProgress], Mapping[str, object]]


def kept(export: Handler, graphs: Path) -> Handler:
    """A handler of export requests that keeps what ``export`` has written in the directory ``graphs``.

    A request with the same configuration, vectors, types and options gets copies, and hears of progress
    again.
    """

    def handle(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
        own = graphs / _key(request)
        result = own / "result.json"
        with FileLock(f"{own}.lock"):
            if result.exists():
                made = json.loads(result.read_text())
                for done, total in made["steps"]:
                    progress(done, total)
            else:
                made = _export(export, request, own, progress)
                result.write_text(json.dumps(made))
        for name in made["files"].values():
            shutil.copy(own / name, request["directory"])
        return dict(made["files"])

    return handle


def _export(
    export: Handler, request: Mapping[str, Any], directory: Path, progress: StageProgress
) -> dict[str, Any]:
    steps: list[tuple[int, int]] = []

    def step(done: int, total: int) -> None:
        steps.append((done, total))
        progress(done, total)

    directory.mkdir(exist_ok=True)
    return {"files": export({**request, "directory": str(directory)}, step), "steps": steps}


def _key(request: Mapping[str, Any]) -> str:
    asked = {name: value for name, value in request.items() if name not in _PLACES}
    read = json.loads((Path(request["checkpoint"]) / CONFIG).read_bytes())
    configs = [
        {name: one[name] for name in one if name not in _STORED} for one in (asked.pop("config"), read)
    ]
    digest = hashlib.sha256(json.dumps([asked, *configs]).encode())
    digest.update(Path(request["vectors"]).read_bytes())
    return digest.hexdigest()[:16]
