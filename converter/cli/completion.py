"""``qatconvert completion``: have a shell complete commands, options, names and files."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from converter.cli.options import Choice, GroupedCommand
from converter.errors import DestinationError, UsageError
from converter.system.replacing import write_whole

_SHELLS: Final = ("bash", "zsh", "fish")
#: The first and last lines of what is put into a shell's own file.
_BEGIN: Final = "# >>> qatconvert completion >>>"
_END: Final = "# <<< qatconvert completion <<<"
#: The first line of a file that is wholly this command's.
_OWN: Final = "# written by: qatconvert completion --install"
#: zsh completes nothing before its system is loaded.
_LOADED: Final = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n"
#: Click's script for fish (8.5) cuts what it is answered at every comma; ``onnx,gguf`` has one of its own.
_CUT: Final = 'string split "," '
_CUT_ONCE: Final = 'string split --max 1 "," '
#: Click's script for zsh puts a space behind what it completes, also behind ``mean_kld=``, which goes on.
_ADDED: Final = 'completions+=("$key")'
_ADDED_OPEN: Final = f"""if [[ "$key" == *= ]]; then
                    compadd -U -S '' -V unsorted -- "$key"
                else
                    {_ADDED}
                fi"""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a shell looks for completions."""

    #: The script.
    script: Path
    #: The shell's file that has to read it; ``None`` where it is found by its place.
    startup: Path | None


@click.command("completion", cls=GroupedCommand, short_help="Have your shell complete what you type.")
@click.option("--install", is_flag=True, help="Set it up for your shell; once more changes nothing.")
@click.option("--uninstall", is_flag=True, help="Take it away again.")
@click.option("--shell", type=Choice(_SHELLS), help="bash, zsh or fish. Default: what SHELL names.")
def command(install: bool, uninstall: bool, shell: str | None) -> None:
    """Print the script that has a shell complete commands, options, targets, models and files, or set it up.

    \b
    qatconvert completion --install
    qatconvert completion --shell zsh
    """
    if install and uninstall:
        raise UsageError("--install and --uninstall contradict each other: leave out one of them")
    shell = shell or _running_shell()
    try:
        if install:
            _install(shell, _place(shell))
        elif uninstall:
            _uninstall(shell, _place(shell))
        else:
            click.echo(_script(shell), nl=False)
    except OSError as error:
        raise DestinationError(f"{error.filename}: {error.strerror}") from error


def _running_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in _SHELLS:
        raise UsageError(f"which shell is meant? add --shell {', --shell '.join(_SHELLS)}")
    return name


def _script(shell: str) -> str:
    from click.shell_completion import get_completion_class

    from converter.cli import COMPLETE, group

    found = get_completion_class(shell)
    assert found is not None
    complete = found(group, {}, "qatconvert", COMPLETE)
    script = complete.source_template % complete.source_vars()
    script = script.replace(_CUT, _CUT_ONCE) if shell == "fish" else script
    return script.replace(_ADDED, _ADDED_OPEN) if shell == "zsh" else script


def _place(shell: str) -> _Place:
    home = Path.home()
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return _Place(config / "fish" / "completions" / "qatconvert.fish", None)
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    script = data / "qatconvert" / f"completion.{shell}"
    if shell == "zsh":
        return _Place(script, Path(os.environ.get("ZDOTDIR") or home) / ".zshrc")
    return _Place(script, home / ".bashrc")


def _install(shell: str, place: _Place) -> None:
    if _is_foreign(place.script):
        raise DestinationError(
            f"{place.script} is not of qatconvert completion --install: move it away first"
        )
    changed = []
    text = f"{_OWN}\n{_script(shell)}"
    if not place.script.exists() or place.script.read_text("utf-8") != text:
        place.script.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place.script, text)
        changed.append(f"wrote {place.script}")
    if place.startup is not None and _BEGIN.encode() not in _content(place.startup):
        _append(place.startup, _block(shell, place.script))
        changed.append(f"added a block to {place.startup} that reads it")
    for line in changed or [f"completion is installed already ({place.script})"]:
        click.echo(line, file=sys.stdout)
    click.echo(f"open a new {shell} to use it; to undo: qatconvert completion --uninstall --shell {shell}")


def _uninstall(shell: str, place: _Place) -> None:
    changed = []
    if place.startup is not None and _BEGIN.encode() in _content(place.startup):
        _take_out(place.startup)
        changed.append(f"took the block out of {place.startup}")
    if place.script.exists() and not _is_foreign(place.script):
        place.script.unlink()
        changed.append(f"removed {place.script}")
    for line in changed or [f"completion is not installed for {shell}"]:
        click.echo(line, file=sys.stdout)


def _is_foreign(script: Path) -> bool:
    """Whether a file is there that somebody else wrote."""
    return script.exists() and not script.read_text("utf-8", "replace").startswith(_OWN)


def _content(startup: Path) -> bytes:
    return startup.read_bytes() if startup.exists() else b""


def _block(shell: str, script: Path) -> str:
    import shlex

    quoted = shlex.quote(str(script))
    loaded = _LOADED if shell == "zsh" else ""
    return f"{_BEGIN}\n{loaded}[ -r {quoted} ] && . {quoted}\n{_END}\n"


def _append(startup: Path, block: str) -> None:
    """Put a block behind what a file has, whatever that is."""
    before = _content(startup)
    startup.parent.mkdir(parents=True, exist_ok=True)
    with startup.open("ab") as file:
        file.write(b"" if not before or before.endswith(b"\n") else b"\n")
        file.write(block.encode())


def _take_out(startup: Path) -> None:
    """Take the block out of a file. A link stays one, and the file keeps its mode."""
    place = startup.resolve()
    before, _, rest = place.read_bytes().partition(f"{_BEGIN}\n".encode())
    _, end, after = rest.partition(f"{_END}\n".encode())
    if not end:
        raise DestinationError(f"{startup}: the line {_END!r} is missing: take the block out by hand")
    beside = place.with_name(f"{place.name}.qatconvert")
    beside.write_bytes(before + after)
    shutil.copymode(place, beside)
    beside.replace(place)
