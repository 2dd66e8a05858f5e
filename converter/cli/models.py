"""``qatconvert models``: the short names and what they stand for."""

from __future__ import annotations

import json

import click

from converter.cli import candidates
from converter.names import add_model, remove_model


@click.group("models", short_help="List short names of models; add your own.", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the short names of models: what each stands for, what it takes to download and to convert, and
    the targets that it can be converted to today. Or add and remove your own.

    \b
    qatconvert models
    qatconvert models add gemma4-9b my-team/gemma-4-9B-it-qat
    """
    if context.invoked_subcommand:
        return
    from converter.cli.console import results
    from converter.pipeline.catalogue import catalogue

    found = catalogue()
    with results():
        if as_json:
            click.echo(json.dumps(found, indent=2))
        else:
            from converter.cli.tables import print_models

            print_models(found)


@command.command("add")
@click.argument("name")
@click.argument("repository")
def add(name: str, repository: str) -> None:
    """Let NAME stand for REPOSITORY (OWNER/NAME[@REVISION]) from now on."""
    model = add_model(name, repository)
    click.echo(f"{model.name} -> {model.repo}")


@command.command("remove")
@click.argument("name", shell_complete=candidates.own_names)
def remove(name: str) -> None:
    """Forget your own NAME."""
    model = remove_model(name)
    click.echo(f"{model.name} no longer stands for {model.repo}")
