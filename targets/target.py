"""What every target says before it writes: the storage plan, and the protocol that gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.parts import TEXT
from converter.errors import ExtensionError, UsageError
from converter.system.extensions import load, registered
from converter.system.progress import Progress, no_progress
from targets.options import TARGETS, Option, check_names, meant

if TYPE_CHECKING:
    from converter.checkpoint.opened import Checkpoint
    from converter.checkpoint.tokenizer_pipeline import Step


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the artifact."""

    #: Canonical name of the checkpoint's weight it comes from; ``None`` for a tensor that the target makes
    #: itself.
    weight: str | None
    #: Its name in the artifact.
    stored_as: str
    shape: tuple[int, ...]
    #: The target's own name of its type (``Q4_0``).
    type: str
    bytes: int
    #: Whether that type can hold every value of the checkpoint bit for bit.
    exact: bool
    #: A tensor of another part than the text model comes from a weight of ``Checkpoint.parts``, which has its
    #: name there.
    part: str = TEXT
    #: Safetensors' dtype of its scales, ``F16`` or ``F32``, where it has the codes of the weight's own
    #: lattice. ``None`` for numbers and for codes that come of rounding.
    scales: str | None = None

    def as_dict(self) -> dict[str, object]:
        """The tensor as the manifest records it; of the text model's, the part goes without saying, and the
        dtype of scales with the type."""
        named = {"type": "format"}  # the manifest's word for it is older
        entry = {named.get(key, key): value for key, value in asdict(self).items()} | {
            "shape": list(self.shape)
        }
        del entry["scales"]
        if self.part == TEXT:
            del entry["part"]
        return entry


