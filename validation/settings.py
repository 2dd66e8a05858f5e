"""What a validation needs before there is an artifact: options, token ids, and a process with transformers.

Whatever can be wrong with the options shows here, so that no finished conversion is lost to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.architecture import SLIDING
from converter.checkpoint.opened import Checkpoint
from converter.errors import UsageError
from converter.system.child import Worker
from converter.system.digests import sha256
from converter.system.progress import Progress, no_progress, stage_of
from targets.options import Declaration, Option, check_apart, check_known_names, declarations
from validation import gates, limits
from validation.baseline import check_baseline
from validation.evaluation import Evaluation, find_evaluation
from validation.reference.logits import check_dtype
from validation.reference.process import reference_worker
from validation.reference.source import gridded_modules
from validation.room import Room, room_in
from validation.runners import Runner, check_available, find_runner, runtime_of
from validation.text import Tokens, cut, encode

#: The setting by which the user accepts matrices that lie on no lattice; manifests record it so.
OFF_LATTICE: Final = "off_lattice"


@dataclass(frozen=True, slots=True)
class Settings:
    """How artifacts are proven."""

    #: How many positions of logits are compared.
    positions: int = 512
    #: A file with the text to compare on. By default it is the checkpoint's own text, else the shipped one.
    text: Path | None = None
    #: Limits that override the general ones, by name.
    gates: Mapping[str, float] = field(default_factory=dict)
    #: The type that the reference is computed in.
    reference_dtype: str = "float32"
    #: Most bytes of the reference model's weights in memory.
    max_memory: int | None = None
    #: The name of what is measured beside an artifact.
    baseline: str | None = None
    #: Whether logits of the artifact's own weights are computed. That takes 4 bytes per parameter of
    #: temporary files.
    same_weights: bool = True
    #: The runtime that runs the artifacts, by target: ``{"gguf": "llamacpp"}``.
    runtimes: Mapping[str, str] = field(default_factory=dict)
    #: Values of options that runtimes declare, each for the runtimes that take it.
    runtime_options: Mapping[str, object] = field(default_factory=dict)
    #: The directory of the cache of reference logits (default: ``reference.default_cache()``).
    cache: Path | None = None
    #: The artifact is another tool's: what is not as this one builds it is listed and not judged.
    foreign: bool = False
    #: Gates without which the user goes on if they cannot run.
    allow_unrun: tuple[str, ...] = ()
    #: The user accepts matrices that lie on no lattice.
    off_lattice: bool = False
    #: Tells what there is for temporary files in a directory, and in memory. Models are cut by it.
    room: Callable[[Path], Room] = room_in

    def runner(self, target: str) -> Runner:
        """What runs a target's artifacts, with its options. Raises ``UsageError`` if there is no such runtime
        or it cannot run so, and for one with an option that is called like a field here."""
        runner = find_runner(target, self.runtimes.get(target))
        check_apart(runtime_of(target, self.runtimes.get(target)), runner.options)
        names = {option.name for option in runner.options}
        given = self.runtime_options
        return runner.configured({name: given[name] for name in given if name in names})


def read_settings(given: Mapping[str, Any]) -> Settings:
    """``Settings`` of their fields, among which options of runtimes may stand by their own names. Raises
    ``UsageError`` for a name that no field and no registered runtime has."""
    names, declared = {field.name for field in fields(Settings)}, _declared()
    check_known_names(given, {*names, *declared})
    own = {name: value for name, value in given.items() if name in names}
    options = {name: value for name, value in given.items() if name not in names}
    options = {**own.get("runtime_options", {}), **options}
    check_known_names(options, declared)
    return Settings(**{**own, "runtime_options": options})


def recordable(given: Mapping[str, Any]) -> dict[str, Any]:
    """What ``read_settings`` takes, as a manifest may record it, which is read on other machines.

    The text to compare on and the files that options of runtimes take are recorded by their SHA-256. Other
    places on this machine are left out.
    """
    options = {name: option for name, (_, option) in _declared().items()}
    found: dict[str, Any] = {}
    for name, value in given.items():
        option = options.get(name)
        if name == "text":
            found[name] = sha256(value) if value else None
        elif name == "runtime_options":
            found[name] = recordable(value)
        elif option is not None and option.kind == "file":
            found[name] = [_digest(text) for text in value] if option.repeatable else _digest(value)
        elif name != "cache" and not _is_place(option, value):
            found[name] = value
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _is_place(option: Option | None, value: object) -> bool:
    if option is not None and (option.outside or option.kind == "path"):
        return True
    return isinstance(value, Path)


def check_runtimes(settings: Settings, targets: Collection[str]) -> None:
    """Raise ``UsageError`` if the runtimes of ``targets`` are not installed or cannot run as they are asked
    to, or if a choice or an option has no effect with them. Imports none of their libraries."""
    check_available(targets, settings.runtimes)
    for target in settings.runtimes:
        if target not in targets:
            raise UsageError(f"a runtime of {target} has no effect without target {target}")
    taken = {option.name for target in targets for option in settings.runner(target).options}
    for name, value in settings.runtime_options.items():
        owner, option = _declared()[name]
        if name not in taken and value != option.default:
            used = " and ".join(runtime_of(target, settings.runtimes.get(target)) for target in targets)
            raise UsageError(f"{option.title} is an option of {owner} and has no effect in {used}")


def _declared() -> dict[str, tuple[Declaration, Option]]:
    """The options of all runtimes by name, and whose they are."""
    found = [one for one in declarations()[0] if one.runtime]
    return {option.name: (one, option) for one in found for option in one.group.options}


@dataclass(frozen=True, slots=True)
class Prepared:
    """All of a validation that needs no artifact, the same for every target."""

    checkpoint: Checkpoint
    settings: Settings
    #: The token ids of the text in ``evaluation``.
    tokens: Tokens
    evaluation: Evaluation
    #: A ``reference_worker`` that is running already.
    worker: Worker


@contextmanager
def prepare(
    checkpoint: Checkpoint,
    settings: Settings,
    progress: Progress = no_progress,
    context: int | None = None,
    worker: Worker | None = None,
) -> Iterator[Prepared]:
    """Check ``settings`` and make the token ids.

    ``worker`` is a ``reference_worker`` that may be started already. Without one, there is one that ends with
    the context. ``context`` is the most tokens that every artifact takes, if that is less than the model.

    Raises ``UsageError`` for an option that means nothing and for a text that is too short. Raises
    ``CheckpointError`` for a text of the checkpoint's own that is none, and ``ValidationError`` when its
    tokenizer or chat template fails.
    """
    architecture = checkpoint.architecture
    limits.check(settings.gates)  # an unknown gate costs no work
    check_baseline(settings.baseline)
    check_dtype(settings.reference_dtype)
    if checkpoint.form.float32_alone and settings.reference_dtype != "float32":
        raise UsageError(
            f"--reference-dtype {settings.reference_dtype}: transformers would round the scales of "
            f"{checkpoint.form.name} to it: its reference is float32"
        )
    gates.check_unrun(settings.allow_unrun)
    evaluation = find_evaluation(checkpoint.evaluation, settings.text)
    with ExitStack() as stack:
        if worker is None:
            worker = stack.enter_context(reference_worker())
        encoding = encode(
            checkpoint.source.directory(),
            evaluation.passages,
            architecture.vocabulary,
            worker,
            stage_of(progress, "tokenizing text (transformers)"),
        )
        sliding = any(layer.attention == SLIDING for layer in architecture.layers)
        tokens = cut(
            encoding,
            settings.positions,
            architecture.sliding_window if sliding else None,
            min(architecture.context, context or architecture.context),
        )
        yield Prepared(checkpoint, settings, tokens, evaluation, worker)


def reference_entry(prepared: Prepared) -> dict[str, Any]:
    """The ``reference`` block of the report."""
    tokens = prepared.tokens
    return {
        "runtime": "transformers",
        "version": version("transformers"),
        "dtype": prepared.settings.reference_dtype,
        "positions": tokens.positions,
        **({"activation_grids": False} if gridded_modules(prepared.checkpoint) else {}),
        "torch": version("torch"),
        "text": prepared.evaluation.sha256,
        "text_name": prepared.evaluation.name,
        "sequences": [
            {"kind": kind, "positions": len(ids) - first, **({"context": first} if first else {})}
            for kind, ids, first in zip(tokens.kinds, tokens.sequences, tokens.firsts, strict=True)
        ],
    }
