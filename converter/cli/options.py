"""Options that several commands share, and those that targets and runtimes declare (``targets.options``).

A command's declared options are found when they are needed, so that help of other commands looks for none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from converter.cli import candidates
from converter.cli.console import warn
from converter.errors import UsageError
from converter.system.extensions import registered
from targets.options import TARGETS, Offered, Option, declarations, meant, offered

Command = TypeVar("Command", bound=Callable[..., Any])
_MOST_GB = 1e9
#: Headings of a help: of what is written, and of what a command looks at.
_OUTPUT: Final = "Output"
EXAMINATION: Final = "Examination"
#: Stands for every target.
_ALL: Final = "all"
#: Digits of a number of tokens: more than any model has.
_MOST_DIGITS = 12


class TargetOption(click.Option):
    """An option that names targets, of which the help lists those that are registered, under ``heading``."""

    def __init__(self, *arguments: Any, heading: str = _OUTPUT, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.heading = heading

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The targets, also behind a comma."""
        return candidates.targets(incomplete, every=_ALL if self.multiple else "")

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option with the names in its help."""
        record = super().get_help_record(ctx)
        return record and (record[0], record[1].replace("TARGETS", ", ".join(registered(TARGETS)), 1))


def chosen_targets(given: Iterable[str], every: tuple[str, ...]) -> tuple[str, ...]:
    """Names of targets, of which each of ``given`` may have several with commas between them; ``all`` stands
    for ``every`` one. Raises ``UsageError`` for an unknown name."""
    from targets.target import check_known

    names = [name.strip() for one in given for name in one.split(",")]
    check_known(name for name in names if name != _ALL)
    return every if _ALL in names else tuple(dict.fromkeys(names))


class Choice(click.Choice[str]):
    """A word of several; a mistyped one is answered with the one that may be meant."""

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """The word."""
        if value not in self.choices and (near := meant(str(value), self.choices)):
            self.fail(f"{value!r}{near}: give one of {', '.join(self.choices)}", parameter, context)
        return super().convert(value, parameter, context)


class Gate(click.ParamType[tuple[str, float]]):
    """``NAME=LIMIT``, as in ``mean_kld=0.01``."""

    name = "NAME=LIMIT"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names."""
        return candidates.gates(incomplete)

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, float]:
        """The gate's name and its limit."""
        if isinstance(value, tuple):
            return value
        from validation.limits import KNOWN

        name, _, limit = str(value).partition("=")
        try:
            number = float(limit)
        except ValueError:
            number = float("nan")
        if name not in KNOWN or not 0 <= number < float("inf"):
            near = "" if name in KNOWN else meant(name, KNOWN)
            self.fail(f"{value!r}{near}: give one of {', '.join(KNOWN)} and a limit, as in mean_kld=0.01")
        return name, number


class InputPath(click.Path):
    """A place to read from. An error shows it as it was given, where Click doubles each backslash."""

    def fail(
        self,
        message: str,
        param: click.Parameter | None = None,
        ctx: click.Context | None = None,
    ) -> NoReturn:
        """Raise ``click.BadParameter``."""
        super().fail(message.replace("\\\\", "\\"), param, ctx)


class OutputPath(InputPath):
    """A place to write to. An empty text, as an unset variable gives, does not mean the working directory."""

    def convert(
        self,
        value: str | os.PathLike[str],
        parameter: click.Parameter | None,
        context: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """The path."""
        if not os.fspath(value):
            self.fail("the path is empty", parameter, context)
        return super().convert(value, parameter, context)


class Lengths(click.ParamType[tuple[int, ...]]):
    """Numbers of tokens with commas between them, as in ``128,1024``."""

    name = "N,N..."

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdecimal() and len(part) < _MOST_DIGITS for part in parts):
            self.fail(f"{value!r}: give numbers of tokens, as in 128,1024")
        return tuple(map(int, parts))


#: Headings in the help; declared options stand under those of their owners, or are for several targets.
_VALIDATION: Final = "Validation"
_SEVERAL: Final = "Several targets"
#: The options of the commands themselves by purpose.
_HEADINGS: Final[Mapping[str, Sequence[str]]] = {
    "Setting up": ("--install", "--uninstall", "--shell"),
    EXAMINATION: ("--no-validate",),
    _OUTPUT: ("--output", "--force", "--from", "--dry-run"),
    "Repository": (
        "--repo",
        "--private",
        "--create-pr",
        "--tag",
        "--message",
        "--allow-failed",
        "--no-publish",
    ),
    "Model card": ("--card-license", "--card-language", "--base-model", "--quantized-by", "--card-tag"),
    "Side by side": ("--jobs", "--memory"),
    "Comparison": ("--rebuild",),
    "Source": ("--reference", "--offline", "--foreign"),
    "Results and messages": (
        "--tensors",
        "--json",
        "--quiet",
        "--verbose",
        "--log-file",
        "--debug",
        "--help",
    ),
}
#: Gates without which a user may go on: ``validation.gates.MAY_NOT_RUN``, which a help need not load.
_MAY_NOT_RUN: Final = (
    "graph_kld",
    "same_as_built",
    "engine_same_tokens",
    "engine_same_prompts",
    "engine_same_ends",
    "mean_kld",
    "same_top_p",
    "decode_mean_kld",
    "engine_gap",
    "engine_mean_abs",
)