#: Kinds of an artifact's files: the one that a runtime is given, others that it reads with it, and those that
#: help to use them.
MAIN: Final = "main"
SHARD: Final = "shard"
COMPANION: Final = "companion"


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the artifact."""

    #: Below the output directory.
    path: str
    kind: str = MAIN
    #: About how many it will have, where it has many.
    bytes: int = 0
    #: The part of the model that it holds.
    part: str = TEXT


@dataclass(frozen=True, slots=True)
class KVCache:
    """Memory that a runtime takes for keys and values before the first token."""

    #: Of prompt and answer together.
    tokens: int
    #: What it takes for so many tokens.
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a target will store a checkpoint."""

    target: str
    #: The files that it will write, the text model's main one first.
    files: tuple[PlannedFile, ...]
    #: The tensors in them.
    tensors: tuple[PlannedTensor, ...]
    #: One line each for the user.
    warnings: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    #: Which operators of the runtime read the weights, and how many weights of each type, where that depends
    #: on the plan.
    operators: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    #: The most bytes of memory that writing takes, if it is more than any machine has.
    memory: int | None = None
    #: The most tokens that the artifact can be given, if it is bound to fewer than the model.
    context: int | None = None
    #: What the runtime allocates at once for one sequence, where the artifact says for how many tokens.
    kv_cache: KVCache | None = None
    #: A directory to which ``Target.deliver`` writes, and which must not be in the output directory.
    elsewhere: Path | None = None
    #: The type in which scales of codes are stored, ``float16`` or ``float32``: a float32 holds every scale.
    scales: str = "float16"
    #: The first versions of the runtimes that run it, by their names.
    requires: Mapping[str, str] = field(default_factory=dict)
    #: Whether the target's choices stand from the fastest to the slowest in an artifact as this one, so that
    #: none is tried behind one that passes.
    choices_by_speed: bool = False
    #: Whether it rounds activations to the checkpoint's static grids. It is then judged by a reference that
    #: does so too.
    applies_grids: bool = False
    #: Whether the checkpoint has static grids that the target can apply.
    has_grids: bool = False

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Paths of the text model's own files, the main one first."""
        own = [file for file in self.files if file.part == TEXT and file.kind != COMPANION]
        return tuple(file.path for file in own)

    @property
    def companions(self) -> tuple[str, ...]:
        """Paths of all other files."""
        return tuple(file.path for file in self.files if file.part != TEXT or file.kind == COMPANION)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts beside the text model for which the target has a place, each once."""
        named = [*(file.part for file in self.files), *(tensor.part for tensor in self.tensors)]
        return tuple(part for part in dict.fromkeys(named) if part != TEXT)

    @property
    def size(self) -> int:
        """About how many bytes all files take."""
        return sum(file.bytes for file in self.files)

    def of_part(self, part: str) -> tuple[PlannedTensor, ...]:
        """The tensors of a part."""
        return tuple(tensor for tensor in self.tensors if tensor.part == part)

    @property
    def beside_text(self) -> frozenset[str]:
        """Names of the checkpoint's weights that are stored though they are not the text model's."""
        return frozenset(
            tensor.weight for tensor in self.tensors if tensor.part != TEXT and tensor.weight is not None
        )

    @property
    def bytes(self) -> int:
        """Bytes of the text model's tensors."""
        return sum(tensor.bytes for tensor in self.of_part(TEXT))

    @property
    def weight_bytes(self) -> int:
        """Bytes of those tensors of the text model that come from the checkpoint; one that is stored twice
        counts with both."""
        return sum(tensor.bytes for tensor in self.of_part(TEXT) if tensor.weight is not None)

    @property
    def bits_per_weight(self) -> float:
        """Bits per value of the checkpoint, over the tensors of ``weight_bytes``."""
        kept = [tensor for tensor in self.of_part(TEXT) if tensor.weight is not None]
        sizes = {tensor.weight: int(np.prod(tensor.shape, dtype=np.int64)) for tensor in kept}
        values = sum(sizes.values())
        return 8 * self.weight_bytes / values if values else 0.0

    def as_dict(self) -> dict[str, object]:
        """The plan as the manifest records it."""
        operators = {name: dict(types) for name, types in self.operators.items()}
        parts = {
            part: {
                "files": [file.path for file in self.files if file.part == part],
                "bytes": sum(tensor.bytes for tensor in self.of_part(part)),
            }
            for part in self.parts
        }
        return {
            "options": dict(self.options),
            "bytes": self.bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "scales": self.scales,
            **({"operators": operators} if operators else {}),
            **({"memory": self.memory} if self.memory is not None else {}),
            **({"kv_cache": asdict(self.kv_cache)} if self.kv_cache is not None else {}),
            **({"requires": dict(self.requires)} if self.requires else {}),
            "warnings": list(self.warnings),
            **({"parts": parts} if parts else {}),
            "tensors": [tensor.as_dict() for tensor in self.tensors],
        }


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A weight read back from an artifact."""

    weight: str
    stored_as: str
    #: The runtime's own name of its type there.
    type: str
    shape: tuple[int, ...]
    #: What it takes there.
    bytes: int
    #: ``floats(start, stop)`` gives its dequantised rows as float32, in the checkpoint's own row order and
    #: scale.
    floats: Callable[[int, int], NDArray[np.float32]]
    #: ``rule(start, stop)`` gives what the target's stated rule makes of the checkpoint's rows in this
    #: ``type``, read back in the same way: a right artifact has the same numbers, bit for bit. ``None`` for a
    #: type that the target never writes (another tool's).
    rule: Callable[[int, int], NDArray[np.float32]] | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Something in an artifact that is not what the converter makes of its checkpoint."""

    #: Names it as a user would look for it: a GGUF key, a node and its attribute, a file.
    where: str
    #: A short printable text, as ``found`` is.
    expected: str
    found: str
    #: Whether it bears on what the model computes, reads or says. The other differences describe the model
    #: (names, tags, versions, licences) and change nothing.
    deciding: bool = True


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Blocks that a target wrote as codes of a lattice, by what their recovery verified. A weight that is
    stored twice counts with both."""

    blocks: int
    #: Blocks whose scale the target's type does not hold and that is rounded.
    rounded_scales: int
    #: Blocks that lie on no lattice, though their weight does, and are rounded to the nearest.
    off_lattice: int

    @property
    def exact(self) -> int:
        """Blocks whose codes and scale, as they are stored, give the checkpoint's values bit for bit."""
        return self.blocks - self.rounded_scales - self.off_lattice


@dataclass(frozen=True, slots=True)
class Stored:
    """What writing showed."""

    #: Warnings about what only the whole reading shows.
    warnings: Sequence[str] = ()
    #: ``None`` for a target that does not count them.
    blocks: BlockCounts | None = None


