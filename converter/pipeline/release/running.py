"""A release from its file to its output: what is done already is verified, the rest is made."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from converter.errors import QatconvertError
from converter.pipeline.preview import preview
from converter.pipeline.publication import publishing
from converter.pipeline.release.assembly import assemble, verdicts
from converter.pipeline.release.document import Item, Release, read_release
from converter.pipeline.release.executors import Ended, Executor, Local
from converter.pipeline.release.steps import Step, source_of, step_of
from converter.pipeline.release.store import STORE, Store
from converter.pipeline.release.summary import (
    BLOCKED,
    ERROR,
    FAILED,
    JSON,
    JUNIT,
    MARKDOWN,
    PASSED,
    PUBLISHED,
    Made,
    Sent,
    Summary,
    gates_of,
)
from converter.pipeline.running import Conversion
from converter.system.memory import free_memory
from converter.system.output import check_destination
from converter.system.progress import Progress, begin, no_progress
from converter.system.replacing import write_whole
from converter.system.scratch import locked

_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    #: The release file.
    file: Path
    #: Steps at once, and bytes of memory for them together; ``None`` for what is free.
    jobs: int = 1
    memory: int | None = None
    offline: bool = False
    #: Whether what the file names a repository for is published.
    publish: bool = True


@dataclass(frozen=True)
class Planned:
    """A model of the release, what a conversion of it would do, and its steps; or why it cannot be made."""

    item: Item
    steps: Sequence[Step]
    preview: Mapping[str, Any]
    error: str | None = None


def plan_release(
    request: Request, progress: Progress = no_progress, warn: Callable[[str], None] = print
) -> dict[str, Any]:
    """What ``release`` would do: every step with what it takes, and whether it is done. Writes nothing, and
    downloads of repositories their descriptions alone. Raises ``UsageError`` for a file that means nothing.
    """
    release = read_release(request.file)
    store = Store(release.output)
    planned = [_planned(one, release, request, False, progress, warn) for one in release.items]
    steps = [
        {
            "model": one.item.name,
            "target": target,
            "key": step.key if step else None,
            "done": step is not None and store.recorded(step) is not None,
            "bytes": _sizes(one.preview, target),
            "memory": step.memory if step else None,
            "seconds": step.seconds if step else None,
            "error": one.error,
        }
        for one in planned
        for target, step in _with_steps(one)
    ]
    downloads = [
        {"model": one.item.name, "bytes": one.preview.get("download", {}).get("bytes", 0)} for one in planned
    ]
    return {
        "schema": 1,
        "release": release.name,
        "output": str(release.output),
        "steps": steps,
        "downloads": downloads,
        "publications": [_looked_at(one, release) for one in release.items if _published(one, request)],
        "disk": sum(step["bytes"] or 0 for step in steps if not step["done"]),
    }


def _published(item: Item, request: Request) -> bool:
    return request.publish and item.destination is not None


def _destination(item: Item, document: Release) -> publishing.Request:
    return publishing.Request(document.output / item.name, **(item.destination or {}))


def _looked_at(item: Item, document: Release) -> dict[str, Any]:
    """Where a model would be published, and what is there now."""
    asked = _destination(item, document)
    found: dict[str, Any] = {"model": item.name, "repo": asked.repo, "head": None, "error": None}
    try:
        return {**found, "head": publishing.look(asked).commit}
    except QatconvertError as error:
        return {**found, "error": str(error)}


def _with_steps(planned: Planned) -> list[tuple[str, Step | None]]:
    by_target = {step.target: step for step in planned.steps}
    return [(target, by_target.get(target)) for target in planned.item.targets]


def release(
    request: Request,
    progress: Progress = no_progress,
    warn: Callable[[str], None] = print,
    tell: Callable[[str], None] = print,
    executor: Executor | None = None,
) -> tuple[Summary, Path]:
    """Make, prove and lay out every artifact of a release file that is not there yet; the summary and the
    output directory.

    ``tell`` gets a line for each artifact. A gate that fails, or an error, is that of its artifact alone: it
    is left out of the output, and the others are made. A model whose artifacts have all passed is published
    where the file names a repository. Raises ``UsageError`` for a file that means nothing,
    ``DestinationError`` for an output in which another release runs, and ``HubError``, before anything is
    made, for a repository that cannot be written to.
    """
    document = read_release(request.file)
    check_destination(document.output, force=True)
    document.output.mkdir(parents=True, exist_ok=True)
    with locked(document.output, f"release of {document.name}"):
        return _release(document, request, progress, warn, tell, executor), document.output


def _release(
    document: Release,
    request: Request,
    progress: Progress,
    warn: Callable[[str], None],
    tell: Callable[[str], None],
    executor: Executor | None,
) -> Summary:
    store = Store(document.output)
    for item in document.items:
        if _published(item, request):
            begin(progress, f"looking at {_destination(item, document).repo}")
            publishing.look(_destination(item, document))
    planned = [_planned(one, document, request, True, progress, warn) for one in document.items]
    made: dict[tuple[str, str], Made] = {}
    for one in planned:
        for target in one.item.targets if one.error else ():
            made[one.item.name, target] = Made(one.item.name, target, ERROR, False, error=one.error)
            tell(f"{one.item.name} {target}: {one.error}")
    open_: list[Step] = []
    for step in (step for one in planned for step in one.steps):
        begin(progress, f"verifying {step.label}")
        result = store.finished(step, progress)
        if result is None:
            open_.append(step)
        else:
            made[step.model, step.target] = _made(store, step, result, cached=True)
    began: dict[str, float] = {}

    def place(step: Step) -> Path:
        store.clear(step)
        begin(progress, f"making {step.label}")
        began[step.key] = time.monotonic()
        return store.place(step)

    def ended(one: Ended) -> None:
        step, seconds = one.step, time.monotonic() - began[one.step.key]
        if one.result is None:
            entry = Made(step.model, step.target, ERROR, False, error=one.error)
        else:
            for warning in one.result["warnings"]:
                warn(warning)
            entry = _made(store, step, one.result, cached=False)
            if entry.status != ERROR:
                store.record(step, one.result)
        made[step.model, step.target] = replace(entry, seconds=seconds)
        tell(f"{step.label}: {_told(entry)}")

    (executor or Local(request.jobs, _budget(request))).run(open_, place, ended)
    for one in planned:
        _lay_out(document, store, one, made, progress, tell)
    order = [made[item.name, target] for item in document.items for target in item.targets]
    sent = [
        _send(item, document, [made[item.name, target] for target in item.targets], progress, tell)
        for item in document.items
        if _published(item, request)
    ]
    summary = Summary(document.name, order, sent)
    _write(document.output, summary)
    return summary


def _send(
    item: Item, document: Release, made: Sequence[Made], progress: Progress, tell: Callable[[str], None]
) -> Sent:
    """Publish a model, unless one of its artifacts did not pass: a repository has all of them or none."""
    asked = _destination(item, document)
    if any(one.status != PASSED for one in made):
        tell(f"{item.name} to {asked.repo}: {BLOCKED}, not all of its artifacts passed")
        return Sent(item.name, asked.repo, BLOCKED)
    try:
        done = publishing.publish(asked, progress)
    except QatconvertError as error:
        tell(f"{item.name} to {asked.repo}: {error}")
        return Sent(item.name, asked.repo, ERROR, error=str(error))
    tell(f"{item.name} to {asked.repo}: {PUBLISHED}")
    return Sent(item.name, asked.repo, PUBLISHED, done.commit, done.pull_request or done.url)


def _budget(request: Request) -> int:
    return free_memory() if request.memory is None else request.memory


def _planned(
    item: Item,
    document: Release,
    request: Request,
    fetch: bool,
    progress: Progress,
    warn: Callable[[str], None],
) -> Planned:
    """The steps of an item. A model that cannot be converted is an error of its artifacts alone."""
    options = {name: value for own in item.options.values() for name, value in own.items()}
    shown = Conversion(
        item.model,
        item.targets,
        document.output / STORE / "none",
        offline=request.offline,
        options=options,
        validation=item.validation,
    )
    try:
        source = source_of(item, offline=request.offline, fetch=fetch, progress=progress)
        found = preview(shown, progress, warn)
        steps = []
        for target in item.targets:
            estimate = found["targets"][target]["estimate"]
            memory, seconds = 0, None
            if estimate is not None:
                memory, seconds = estimate["with_proof"]["memory"], estimate["with_proof"]["seconds"]
            steps.append(step_of(item, target, source, memory, seconds))
    except QatconvertError as error:
        _LOG.info("%s: %s", item.name, error)
        return Planned(item, (), {}, str(error))
    return Planned(item, steps, found)


def _sizes(found: Mapping[str, Any], target: str) -> int | None:
    if not found:
        return None
    sizes: list[int] = [file["bytes"] for file in found["targets"][target]["files"]]
    return sum(sizes)


def _made(store: Store, step: Step, result: Mapping[str, Any], *, cached: bool) -> Made:
    """What a finished step made, by its own report."""
    entry = verdicts(store.output(step)).get(step.target, {})
    error = next(iter(result["errors"]), None)
    status = ERROR if error else PASSED if result["passed"] else FAILED
    logits = entry.get("logits") or {}
    return Made(
        step.model,
        step.target,
        status,
        cached,
        bytes=entry.get("bytes"),
        mean_kld=logits.get("mean_kld"),
        gates=gates_of(entry),
        error=error,
    )


def _told(made: Made) -> str:
    if made.status == PASSED:
        return PASSED
    return f"{made.status}: {made.error or ', '.join(made.gates)}"


def _lay_out(
    document: Release,
    store: Store,
    planned: Planned,
    made: dict[tuple[str, str], Made],
    progress: Progress,
    tell: Callable[[str], None],
) -> None:
    """Put the artifacts of a model that passed into its directory of the output."""
    name = planned.item.name
    passed = [step for step in planned.steps if made[name, step.target].status == PASSED]
    if not passed:
        return
    begin(progress, f"laying out {name}")
    destination = document.output / name
    try:
        assemble([store.output(step) for step in passed], destination, f"release of {document.name}")
    except QatconvertError as error:
        for step in passed:
            made[name, step.target] = replace(made[name, step.target], status=ERROR, error=str(error))
        tell(f"{name}: {error}")
        return
    report = verdicts(destination)
    for step in passed:
        path = f"{name}/{report[step.target]['artifact']}"
        made[name, step.target] = replace(made[name, step.target], path=path)


def _write(output: Path, summary: Summary) -> None:
    import json

    text = json.dumps(summary.as_dict(), indent=1, ensure_ascii=False) + "\n"
    for name, content in ((JSON, text), (MARKDOWN, summary.markdown()), (JUNIT, summary.junit())):
        write_whole(output / name, content)