class ValidationOption(click.Option):
    """An option of the validation; it has no effect without one, unless it ``always`` has."""

    def __init__(self, *arguments: Any, always: bool = False, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.always = always


class DeclaredOption(click.Option):
    """An option that targets or a runtime declare."""

    def __init__(self, one: Offered) -> None:
        option = one.option
        default = f"  [default: {option.default_text}]" if option.default_text else ""
        named: dict[str, Any] = {"metavar": option.metavar, "multiple": option.repeatable}
        if option.kind == "flag":
            named = {"is_flag": True}
        elif option.default is not None:
            named |= {"default": option.default, "show_default": True}
        super().__init__(
            # a name that no option of the command itself has
            [*option.flags, f"declared_{option.name}"],
            type=None if option.kind == "flag" else _type(option),
            help=f"{option.help}{default}",
            **named,
        )
        self.offered = one


def _type(option: Option) -> click.ParamType[Any]:
    if option.kind == "integer":
        bounded = option.least is not None or option.most is not None
        return click.IntRange(option.least, option.most) if bounded else click.INT
    if option.kind == "choice":
        return Choice(option.choices)
    if option.kind == "lengths":
        return Lengths()
    if option.kind == "path":
        return OutputPath(path_type=Path)
    if option.kind == "file":
        return InputPath(exists=True, dir_okay=False, path_type=Path)
    return click.STRING


class GroupedCommand(click.Command):
    """A command whose help has its options by purpose."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by heading: the command's own, those of each target, the validation's."""
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _HEADINGS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(_heading(parameter), []).append(record)
        sections[_VALIDATION] = sections.pop(_VALIDATION, [])
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class DeclaringCommand(GroupedCommand):
    """A command with the options that targets and runtimes declare for it."""

    _complete = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters. Raises ``UsageError`` for declarations that contradict each other."""
        if not self._complete:
            self.params.extend(_declared(self.name or "", self.params))
            self._complete = True
        return super().get_params(ctx)


def _heading(parameter: click.Option) -> str:
    if isinstance(parameter, DeclaredOption):
        return parameter.offered.heading or _SEVERAL
    if isinstance(parameter, ValidationOption):
        return _VALIDATION
    if isinstance(parameter, TargetOption):
        return parameter.heading
    known = (heading for heading, flags in _HEADINGS.items() if set(flags) & set(parameter.opts))
    return next(known, "Options")


def _declared(command: str, own: Iterable[click.Parameter]) -> Sequence[DeclaredOption]:
    """What is declared for a command that has parameters of its ``own``; tells of declarations that cannot be
    read."""
    declared, broken = declarations()
    for line in broken:
        warn(line)
    taken = {"-h", "--help", *(flag for one in own for flag in (*one.opts, *one.secondary_opts))}
    found = [one for one in offered(declared) if one.option.flags and command in one.option.commands]
    for one in found:
        if shared := taken.intersection(one.option.flags):
            raise UsageError(
                f"option {min(shared)} is declared by {one.owners[0]} and is one of qatconvert {command}: "
                "they cannot be installed together"
            )
    return [DeclaredOption(one) for one in found]


def check_effect(targets: Collection[str], validated: bool = True) -> None:
    """Raise ``UsageError`` for an option that was given to the running command and has no effect with these
    targets, or without a validation."""
    context = click.get_current_context()
    for parameter in context.command.get_params(context):
        if context.get_parameter_source(parameter.name or "") is not ParameterSource.COMMANDLINE:
            continue
        given = "/".join((*parameter.opts, *parameter.secondary_opts))
        needed = parameter.offered.targets if isinstance(parameter, DeclaredOption) else ()
        if needed and not set(needed) & set(targets):
            raise UsageError(
                f"{given} has no effect without target {' or '.join(needed)}: leave it out, or add the target"
            )
        if not validated and _needs_validation(parameter):
            raise UsageError(f"{given} has no effect with --no-validate: leave out one of them")


def _needs_validation(parameter: click.Parameter) -> bool:
    if isinstance(parameter, DeclaredOption):
        return parameter.offered.option.needs_validation
    return isinstance(parameter, ValidationOption) and not parameter.always


def take_declared(
    settings: dict[str, Any], targets: Collection[str]
) -> tuple[dict[str, object], dict[str, object]]:
    """Take the declared options out of the running command's ``settings``: those of targets and those of
    runtimes, by their own names, without what was not given. A default counts where one of ``targets`` has
    it. Raises ``click.UsageError`` for a file that is no UTF-8 text."""
    context = click.get_current_context()
    of_targets: dict[str, object] = {}
    of_runtimes: dict[str, object] = {}
    for parameter in context.command.get_params(context):
        if not isinstance(parameter, DeclaredOption):
            continue
        one, value = parameter.offered, settings.pop(parameter.name or "")
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if not given and not set(one.targets) & set(targets):
            continue
        if one.option.kind == "file" and value is not None:
            value = [read_text(file) for file in value] if one.option.repeatable else read_text(value)
        if value is not None and value is not False and (value or not one.option.repeatable):
            (of_runtimes if one.runtime else of_targets)[one.option.name] = value
    return of_targets, of_runtimes


def read_text(path: Path) -> str:
    """The text of a file; raises ``click.UsageError`` for one that is no UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"{path}: no UTF-8 text ({error})") from error


