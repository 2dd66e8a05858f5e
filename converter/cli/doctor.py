"""``qatconvert doctor``: what is installed, what each target and its proof still need, and how to get it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from converter.cli.options import EXAMINATION, GroupedCommand, TargetOption, chosen_targets
from converter.cli.telling import telling_options, told

#: What stands where a library is not installed.
_MISSING = "not installed"
_STATES = {"missing": _MISSING, "outside": "not in the allowed range", "untested": "not tested", "tested": ""}


@click.command(
    "doctor", cls=GroupedCommand, short_help="Say what is installed, what is missing and how to get it."
)
@click.argument("names", nargs=-1, metavar="[TARGET]...")
@click.option(
    "-t",
    "--target",
    "targets",
    cls=TargetOption,
    heading=EXAMINATION,
    multiple=True,
    metavar="NAME",
    help="Ask for this target: TARGETS, several as in gguf,onnx, or all. Repeatable; the same as TARGET.",
)
@click.option("--no-validate", is_flag=True, help="Ask only for conversions, not for their proof.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@telling_options
def command(
    names: tuple[str, ...],
    targets: tuple[str, ...],
    no_validate: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log_file: Path | None,
) -> int:
    """Say what is installed, what each target and its proof still need, and how to get it.

    Every runtime is loaded in a process of its own. The exit status is 1 if a TARGET that is named cannot be
    converted to, or not be proven there (unless with --no-validate), and 0 otherwise.

    \b
    qatconvert doctor
    qatconvert doctor gguf onnx
    """
    from converter.cli.console import results
    from converter.pipeline.readiness import examine
    from targets.target import known_targets

    asked = chosen_targets((*names, *targets), known_targets())
    with told(quiet, verbose, log_file) as telling:
        found: dict[str, Any] = examine(asked, telling.progress, validate=not no_validate)
    with results():
        if as_json:
            click.echo(json.dumps(found, indent=2))
        else:
            _print(found)
    ready = all(
        one[what] is None or one[what]["ready"] for one in found["targets"] for what in ("convert", "prove")
    )
    return 1 if asked and not ready else 0


def print_versions() -> None:
    """Python, the platform, and what this program and its extras require; imports none of it."""
    from converter.system.installed import libraries

    rows = [("Python", f"{platform.python_version()} ({platform.python_implementation()})")]
    rows.append(("platform", platform.platform()))
    for library in libraries():
        rows.append((library.name, _version(library.name, library.version, library.extras)))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}")


def _version(name: str, version: str | None, extras: Iterable[str]) -> str:
    if version is None:
        wanted = ", ".join(extras)
        return f"{_MISSING} (extra {wanted})" if wanted else _MISSING
    build = version.rpartition(".")[2] if name == "xllamacpp" else ""
    return f"{version} (llama.cpp build {build})" if build else version


def _print(found: Mapping[str, Any]) -> None:
    from converter.cli.layout import command as shown_command
    from converter.cli.layout import facts, figures, line

    tool, machine = found["tool"], found["machine"]
    rows = [
        ("qatconvert", f"{tool['version']}, managed by {tool['installer']} in {tool['environment']}"),
        ("Python", f"{found['python']} on {found['platform']}"),
        ("processors", _processors(machine)),
    ]
    facts([*rows, *_places(found)])
    line()
    figures(("target", "convert", "runtime", "prove"), [_row(one) for one in found["targets"]], (0, 1, 2, 3))
    for one in found["targets"]:
        for what in ("convert", "prove"):
            _print_needs(f"{one['name']}: {what}", one[what], line, shown_command)
    line()
    figures(
        ("library", "installed", "allowed", "tested", "extras", ""),
        [
            (
                library["name"],
                library["version"] or "-",
                library["required"],
                library["tested"] or "-",
                ",".join(library["extras"]) or "always",
                _STATES[library["state"]],
            )
            for library in found["libraries"]
        ],
        (0, 1, 2, 3, 4, 5),
    )


def _print_needs(what: str, ability: Mapping[str, Any] | None, line: Any, shown_command: Any) -> None:
    if ability is None or ability["ready"]:
        return
    line()
    for problem in ability["problems"]:
        line(f"{what}: {problem}")
    for text in ability["commands"]:
        shown_command(f"  {text}")


def _row(target: Mapping[str, Any]) -> tuple[str, str, str, str]:
    convert, prove = (_word(target[what]) for what in ("convert", "prove"))
    return target["name"], convert, target["runtime"] or "-", prove


def _word(ability: Mapping[str, Any] | None) -> str:
    if ability is None:
        return "not asked"
    return "yes" if ability["ready"] else "not yet"


def _processors(machine: Mapping[str, Any]) -> str:
    from converter.system.amounts import amount

    has = [name for name, there in machine["features"].items() if there]
    lacks = [name for name, there in machine["features"].items() if not there]
    features = f"; has {', '.join(has) or 'none of them'}" if has or lacks else ""
    features += f"; without {', '.join(lacks)}" if lacks else ""
    return (
        f"{machine['processors']} ({machine['architecture']}){features};"
        f" {amount(machine['free_memory'])} of memory free"
    )


def _places(found: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    from converter.system.amounts import amount

    for place in found["places"]:
        if place["path"] is None:
            yield place["name"], "no place to keep it: it is compiled anew in every process"
            continue
        told = [place["path"], f"{amount(place['free'])} free" if place["writable"] else "cannot be written"]
        if "compiled" in place:
            told.append("there" if place["compiled"] else "compiled by the first conversion")
        yield place["name"], "; ".join(told)
    yield "token for the Hub", "there" if found["hub_token"] else "none; models that need one are refused"
