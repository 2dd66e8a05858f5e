"""Who runs steps. An executor is given steps that need nothing of each other, and a place for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol

from converter.errors import QatconvertError, ValidationError
from converter.pipeline.release.steps import Step
from converter.system.child import Worker, is_secret
from converter.system.progress import no_progress

_MODULE: Final = "converter.pipeline.release.child"


@dataclass(frozen=True)
class Ended:
    """What came of a step: what its function gave, or in a line why it failed."""

    step: Step
    result: Mapping[str, Any] | None
    error: str | None = None


class Executor(Protocol):
    """Runs steps."""

    def run(
        self, steps: Sequence[Step], place: Callable[[Step], Path], ended: Callable[[Ended], None]
    ) -> None:
        """Run each of ``steps`` in its own directory, in any order. ``ended`` is called after each, by one
        thread at a time. What a step raises is its own failure. An interrupt ends those that run."""


class Local:
    """Runs steps in processes of this machine: at most ``jobs`` at once, which are expected to take at most
    ``memory`` bytes together. One runs alone whatever it takes."""

    def __init__(self, jobs: int, memory: int) -> None:
        self._jobs, self._memory = jobs, memory
        self._workers: list[Worker] = []
        self._lock = Lock()

    def run(
        self, steps: Sequence[Step], place: Callable[[Step], Path], ended: Callable[[Ended], None]
    ) -> None:
        """See ``Executor``."""
        # the longest first, so that none is left alone at the end
        waiting = sorted(steps, key=lambda step: -(step.seconds or 0))
        running: dict[Future[Ended], Step] = {}
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                while waiting or running:
                    while step := self._next(waiting, list(running.values())):
                        waiting.remove(step)
                        running[pool.submit(self._run, step, place(step))] = step
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        del running[future]
                        ended(future.result())
            except BaseException:
                with self._lock:
                    for worker in self._workers:
                        worker.give_up()
                raise

    def _next(self, waiting: Sequence[Step], running: Sequence[Step]) -> Step | None:
        """The first step for which there is room now."""
        if len(running) >= self._jobs:
            return None
        taken = sum(step.memory for step in running)
        return next((one for one in waiting if not running or taken + one.memory <= self._memory), None)

    def _run(self, step: Step, directory: Path) -> Ended:
        own = {name: value for name, value in os.environ.items() if not is_secret(name)}
        with Worker(_MODULE, environment={**own, "HF_HUB_OFFLINE": "1"}, error=ValidationError) as worker:
            with self._lock:
                self._workers.append(worker)
            try:
                request = {"step": dict(step.request), "directory": str(directory)}
                return Ended(step, worker.call(request, no_progress, what=step.label))
            except QatconvertError as error:
                return Ended(step, None, str(error).removeprefix(f"{step.label}: "))
            finally:
                with self._lock:
                    self._workers.remove(worker)
