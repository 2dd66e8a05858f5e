"""Options as targets and runtimes declare them: for the command line, its help, and Python.

A declaration is data. An entry point in the group ``qatconvert.options`` leads to an ``OptionGroup`` and is
called as the target (``onnx``) or the runtime (``onnx.onnxruntime``) whose options these are. The help of the
command line imports the modules that declare, so they and the packages they stand in import nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from typing import Final, Literal

from converter.errors import UsageError
from converter.system.extensions import entries

#: Entry points of declarations.
_GROUP: Final = "qatconvert.options"
#: Entry points of targets, each loaded when it is asked for.
TARGETS: Final = "qatconvert.targets"
#: Entry points of runners, likewise, called ``TARGET.RUNTIME``.
RUNTIMES: Final = "qatconvert.runtimes"

#: Options that show in the artifact, so that a plan differs by them.
PLANNED: Final = ("convert", "inspect")
#: Options of a conversion alone.
WRITTEN: Final = ("convert",)
#: Options of a runtime: they have no effect without a validation.
VALIDATED: Final = ("convert", "validate")

#: What every validation is told (the fields of ``validation.settings.Settings``): options of runtimes stand
#: beside them, so that none may be called like one.
OF_EVERY_VALIDATION: Final = frozenset(
    {"positions", "text", "gates", "reference_dtype", "max_memory", "baseline", "same_weights", "runtimes"}
    | {"runtime_options", "cache", "foreign", "allow_unrun", "off_lattice", "room"}
)

_COMMANDS: Final = ("convert", "inspect", "validate", "modelfile")
_KINDS: Final = ("text", "flag", "integer", "choice", "lengths", "path", "file")

#: What a value is: ``text``; ``flag``, true where it is given; ``integer``; one of the ``choices``;
#: ``lengths``, numbers of tokens with commas between them, a tuple; ``path``, a place to write to; ``file``,
#: the content of a UTF-8 file that the command line takes by its path.
Kind = Literal["text", "flag", "integer", "choice", "lengths", "path", "file"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option. What a value must be beyond its kind, its target or runtime checks.

    Raises ``ValueError`` for a declaration that means nothing.
    """

    #: The key in the mappings that targets and runtimes take.
    name: str
    #: One or more sentences.
    help: str
    #: On the command line, ``--num-ctx``; without any, the option is Python's alone.
    flags: tuple[str, ...] = ()
    kind: Kind = "text"
    #: What stands for the value in the help; by default the kind's own word.
    metavar: str | None = None
    #: The values of a ``choice``.
    choices: tuple[str, ...] = ()
    #: Bounds of an ``integer``, both included; ``None`` for none.
    least: int | None = None
    most: int | None = None
    #: May be given several times; the value is then a sequence.
    repeatable: bool = False
    #: The value that is handed on where none is given; ``None`` for none at all.
    default: str | int | None = None
    #: What the help says of a default that the target finds itself.
    default_text: str = ""
    #: The commands that take it, of ``convert``, ``inspect``, ``validate`` and ``modelfile``.
    commands: tuple[str, ...] = PLANNED
    #: Names a place outside the output. It is no part of a plan, and a manifest that names one is not obeyed.
    outside: bool = False
    #: Asks for further files beside the artifact, which is the same without them: where what makes them is
    #: not installed, all else can be made again.
    extra_files: bool = False
    #: Whoever gives it accepts that what lies on no lattice is stored otherwise, and is judged so.
    accepts_off_lattice: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"option {self.name!r}: the name is no identifier")
        if not all(flag.startswith("-") and flag.strip("-") for flag in self.flags):
            raise ValueError(f"option {self.name}: a flag begins with a hyphen: {', '.join(self.flags)}")
        if self.kind not in _KINDS:
            raise ValueError(f"option {self.name}: kind {self.kind!r} is none (known: {', '.join(_KINDS)})")
        if (self.kind == "choice") != bool(self.choices):
            raise ValueError(f"option {self.name}: a choice has choices, and nothing else has")
        if self.kind == "flag" and (self.repeatable or self.default is not None):
            raise ValueError(f"option {self.name}: a flag is given or not")
        if self.repeatable and self.default is not None:
            raise ValueError(f"option {self.name}: what is repeatable has no default")
        if self.default is not None and not self._is_value(self.default):
            raise ValueError(f"option {self.name}: the default {self.default!r} is none of its values")
        if unknown := [command for command in self.commands if command not in _COMMANDS]:
            raise ValueError(f"option {self.name}: command {unknown[0]!r} takes no declared options")

    def _is_value(self, value: object) -> bool:
        if self.kind == "integer":
            low = -math.inf if self.least is None else self.least
            return isinstance(value, int) and low <= value <= (math.inf if self.most is None else self.most)
        return isinstance(value, str) and (not self.choices or value in self.choices)

    @property
    def needs_validation(self) -> bool:
        """Whether it has no effect where nothing is validated."""
        return "validate" in self.commands

    @property
    def title(self) -> str:
        """How a user is told of it."""
        return self.flags[0] if self.flags else self.name


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """The options of a target or a runtime."""

    #: What stands over them in the help.
    heading: str
    options: tuple[Option, ...]


