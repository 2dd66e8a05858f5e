"""``qatconvert inspect``: what a checkpoint is, tensor by tensor, and what each target would make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from converter.cli import candidates
from converter.cli.options import (
    EXAMINATION,
    DeclaringCommand,
    TargetOption,
    check_effect,
    chosen_targets,
    take_declared,
)
from converter.cli.telling import telling_options, told


@click.command(
    "inspect", cls=DeclaringCommand, short_help="Show architecture, lattice and planned size of MODEL."
)
@click.argument("model", shell_complete=candidates.models)
@click.option(
    "-t",
    "--target",
    "targets",
    cls=TargetOption,
    heading=EXAMINATION,
    multiple=True,
    metavar="NAME",
    help="Plan only for this: TARGETS, several as in gguf,onnx, or all (the default). Repeatable.",
)
@click.option("--tensors", "every_tensor", is_flag=True, help="List every tensor, not only kinds of them.")
@click.option("--offline", is_flag=True, help="Use only what was downloaded before.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@telling_options
def command(
    model: str,
    targets: tuple[str, ...],
    every_tensor: bool,
    offline: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log_file: Path | None,
    **settings: Any,
) -> None:
    """Show MODEL's architecture, the lattice of every tensor, and the planned size per target.

    Reads every block of the checkpoint and writes nothing.

    \b
    qatconvert inspect gemma4-demo
    qatconvert inspect ./my-checkpoint --target gguf --json
    """
    from converter.cli.console import results
    from converter.pipeline.inspection import inspect
    from converter.pipeline.opening import open_model
    from targets.target import find_target, known_targets

    targets = chosen_targets(targets, ())  # of all, one that cannot hold the model is told as that
    check_effect(targets or known_targets(), validated=False)
    with told(quiet, verbose, log_file) as telling:
        options, _ = take_declared(settings, targets or known_targets())
        planned = [find_target(name) for name in targets]
        opened = open_model(
            model, offline=offline, targets=planned, options=options, progress=telling.progress
        )
        found = inspect(opened, targets, options, telling.progress)
        if opened.source.note:
            telling.warn(opened.source.note)
    with results():
        if as_json:
            click.echo(json.dumps(found, indent=2))
        else:
            from converter.cli.tables import print_inspection

            print_inspection(found, every_tensor)
