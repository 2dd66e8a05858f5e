"""``qatconvert convert``: write and prove the artifacts of one or more targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from converter.cli import candidates
from converter.cli.options import (
    DeclaringCommand,
    OutputPath,
    TargetOption,
    ValidationOption,
    check_effect,
    chosen_targets,
    take_declared,
    validation_options,
    validation_settings,
)
from converter.cli.telling import telling_options, told


@click.command("convert", cls=DeclaringCommand, short_help="Convert MODEL and prove the result.")
@click.argument("model", shell_complete=candidates.models)
@click.option(
    "-t",
    "--target",
    "targets",
    cls=TargetOption,
    multiple=True,
    metavar="NAME",
    default=("gguf",),
    show_default=True,
    help="What to write: TARGETS, several as in gguf,onnx, or all. Repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=OutputPath(path_type=Path),
    help="Output directory. Default: MODEL's name followed by -qatconvert.",
)
@click.option("--force", is_flag=True, help="Replace an earlier conversion in the output directory.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing: show the plan, the files and their sizes, what is to be downloaded, and time and "
    "memory to expect.",
)
@click.option("--offline", is_flag=True, help="Use only what was downloaded before.")
@click.option(
    "--validate/--no-validate",
    cls=ValidationOption,
    always=True,
    default=True,
    help="Run the artifact against reference logits.",
)
@validation_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
@telling_options
def command(
    model: str,
    targets: tuple[str, ...],
    output: Path | None,
    force: bool,
    dry_run: bool,
    offline: bool,
    validate: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log_file: Path | None,
    **settings: Any,
) -> int:
    """Convert MODEL without losing its trained lattice, and prove the result.

    MODEL is a short name (see: qatconvert models), OWNER/NAME[@REVISION] on the Hub, or a directory with
    config.json and safetensors.

    \b
    qatconvert gemma4-demo --target gguf,onnx,litert
    qatconvert google/gemma-4-E2B-it-qat-q4_0-unquantized@main --target gguf -o e2b
    """
    from converter.cli.console import fail, results
    from converter.pipeline.conversion import Conversion, convert
    from targets.target import known_targets

    targets = chosen_targets(targets, known_targets())
    check_effect(targets, validate)
    options, of_runtimes = take_declared(settings, targets)
    conversion = Conversion(
        model,
        targets,
        output,
        force,
        offline,
        options,
        {**validation_settings(targets, settings), **of_runtimes} if validate else None,
    )
    if dry_run:
        from converter.pipeline.preview import preview

        with told(quiet, verbose, log_file, conversion.destination) as telling:
            expected = preview(conversion, telling.progress, telling.warn)
        with results():
            if as_json:
                click.echo(json.dumps(expected, indent=2))
            else:
                from converter.cli.tables import print_preview

                print_preview(expected)
        return 0
    with told(quiet, verbose, log_file, conversion.destination) as telling:
        outcome = convert(conversion, telling.progress, telling.warn)
    with results():
        if as_json:
            click.echo(json.dumps(outcome.report, indent=2))
        else:
            from converter.cli.tables import print_report

            print_report(outcome.report, outcome.output, outcome.try_it)
    for line in outcome.errors:
        fail(line)
    return outcome.exit_status
