"""``qatconvert release``: make and prove every artifact that a release file names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from converter.cli.options import GroupedCommand, InputPath
from converter.cli.telling import telling_options, told

_BYTES_PER_GB = 1_000_000_000


@click.command("release", cls=GroupedCommand, short_help="Make and prove all artifacts of a release file.")
@click.argument("file", type=InputPath(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--dry-run", is_flag=True, help="Write nothing: show the steps, what they take and what is done."
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    metavar="N",
    help="Artifacts made at the same time. Default: 1.",
)
@click.option(
    "--memory",
    type=click.FloatRange(0.1, 1e6),
    metavar="GB",
    help="Memory for all of them together. Default: what is free.",
)
@click.option("--no-publish", is_flag=True, help="Publish nothing, whatever the file says.")
@click.option("--offline", is_flag=True, help="Use only what was downloaded before.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@telling_options
def command(
    file: Path,
    dry_run: bool,
    jobs: int,
    memory: float | None,
    no_publish: bool,
    offline: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log_file: Path | None,
) -> int:
    """Make and prove every artifact that the TOML file FILE names, each in a process of its own.

    What an earlier run has finished is verified by its digests and not made again. An artifact that fails a
    gate is left out of the output, the others are not. A model whose artifacts have all passed is published
    where the file names a repository.

    \b
    qatconvert release release.toml --dry-run
    """
    from converter.cli.console import results
    from converter.pipeline.release.running import Request, plan_release, release

    request = Request(
        file, jobs, None if memory is None else int(memory * _BYTES_PER_GB), offline, not no_publish
    )
    with told(quiet, verbose, log_file) as telling:
        if dry_run:
            found = plan_release(request, telling.progress, telling.warn)
        else:
            tell = (lambda line: None) if quiet else _tell
            summary, output = release(request, telling.progress, telling.warn, tell)
    with results():
        if dry_run:
            click.echo(json.dumps(found, indent=2)) if as_json else _print_plan(found)
            return 0
        if as_json:
            click.echo(json.dumps(summary.as_dict(), indent=2))
        else:
            _print_summary(summary.as_dict(), output)
    return summary.exit_status


def _tell(text: str) -> None:
    from converter.names import one_line

    click.echo(one_line(text), err=True)


def _print_plan(found: Mapping[str, Any]) -> None:
    from converter.cli.layout import figures, line
    from converter.names import one_line
    from converter.system.amounts import amount

    line(f"{found['release']}: a dry run, nothing is written", "bold")
    line()
    rows = [
        (
            step["model"],
            step["target"],
            "cannot be made" if step["error"] else "done" if step["done"] else "to do",
            "" if step["bytes"] is None else amount(step["bytes"]),
            "" if not step["memory"] else amount(step["memory"]),
            "" if step["seconds"] is None else f"{step['seconds']:.0f} s",
        )
        for step in found["steps"]
    ]
    figures(("model", "target", "state", "size", "memory", "time"), rows, left=(0, 1, 2))
    line()
    for model, error in dict.fromkeys((one["model"], one["error"]) for one in found["steps"] if one["error"]):
        line(f"{model}: {error}")
    for one in found["publications"]:
        state = one["error"] or (
            "a new repository" if one["head"] is None else f"now at commit {one['head'][:12]}"
        )
        line(f"to publish: {one['model']} to {one['repo']} ({one_line(state)})")
    download = sum(one["bytes"] for one in found["downloads"])
    line(f"to download {amount(download)}, to write {amount(found['disk'])} below {found['output']}")


def _print_summary(found: Mapping[str, Any], output: Path) -> None:
    from converter.cli.layout import figures, line
    from converter.names import one_line
    from converter.system.amounts import amount

    line(f"{found['release']}: {'passed' if found['passed'] else 'FAILED'}", "bold")
    line()
    rows = [
        (
            one["model"],
            one["target"],
            one["status"],
            "" if one["mean_kld"] is None else f"{one['mean_kld']:.6f}",
            "" if one["bytes"] is None else amount(one["bytes"]),
        )
        for one in found["artifacts"]
    ]
    figures(("model", "target", "result", "mean KLD", "size"), rows, left=(0, 1, 2))
    line()
    for one in found["artifacts"]:
        if why := one["error"] or ", ".join(one["gates"]):
            line(f"{one['model']} {one['target']}: {one_line(why)}")
    for one in found["publications"]:
        told = one["url"] or one["error"] or "not all of its artifacts passed"
        line(f"{one['model']} to {one['repo']}: {one['status']} ({one_line(told)})")
    line(f"written to {one_line(str(output))}")