class Target(Protocol):
    """One output format, found through the entry-point group ``qatconvert.targets``."""

    name: str
    #: Suffix of its artifacts' names (``.gguf``).
    suffix: str
    #: The package's extra that installs ``modules``.
    extra: str
    #: Importable modules that ``write`` needs; all else works without them.
    modules: tuple[str, ...]
    #: The packages whose version may show in the bytes that it writes.
    libraries: tuple[str, ...]
    #: What a user may give it; an entry point in the group ``qatconvert.options`` brings the same to the
    #: command line.
    options: Sequence[Option]

    def check(self, options: Mapping[str, object]) -> None:
        """Raise ``UsageError`` for options that are wrong whatever the model is, or that need what is not
        installed; called before a model is downloaded or opened."""

    def check_model(self, checkpoint: Checkpoint, options: Mapping[str, object]) -> None:
        """Raise ``TargetError`` for a model that the runtime cannot hold, ``UsageError`` for options that do
        not fit it and ``CheckpointError`` for a damaged file. They are raised as far as configuration,
        tokenizer and the files beside them tell: ``checkpoint`` may be without its weights. ``plan`` raises
        the same."""

    def lacking_steps(self, checkpoint: Checkpoint) -> Sequence[Step]:
        """The steps of the checkpoint's tokenizer that the runtime does not do as transformers does: all of
        them where an artifact holds no tokenizer. Raises ``TargetError`` for a family that is not known."""

    def plan(
        self,
        checkpoint: Checkpoint,
        name: str,
        options: Mapping[str, object],
        progress: Progress = no_progress,
    ) -> Plan:
        """Say how every weight will be stored; raises ``TargetError`` for a model that the runtime
        cannot hold. Writes nothing. ``name`` is the model's name, used in file names. Files and tensors of
        other parts than the text model name their part: what the plan has no place for is reported as left
        out. A target that has
        to read the weights for it has a stage ``planning NAME`` in ``progress``."""

    def write(
        self, checkpoint: Checkpoint, plan: Plan, directory: Path, progress: Progress = no_progress
    ) -> Stored:
        """Write ``plan.files`` below ``directory`` (a scratch directory that the caller renames when whole)
        and say what only the whole reading showed.
        The stage ``writing NAME`` of ``progress`` counts bytes of the checkpoint, by one thread at a time."""

    def deliver(
        self,
        plan: Plan,
        output: Path,
        options: Mapping[str, object],
        passed: bool,
        progress: Progress = no_progress,
    ) -> Sequence[str]:
        """Lay the artifacts, which are in their place below ``output``, out elsewhere if ``options`` ask for
        it and no gate failed, and return warnings."""

    def choices(self, plan: Plan) -> Sequence[Mapping[str, object]]:
        """Ways to run an artifact that only measuring can tell apart, by option and value: the preferred one
        first, the most accurate one last. Empty where there is nothing to choose."""

    def written(self, plan: Plan, choice: Mapping[str, object]) -> Plan:
        """The plan by which an artifact is written that runs as one of ``choices``: ``plan`` itself where
        ``choose`` and the runtime make any artifact do so. Where each choice has an artifact of its own, the
        choices stand from the fastest to the slowest, so that the first that is good enough is kept."""

    def choose(self, artifact: Path, choice: Mapping[str, object]) -> None:
        """Make the artifact, which ``write`` left in the scratch directory by the plan that is ``written``
        for a choice, run as it. Changes no other file than the main one, whose path is given."""

    def files(self, artifact: Path) -> Sequence[Path]:
        """Every file of the artifact whose main (or first) file is given; raises ``CheckpointError`` if
        one is missing."""

    def describe(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, StoredTensor]:
        """Read the artifact back: canonical weight name to tensor, independently of the writer. Tensors of
        other parts than the text model, if the target has a place for them, stand among them by their names
        in the checkpoint."""

    def recognises(self, artifact: Path) -> bool:
        """Whether a file that is named like an artifact is one by its content, of which little is read. It is
        asked where several targets write such names. A damaged file is none."""

    def infer_options(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, object]:
        """The options with which an artifact was converted, as far as it shows them: those that ``plan``
        takes and that decide what is in it. Raises ``CheckpointError`` for a damaged file."""

    def differences(
        self, artifact: Path, checkpoint: Checkpoint, plan: Plan, progress: Progress = no_progress
    ) -> Sequence[Difference]:
        """Everything in an artifact that is not what ``write`` makes of ``checkpoint`` by ``plan``: metadata,
        graph, side files beside it, the bytes of every tensor, and bytes that belong to nothing. Compared by
        content: where a part lies in a file decides nothing. The stage ``comparing NAME`` of ``progress``
        counts bytes of the checkpoint. Raises ``CheckpointError`` for a damaged file."""


