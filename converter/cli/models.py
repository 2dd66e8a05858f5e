"""``qatconvert models``: the short names and what they stand for."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from converter.cli import candidates
from converter.names import add_model, known_models, remove_model


@click.group("models", short_help="List short names of models; add your own.", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the short names of models, or add and remove your own.

    \b
    qatconvert models
    qatconvert models add gemma4-9b my-team/gemma-4-9B-it-qat
    """
    if context.invoked_subcommand:
        return
    models = known_models()
    if as_json:
        click.echo(json.dumps([asdict(model) for model in models], indent=2))
        return
    width = max(len(model.name) for model in models)
    for model in models:
        own = "  (yours)" if model.origin == "user" else ""
        click.echo(f"{model.name:<{width}}  {model.repo or 'ships with qatconvert'}{own}")


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
