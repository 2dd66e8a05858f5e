"""The command line. Modules that read checkpoints or run models are imported by the command that needs
them, so that ``--help`` answers at once."""

from __future__ import annotations

import codecs
import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper

import click
from click.shell_completion import CompletionItem
from click_default_group import DefaultGroup

from converter.cli.environment import PREFIX, given_by_environment, name_variables
from converter.errors import QatconvertError, UsageError
from converter.system import interruption

_WRONG_USAGE = 2
#: With it a shell asks what may be typed next.
COMPLETE = "_QATCONVERT_COMPLETE"
#: The handler of characters that an output lacks, and what is shown for those of this project's own texts.
_PLAIN = "qatconvert.plain"
_INSTEAD = {"…": "..."}
#: How much a word is like the command that may be meant: ``inpsect`` is, ``model.gguf`` is not.
_ALIKE = 0.75


@dataclass
class _Session:
    """What became known of a call while it was read."""

    debug: bool = False
    #: The command that was called, with what it was given.
    context: click.Context | None = None


def _remember(context: click.Context, option: click.Parameter, debug: bool) -> None:
    session = context.find_object(_Session)
    if session is not None:
        session.debug |= debug
        session.context = context


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        envvar=f"{PREFIX}_DEBUG",
        callback=_remember,
        help="Show the traceback of an error.",
    )


#: The words behind the program's name, among what a context keeps.
_TYPED = "qatconvert.typed"


class _Commands(DefaultGroup):  # type: ignore[misc]
    """Commands are modules of this package, imported when they are called for."""

    names = (
        "convert",
        "inspect",
        "validate",
        "verify",
        "release",
        "publish",
        "modelfile",
        "models",
        "doctor",
        "completion",
    )

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        """Remember what was typed: ``--version`` says more beside ``-v``, which otherwise is a command's."""
        context.meta[_TYPED] = tuple(words)
        return super().parse_args(context, words)  # type: ignore[no-any-return]

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        module = name if name in self.names else self.default_cmd_name
        if module not in self.commands:
            self.add_command(import_module(f"converter.cli.{module}").command)
        return super().get_command(context, name)  # type: ignore[no-any-return]

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called, with the options that all have. Raises ``UsageError`` for a word that
        is neither a command nor a model, where it is close to a command."""
        if not context.resilient_parsing:
            self._refuse_mistyped(context, words[0])
        name, command, rest = super().resolve_command(context, words)
        if command is not None:
            _complete(command, context)
        return name, command, rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options, and models for the short form."""
        from converter.cli.candidates import models

        found = super().shell_complete(ctx, incomplete)
        return [*found, *([] if incomplete.startswith("-") else models(ctx, None, incomplete))]

    def _refuse_mistyped(self, context: click.Context, word: str) -> None:
        if word.startswith("-") or word in self.names:
            return
        from difflib import get_close_matches

        from converter.names import printable, resolve

        near = get_close_matches(word, self.names, 2, _ALIKE)
        if not near:
            return
        try:
            resolve(word)
        except UsageError:
            told = f"no command and no model {printable(word)!r}: did you mean {' or '.join(near)}?"
            raise click.UsageError(told, context) from None


def _complete(command: click.Command, context: click.Context) -> None:
    """Give a command and those within it what each has: ``--debug``, and defaults from the environment."""
    for one in (command, *(command.commands.values() if isinstance(command, click.Group) else ())):
        if not any("--debug" in parameter.opts for parameter in one.params):
            one.params.append(_debug_option())
    name_variables(command.name or "", command.get_params(context))


@click.group(
    cls=_Commands,
    default="convert",
    default_if_no_args=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, every gate passed; 1 failed; 2 wrong usage; 3 written, but a gate failed or "
    "did not run (verify: something differs); 130 and 143 interrupted (SIGINT, SIGTERM).",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _, asked: _print_versions(context) if asked else None,
    help="Show the version and exit; with -v also those of Python, the runtimes and the libraries.",
)
def group() -> None:
    """Convert quantization-aware-trained Gemma checkpoints without losing what training settled on.

    The trained 4-bit codes are recovered, stored as they are in the target's own format, and the result is
    run in its real runtime against reference logits.

    \b
    qatconvert gemma4-demo --target gguf          # the same as
    qatconvert convert gemma4-demo --target gguf
    """


group.params.append(_debug_option())


def _print_versions(context: click.Context) -> None:
    from importlib.metadata import version

    click.echo(f"qatconvert, version {version('qatconvert')}")
    if {"-v", "--verbose"} & set(context.meta[_TYPED]):
        from converter.cli.doctor import print_versions

        print_versions()
    context.exit()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit. The status is 0, 1 if it failed, 2 for wrong usage, 3 if a gate failed
    or something differs. It is 130 and 143 after the signals SIGINT and SIGTERM, when everything half-written
    is removed."""
    if COMPLETE in os.environ:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - nothing may come between a user and the prompt
    interruption.install()
    _replace_what_cannot_be_shown()
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as error:
        interruption.finish()
        click.echo("qatconvert: interrupted", file=sys.stderr)
        status = error.status if isinstance(error, interruption.Interrupted) else 130
    # what is left goes with the process; seeking garbage in it once more takes seconds after the last line
    gc.freeze()
    sys.exit(status)


def _replace_what_cannot_be_shown() -> None:
    """Have an output that is no Unicode show what stands for characters that it lacks, or a question mark."""
    codecs.register_error(_PLAIN, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors=_PLAIN)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_INSTEAD.get(one, "?") for one in lacking), error.end


def _run(words: list[str]) -> int:
    """The exit status of a command; tells on standard error what went wrong. Raises ``KeyboardInterrupt``."""
    # Reading makes many objects and hardly a cycle; the collector would walk through them again and again.
    gc.set_threshold(200_000, 50, 100)
    session = _Session()
    try:
        status = group.main(words, prog_name="qatconvert", standalone_mode=False, obj=session)
    except click.exceptions.Abort as error:  # in which click wraps an interrupt
        raise (
            error.__cause__ if isinstance(error.__cause__, KeyboardInterrupt) else KeyboardInterrupt
        ) from None
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if session.debug:
            raise
        from converter.names import one_line

        message, status = _told(error)
        if status == _WRONG_USAGE and session.context and (given := given_by_environment(session.context)):
            message += f" (from the environment: {', '.join(given)})"
        click.echo(f"qatconvert: {one_line(message)}", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _told(error: Exception) -> tuple[str, int]:
    """What a user is told of an exception, and the exit status."""
    if isinstance(error, QatconvertError):
        return str(error), error.exit_status
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        help_ = f" (see: {context.command_path} --help)" if context else ""
        return f"{error.format_message()}{help_}", error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory", 1
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1
    return f"unexpected {type(error).__name__}: {error}; qatconvert --debug ... shows where", 1