def planning(target: Target) -> str:
    """What the stage is called in which a target plans."""
    return f"planning {target.name}"


def known_targets() -> tuple[str, ...]:
    """Names of the registered targets, sorted."""
    return registered(TARGETS)


def check_known(names: Iterable[str]) -> None:
    """Raise ``UsageError``, which lists the known targets, for a name that is none; loads no target."""
    known = known_targets()
    for name in names:
        if name not in known:
            raise UsageError(f"unknown target {name!r}{meant(name, known)}; known: {', '.join(known)}")


def find_target(name: str) -> Target:
    """The target registered under ``name``; raises ``UsageError`` that lists the known ones, and
    ``ExtensionError`` for one that cannot be loaded."""
    check_known([name])
    target: Target = load(TARGETS, name)
    return target


def check_options(targets: Iterable[Target], options: Iterable[str]) -> None:
    """Raise ``UsageError`` for a name in ``options`` that no target of ``targets`` takes."""
    check_names(options, {target.name: target.options for target in targets})


def accepts_off_lattice(targets: Iterable[Target], options: Iterable[str]) -> bool:
    """Whether whoever gives ``options`` accepts matrices that lie on no lattice."""
    given = set(options)
    return any(
        option.accepts_off_lattice and option.name in given for target in targets for option in target.options
    )


def check_installed(targets: Iterable[Target]) -> None:
    """Raise ``UsageError`` that says what to install if one of ``targets`` cannot write here."""
    lacking = [target for target in targets if any(find_spec(module) is None for module in target.modules)]
    if lacking:
        names = " and ".join(target.name for target in lacking)
        extras = ",".join(dict.fromkeys(target.extra for target in lacking))
        raise UsageError(
            f"target {names} needs packages that are not installed: pip install 'qatconvert[{extras}]'"
        )


def artifact_of(path: Path, name: str | None = None) -> Path:
    """``path``, or the one artifact in it if it is a directory, of the target ``name`` if one is given;
    raises ``UsageError`` for none or several."""
    if not path.is_dir():
        return path
    suffixes = tuple(dict.fromkeys(target.suffix for target in _candidates(name)))
    found = sorted(file for file in path.iterdir() if file.name.endswith(suffixes))
    if len(found) != 1:
        raise UsageError(f"{path} holds {len(found)} artifacts ({', '.join(suffixes)}): give the file itself")
    return found[0]


def target_of(artifact: Path, name: str | None = None) -> Target:
    """The target whose artifacts are named like ``artifact``: of several the one that recognises it, unless
    ``name`` chooses one. Raises ``UsageError``, which names those that may be meant."""
    candidates = _candidates(name)
    named = [target for target in candidates if artifact.name.endswith(target.suffix)]
    if not named and name is not None:
        (target,) = candidates
        raise UsageError(f"{artifact}: target {name} writes no such files, but {target.suffix}")
    if not named:
        raise UsageError(f"{artifact}: no target writes such files (known: {', '.join(known_targets())})")
    if len(named) > 1:
        named = [target for target in named if target.recognises(artifact)] or named
    if len(named) > 1:
        meant = " and ".join(target.name for target in named)
        raise UsageError(f"{artifact}: the targets {meant} write such files: choose one with --target")
    return named[0]


def begins_with(artifact: Path, magic: bytes) -> bool:
    """Whether a file can be read and begins with these bytes."""
    try:
        with artifact.open("rb") as stream:
            return stream.read(len(magic)) == magic
    except OSError:
        return False


def _candidates(name: str | None) -> list[Target]:
    return list(_loadable()) if name is None else [find_target(name)]


def _loadable() -> Iterator[Target]:
    """The registered targets, without any that cannot be loaded or has no suffix."""
    for name in known_targets():
        with suppress(ExtensionError):
            target = find_target(name)
            if isinstance(getattr(target, "suffix", None), str):
                yield target