#: How what lies on no lattice is stored: the same option in every target that can store it.
OFF_LATTICE: Final = Option(
    "off_lattice",
    "How to store matrices that lie on no lattice.",
    ("--off-lattice",),
    kind="choice",
    choices=("q8_0", "bf16", "f16", "q4_0"),
    default_text="q8_0",
    accepts_off_lattice=True,
)
#: The licence that an artifact's metadata name; from Python alone.
LICENSE: Final = Option("license", "Licence of the model, instead of the checkpoint's own.", commands=WRITTEN)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A group as it is registered."""

    #: Name of the entry point.
    owner: str
    #: Name and version of the package that has it.
    distribution: str
    group: OptionGroup

    @property
    def target(self) -> str:
        """The target without which the options have no effect."""
        return self.owner.partition(".")[0]

    @property
    def runtime(self) -> bool:
        """Whether the options are a runtime's."""
        return "." in self.owner

    def __str__(self) -> str:
        kind = "runtime" if self.runtime else "target"
        return f"{kind} {self.owner} (of {self.distribution})"


@dataclass(frozen=True, slots=True)
class Offered:
    """An option and all who declare it, in the same words."""

    option: Option
    owners: tuple[Declaration, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets with which it has an effect."""
        return tuple(dict.fromkeys(owner.target for owner in self.owners))

    @property
    def runtime(self) -> bool:
        """Whether it is a runtime's."""
        return self.owners[0].runtime

    @property
    def heading(self) -> str:
        """What it stands under in the help, empty where it belongs to several."""
        return self.owners[0].group.heading if len(self.owners) == 1 else ""


def declarations() -> tuple[Sequence[Declaration], Sequence[str]]:
    """What the installed distributions declare, sorted by owner, and a line for each declaration that cannot
    be read. Loads no target and no runtime."""
    found, broken = [], []
    for entry in sorted(entries(_GROUP), key=lambda entry: entry.name):
        try:
            found.append(Declaration(entry.name, _distribution(entry), _loaded(entry)))
        except (Exception, SystemExit) as error:  # another package's code, which must not take all help away
            told = f"{type(error).__name__}: {error}"
            broken.append(f"{_distribution(entry)} declares no options of {entry.name}: {told}")
    return found, broken


def _loaded(entry: EntryPoint) -> OptionGroup:
    group = entry.load()
    if not isinstance(group, OptionGroup):
        raise TypeError(f"{entry.value} is no OptionGroup")
    if not isinstance(group.options, tuple) or not all(isinstance(one, Option) for one in group.options):
        raise TypeError(f"{entry.value} has options that are no tuple of Option")
    if "." in entry.name:
        check_apart(entry.name, group.options)
    return group


def check_apart(runtime: str, options: Iterable[Option]) -> None:
    """Raise ``UsageError`` for an option of a runtime that is called like a setting of every validation."""
    for option in options:
        if option.name in OF_EVERY_VALIDATION:
            raise UsageError(
                f"option {option.name} of runtime {runtime} is called like a setting of every validation"
            )


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def offered(declared: Iterable[Declaration]) -> Sequence[Offered]:
    """Every option once, in order. Raises ``UsageError``, which names both, where two declarations have the
    same name or flag and differ: which of them a user means could not be told."""
    found: dict[str, Offered] = {}
    for declaration in declared:
        for option in declaration.group.options:
            for key in (option.name, *option.flags):
                other = found.get(key)
                if other is not None and (other.option != option or other.runtime != declaration.runtime):
                    raise UsageError(
                        f"option {key} is declared by {other.owners[0]} and otherwise by {declaration}: "
                        "they cannot be installed together"
                    )
            before = found.get(option.name)
            now = Offered(option, (*(before.owners if before else ()), declaration))
            found.update(dict.fromkeys((option.name, *option.flags), now))
    return list(dict.fromkeys(found.values()))


def check_names(given: Iterable[str], owners: Mapping[str, Iterable[Option]]) -> None:
    """Raise ``UsageError`` for an option that none of ``owners`` (the targets or runtimes that are asked for,
    each with its options) takes. It says which target does, or which name may be meant."""
    known = {option.name for options in owners.values() for option in options}
    for name in given:
        if name in known:
            continue
        declared, _ = declarations()
        titles = {
            one.owner: option.title for one in declared for option in one.group.options if option.name == name
        }
        if titles:
            needed = " or ".join(dict.fromkeys(owner.partition(".")[0] for owner in titles))
            title = next(iter(titles.values()))
            raise UsageError(
                f"{title} has no effect without target {needed}: leave it out, or add the target"
            )
        check_known_names([name], known)


def meant(given: str, known: Iterable[str]) -> str:
    """A question, in brackets, for the one of ``known`` that is like ``given``; empty where none is."""
    near = get_close_matches(given.lower(), list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def check_known_names(given: Iterable[str], known: Collection[str]) -> None:
    """Raise ``UsageError`` for a name in ``given`` that is not ``known``, with the one that may be meant."""
    for name in given:
        if name not in known:
            close = get_close_matches(name, sorted(known), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
            raise UsageError(f"unknown option {name!r}; {hint}")
