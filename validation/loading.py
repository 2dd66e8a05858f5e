"""Whether libraries can be loaded, tried in a process of its own: what is installed may still be broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from threading import Timer
from typing import Any, Final

from converter.errors import QatconvertError
from converter.system.child import Worker, serve
from converter.system.progress import StageProgress
from validation.runners import find_runner

#: Seconds for all modules of a trial; litert-torch, the slowest to load, takes ten of them.
LIMIT: Final = 120.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A library that cannot be loaded."""

    #: The module that was imported, empty if it was the runtime that refused to run.
    module: str
    #: One line.
    cause: str


def try_loading(modules: Sequence[str], runtime: str | None = None, seconds: float = LIMIT) -> Failure | None:
    """The first of ``modules`` that cannot be imported, in this order, ``None`` if all can.

    After them ``runtime``, a registered name such as ``gguf.llamacpp``, is asked whether it runs with what it
    found. A crash is a failure, and so is to take longer than ``seconds``.
    """
    reached = 0

    def count(done: int, total: int | None) -> None:
        nonlocal reached
        reached = done

    with Worker("validation.loading") as worker:
        late = Timer(seconds, worker.give_up)
        late.start()
        try:
            answer = worker.call({"modules": list(modules), "runtime": runtime}, count, what="loading")
        except QatconvertError as error:
            cause = str(error).removeprefix("loading: ")
            if cause == "given up":
                cause = f"is not loaded after {seconds:g} seconds"
            return Failure(modules[reached] if reached < len(modules) else "", cause)
        finally:
            late.cancel()
    return Failure(answer["module"], answer["cause"]) if answer else None


def _answer(request: dict[str, Any], progress: StageProgress) -> Mapping[str, object]:
    modules = request["modules"]
    for number, module in enumerate(modules):
        progress(number, len(modules))
        try:
            import_module(module)
        except (Exception, SystemExit) as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            return {"module": module, "cause": cause}
    progress(len(modules), len(modules))
    if request["runtime"] is not None:
        target, _, name = request["runtime"].partition(".")
        try:
            find_runner(target, name).configured({})
        except QatconvertError as error:
            return {"module": "", "cause": str(error)}
    return {}


if __name__ == "__main__":
    serve(_answer)