_validation = partial(click.option, cls=ValidationOption)
#: Everything that says how an artifact is proven, whatever its runtime, in the order of the help.
_VALIDATION_OPTIONS: Final = (
    _validation(
        "--positions",
        type=click.IntRange(2),
        default=512,
        show_default=True,
        help="Token positions to compare.",
    ),
    _validation(
        "--text",
        type=InputPath(exists=True, dir_okay=False, path_type=Path),
        help="Evaluate on this UTF-8 text instead of the checkpoint's own or the built-in one.",
    ),
    _validation(
        "--reference-dtype",
        type=Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="Type in which transformers computes the reference logits.",
    ),
    _validation(
        "--max-memory",
        type=click.FloatRange(0, min_open=True),
        metavar="GB",
        help="Memory that the reference model may use; beyond it, weights are read from disk. Default: what "
        "the machine has.",
    ),
    _validation(
        "--gate",
        "gates",
        type=Gate(),
        multiple=True,
        help="Set the limit of a gate: exact_fraction, mean_kld, same_top_p or another figure.",
    ),
    _validation(
        "--allow-unrun",
        multiple=True,
        type=Choice(_MAY_NOT_RUN),
        metavar="GATE",
        help="Go on without this gate where it cannot run, for want of room, memory, packages or of what its "
        f"limit is relative to: {', '.join(_MAY_NOT_RUN[:-1])} or {_MAY_NOT_RUN[-1]}. The result is not "
        "fully proven then. Repeatable.",
    ),
    _validation(
        "--baseline",
        type=Choice(["naive-q4_0"]),
        help="Measure a naive requantisation of the same checkpoint beside it.",
    ),
    _validation(
        "--same-weights/--no-same-weights",
        default=True,
        show_default=True,
        help="Also measure the runtime against float32 logits of the artifact's own weights (4 bytes per "
        "parameter of temporary files).",
    ),
    _validation(
        "--runtime",
        "runtimes",
        multiple=True,
        metavar="TARGET.RUNTIME",
        shell_complete=candidates.runtimes,
        help="Run a target's artifact in this one of its runtimes, as in gguf.llamacpp. Default: the "
        "target's own. Repeatable.",
    ),
)


def validation_options(command: Command) -> Command:
    """Give a command the options of every validation."""
    for add in reversed(_VALIDATION_OPTIONS):
        command = add(command)
    return command


def validation_settings(targets: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``validation.settings.Settings`` that ``given`` stands for: values of
    ``validation_options`` by their names, for ``targets``.

    Raises ``click.BadParameter`` for an amount of memory that no machine has, and ``UsageError`` for a
    runtime that is none or has no effect.
    """
    max_memory = given["max_memory"]
    if max_memory is not None and not max_memory < _MOST_GB:
        raise click.BadParameter(f"{max_memory} is no amount of memory", param_hint="--max-memory")
    return {
        "positions": given["positions"],
        "text": given["text"],
        "reference_dtype": given["reference_dtype"],
        "max_memory": None if max_memory is None else int(max_memory * 1e9),
        "gates": dict(given["gates"]),
        "allow_unrun": given["allow_unrun"],
        "baseline": given["baseline"],
        "same_weights": given["same_weights"],
        **({"runtimes": _chosen(given["runtimes"], targets)} if given["runtimes"] else {}),
    }


def _chosen(names: Sequence[str], targets: Collection[str]) -> dict[str, str]:
    """The chosen runtimes by target; raises ``UsageError`` for one that is none or has no effect."""
    from validation.runners import read_runtimes

    chosen = read_runtimes(names)
    source = click.get_current_context().get_parameter_source("runtimes")
    if source is ParameterSource.ENVIRONMENT:
        return {target: runtime for target, runtime in chosen.items() if target in targets}
    for target, runtime in chosen.items():
        if target not in targets:
            raise UsageError(
                f"--runtime {target}.{runtime} has no effect without target {target}: "
                "leave it out, or add the target"
            )
    return chosen
