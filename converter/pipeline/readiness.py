"""What this machine can do: convert for each target, prove the result, and what either still needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from converter.errors import ExtensionError, UsageError
from converter.system.extensions import provider
from converter.system.installed import (
    PACKAGE,
    Library,
    install_command,
    installer,
    libraries,
    reinstall_command,
)
from converter.system.memory import free_memory
from converter.system.processors import processors
from converter.system.progress import Progress, no_progress, stage_of
from targets.options import RUNTIMES, TARGETS
from targets.target import check_known, find_target, known_targets
from validation.loading import Failure, try_loading
from validation.runners import REFERENCE, REFERENCE_EXTRA, find_runner, lacking, present, runtime_of

#: Flags of processors that the runtimes' kernels use, by the machine's name.
_FEATURES: Final[Mapping[str, tuple[str, ...]]] = {
    "x86_64": ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    "aarch64": ("asimdhp", "asimddp", "i8mm", "sve"),
}


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether something can be done here."""

    ready: bool
    #: One line for each thing in the way.
    problems: tuple[str, ...] = ()
    #: Shell commands that mend it.
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TargetReadiness:
    """What can be done for a target."""

    name: str
    #: The runtime of the proof, empty where none is known.
    runtime: str
    convert: Ability
    #: In the runtime, with the reference that it is compared with; ``None`` if that was not asked.
    prove: Ability | None


#: The stage in which they are loaded.
LOADING: Final = "loading the runtimes"


def examine(
    targets: Sequence[str] = (), progress: Progress = no_progress, *, validate: bool = True
) -> dict[str, object]:
    """What is installed and what can be done for ``targets``, all if there are none; JSON can hold it.

    Libraries are loaded in processes of their own, those of the proof if ``validate``. Raises ``UsageError``
    for a target that is not known.
    """
    check_known(targets)
    found = check_targets(targets or known_targets(), progress, validate=validate)
    return {
        "schema": 1,
        "tool": {"version": version(PACKAGE), "installer": installer(), "environment": sys.prefix},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": [_told(library) for library in libraries()],
        "targets": [asdict(one) for one in found],
        "machine": _machine(),
        "places": _places(),
        "hub_token": _has_token(),
    }


def check_targets(
    names: Sequence[str], progress: Progress = no_progress, *, validate: bool = True
) -> list[TargetReadiness]:
    """What can be done for each target of ``names``, which are known; the proof is left out unless
    ``validate``. Libraries are loaded side by side, in the stage ``LOADING`` of ``progress``."""
    loaded = stage_of(progress, LOADING)
    with ThreadPoolExecutor(processors()) as pool:
        writing = [pool.submit(_check_writing, name) for name in names]
        running = [pool.submit(_check_running, name) for name in names if validate]
        reference = [pool.submit(_check, REFERENCE, REFERENCE_EXTRA, PACKAGE)] if validate else []
        futures: list[Future[Any]] = [*writing, *running, *reference]
        for number, _ in enumerate(as_completed(futures), 1):
            loaded(number, len(futures))
    written = [one.result() for one in writing]
    if not validate:
        return [TargetReadiness(name, "", one, None) for name, one in zip(names, written, strict=True)]
    return [
        TargetReadiness(name, runtime, one, _both(proof, reference[0].result()))
        for name, one, (runtime, proof) in zip(names, written, (one.result() for one in running), strict=True)
    ]


def _check_writing(name: str) -> Ability:
    try:
        target = find_target(name)
    except ExtensionError as error:
        return Ability(False, (str(error),))
    return _check(target.modules, target.extra, _package(TARGETS, name))


def _check_running(target: str) -> tuple[str, Ability]:
    """The runtime that proves a target's artifacts, and whether it runs."""
    try:
        registered = runtime_of(target)
        runner = find_runner(target)
    except (UsageError, ExtensionError) as error:
        return "", Ability(False, (str(error),))
    return registered.partition(".")[2], _check(
        runner.modules, runner.extra, _package(RUNTIMES, registered), registered
    )


def _check(
    modules: Sequence[str | tuple[str, ...]], extra: str, package: str, runtime: str | None = None
) -> Ability:
    """Whether ``modules`` are there and can be loaded, and whether ``runtime`` runs with them."""
    if absent := lacking(modules):
        verb = "is" if len(absent) == 1 else "are"
        return Ability(
            False, (f"{', '.join(absent)} {verb} not installed",), (install_command([extra], package),)
        )
    failure = try_loading(present(modules), runtime) if modules else None
    return Ability(True) if failure is None else _broken(failure)


def _broken(failure: Failure) -> Ability:
    if not failure.module:
        return Ability(False, (failure.cause,))
    command = reinstall_command(failure.module)
    told = f"{failure.module} is installed and cannot be loaded: {failure.cause}"
    return Ability(False, (told,), (command,) if command else ())


def _both(one: Ability, other: Ability) -> Ability:
    return Ability(
        one.ready and other.ready, one.problems + other.problems, _merged(one.commands + other.commands)
    )


def _merged(commands: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(commands))


def _package(group: str, name: str) -> str:
    return provider(group, name).partition(" ")[0] or PACKAGE


def _told(library: Library) -> dict[str, object]:
    return {**asdict(library), "extras": list(library.extras), "state": library.state}


def _machine() -> dict[str, object]:
    wanted = _FEATURES.get(platform.machine(), ())
    flags = _flags()
    return {
        "architecture": platform.machine(),
        "processors": processors(),
        "features": {name: name in flags for name in wanted} if flags else {},
        "free_memory": free_memory(),
    }


def _flags() -> set[str]:
    """Flags of the first processor; empty where the system does not list them in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    listed = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(listed, "").split())


def _places() -> list[dict[str, object]]:
    """Directories that are written to, with what is free there."""
    from huggingface_hub import constants

    from converter.checkpoint.lattice import machine_code

    code, compiled = machine_code()
    places: list[tuple[str, Path | None]] = [
        ("working directory", Path.cwd()),
        ("temporary files", Path(tempfile.gettempdir())),
        ("models from the Hub", Path(constants.HF_HUB_CACHE)),
        ("compiled lattice code", code),
    ]
    told: list[dict[str, object]] = []
    for name, path in places:
        there = _nearest(path) if path is not None else None
        told.append(
            {
                "name": name,
                "path": None if path is None else str(path),
                "writable": there is not None and os.access(there, os.W_OK | os.X_OK),
                "free": None if there is None else shutil.disk_usage(there).free,
            }
        )
    told[-1]["compiled"] = compiled
    return told


def _nearest(path: Path) -> Path:
    """``path``, or the directory above it in which it would be made."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _has_token() -> bool:
    from huggingface_hub import constants, get_token

    return not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and bool(get_token())
