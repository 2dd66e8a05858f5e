"""The command line. Modules that read checkpoints or run models are imported by the command that needs
them, so that ``--help`` answers at once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

import click
from click_default_group import DefaultGroup

from converter.errors import QatconvertError
from converter.system import interruption

#: The words behind the program's name, among what a context keeps.
_TYPED = "qatconvert.typed"


class _Commands(DefaultGroup):  # type: ignore[misc]
    """Commands are modules of this package, imported when they are called for."""

    names = ("convert", "inspect", "validate", "verify", "modelfile", "models", "doctor")

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
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def group(debug: bool) -> None:
    """Convert quantization-aware-trained Gemma checkpoints without losing what training settled on.

    The trained 4-bit codes are recovered, stored as they are in the target's own format, and the result is
    run in its real runtime against reference logits.

    \b
    qatconvert gemma4-demo --target gguf        the short form of
    qatconvert convert gemma4-demo --target gguf
    """


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
    interruption.install()
    _replace_what_cannot_be_shown()
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as error:
        interruption.finish()
        click.echo("qatconvert: interrupted", err=True)
        status = error.status if isinstance(error, interruption.Interrupted) else 130
    # what is left goes with the process; seeking garbage in it once more takes seconds after the last line
    gc.freeze()
    sys.exit(status)


def _replace_what_cannot_be_shown() -> None:
    """Have an output that is no Unicode show a question mark for characters that it lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def _run(words: list[str]) -> int:
    """The exit status of a command; tells on standard error what went wrong. Raises ``KeyboardInterrupt``."""
    # Reading makes many objects and hardly a cycle; the collector would walk through them again and again.
    gc.set_threshold(200_000, 50, 100)
    try:
        status = group.main(words, prog_name="qatconvert", standalone_mode=False)
    except click.exceptions.Abort as error:  # in which click wraps an interrupt
        raise (
            error.__cause__ if isinstance(error.__cause__, KeyboardInterrupt) else KeyboardInterrupt
        ) from None
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if "--debug" in words:
            raise
        from converter.names import one_line

        message, status = _told(error)
        click.echo(f"qatconvert: {one_line(message)}", err=True)
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
