"""``qatconvert convert``: write and prove the artifacts of one or more targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from converter.cli.options import (
    OutputPath,
    check_effect,
    litert_options,
    modelfile_options,
    off_lattice_option,
    onnx_options,
    target_options,
    validation_options,
    validation_settings,
)


@click.command("convert", short_help="Convert MODEL and prove the result.")
@click.argument("model")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    default=("gguf",),
    show_default=True,
    help="Output format; repeat for several.",
)
@click.option(
    "-o",
    "--output",
    type=OutputPath(path_type=Path),
    help="Output directory. Default: MODEL's name followed by -qatconvert.",
)
@click.option("--force", is_flag=True, help="Replace an earlier conversion in the output directory.")
@click.option("--offline", is_flag=True, help="Use only what was downloaded before.")
@off_lattice_option
@click.option(
    "--split-max-size", metavar="SIZE", help="Split the GGUF into files of at most SIZE (2G, 500M)."
)
@onnx_options
@click.option(
    "--accuracy-level",
    type=click.IntRange(0, 4),
    help="How onnxruntime multiplies by quantised weights: 0 in the activations' own type, 4 in int8. "
    "Default: both are measured, and the fastest that passes the gates is kept.",
)
@litert_options
@click.option("--keep-tflite", is_flag=True, help="Keep a LiteRT bundle's models as .tflite files beside it.")
@click.option(
    "--npu",
    "npu",
    multiple=True,
    metavar="VENDOR:SOC",
    help="Also compile a LiteRT bundle for a neural processor, such as qualcomm:SM8750 or mediatek:MT6991; "
    "needs the vendor's SDK. Repeatable.",
)
@click.option(
    "--android-assets",
    type=OutputPath(path_type=Path),
    help="Also lay a LiteRT bundle out as assets of an Android app in this directory.",
)
@modelfile_options
@click.option("--validate/--no-validate", default=True, help="Run the artifact against reference logits.")
@validation_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def command(
    model: str,
    targets: tuple[str, ...],
    output: Path | None,
    force: bool,
    offline: bool,
    validate: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Convert MODEL without losing its trained lattice, and prove the result.

    MODEL is a short name (see: qatconvert models), OWNER/NAME[@REVISION] on the Hub, or a directory with
    config.json and safetensors.

    \b
    qatconvert gemma4-demo --target gguf --target onnx --target litert
    qatconvert google/gemma-4-E2B-it-qat-q4_0-unquantized@main --target gguf -o e2b
    """
    from converter.cli.console import fail, progress_bars, warn
    from converter.pipeline.conversion import Conversion, convert
    from targets.target import check_known

    check_known(targets)
    check_effect(targets, validate)
    options = target_options(settings)
    conversion = Conversion(
        model,
        targets,
        output,
        force,
        offline,
        options,
        validation_settings(**settings) if validate else None,
    )
    with progress_bars(quiet) as progress:
        outcome = convert(conversion, progress, warn)
    if as_json:
        click.echo(json.dumps(outcome.report, indent=2))
    else:
        from converter.cli.tables import print_report

        print_report(outcome.report, outcome.output)
    for line in outcome.errors:
        fail(line)
    return outcome.exit_status
