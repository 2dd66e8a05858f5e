"""``qatconvert validate``: prove an artifact that exists already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from converter.cli import candidates
from converter.cli.options import (
    EXAMINATION,
    DeclaringCommand,
    InputPath,
    OutputPath,
    TargetOption,
    check_effect,
    take_declared,
    validation_options,
    validation_settings,
)
from converter.cli.telling import telling_options, told


@click.command(
    "validate", cls=DeclaringCommand, short_help="Prove an existing ARTIFACT against its checkpoint."
)
@click.argument("artifact", type=InputPath(exists=True, path_type=Path))
@click.option(
    "--reference",
    "model",
    metavar="MODEL",
    shell_complete=candidates.models,
    help="The checkpoint it was made from. Default: the one that the manifest of its conversion names.",
)
@click.option(
    "--target",
    cls=TargetOption,
    heading=EXAMINATION,
    metavar="TARGET",
    help="Which target's ARTIFACT is meant, where there are several.",
)
@click.option("--offline", is_flag=True, help="Use only what was downloaded before.")
@click.option(
    "--foreign",
    is_flag=True,
    help="ARTIFACT is another tool's: list what is not as qatconvert builds it instead of failing over it.",
)
@validation_options
@click.option(
    "-o",
    "--output",
    type=OutputPath(file_okay=False, path_type=Path),
    help="Write report.json, report.md and report.html into this directory.",
)
@click.option("--force", is_flag=True, help="Write into a directory that is not empty.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
@telling_options
def command(
    artifact: Path,
    model: str | None,
    target: str | None,
    offline: bool,
    foreign: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log_file: Path | None,
    **settings: Any,
) -> int:
    """Measure ARTIFACT's weights and logits against the checkpoint it was made from.

    ARTIFACT is the output directory of a conversion, with all that it holds; a file that convert wrote (of
    a split GGUF, the first), or any other of the same format; or a directory with one of them. Exit status 3
    when a gate fails.

    \b
    qatconvert validate out
    qatconvert validate model.gguf --reference gemma4-demo
    """
    from converter.cli.console import results
    from converter.cli.tables import print_report
    from converter.pipeline.validation import artifacts_of, validate

    targets = [one.target.name for one in artifacts_of(artifact, target)]
    check_effect(targets)
    _, of_runtimes = take_declared(settings, targets)
    with told(quiet, verbose, log_file, output) as telling:
        outcome = validate(
            artifact,
            model,
            target=target,
            offline=offline,
            output_directory=output,
            force=force,
            settings={**validation_settings(targets, settings), **of_runtimes, "foreign": foreign},
            progress=telling.progress,
            warn=telling.warn,
        )
    with results():
        if as_json:
            click.echo(json.dumps(outcome.report, indent=2))
        else:
            print_report(outcome.report, output)
    return 0 if outcome.passed else 3
