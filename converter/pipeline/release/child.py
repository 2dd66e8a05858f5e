"""The process in which a step runs: ``python -m converter.pipeline.release.child``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.pipeline.release.steps import make
from converter.system.child import serve
from converter.system.progress import StageProgress


def handle(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    """Run the step of a request; ``progress`` counts stages that have begun."""
    stages: dict[str, None] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages[stage] = None
            progress(len(stages), 0)

    return make(request["step"], Path(request["directory"]), tell)


if __name__ == "__main__":
    serve(handle)
