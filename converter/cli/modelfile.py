"""``qatconvert modelfile``: an Ollama Modelfile for a checkpoint or a GGUF."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from converter.cli import candidates
from converter.cli.console import warn
from converter.cli.options import DeclaringCommand, OutputPath, take_declared

if TYPE_CHECKING:
    from converter.names import Source
    from targets.ollama import Modelfile

#: Behind a FROM that holds in one place only.
_NOTE: Final = (
    "# this path holds for OUTPUT/ollama/Modelfile, which a conversion puts beside its GGUF;"
    " anywhere else, --from PATH\n"
)


@click.command(
    "modelfile", cls=DeclaringCommand, short_help="Print an Ollama Modelfile for a checkpoint or a GGUF."
)
@click.argument("model", shell_complete=candidates.models)
@click.option(
    "--from", "path", help="What FROM says. Default: where convert puts the GGUF, or the GGUF given."
)
@click.option(
    "-o",
    "--output",
    type=OutputPath(dir_okay=False, path_type=Path),
    help="Write to this file instead of standard output.",
)
@click.option("--force", is_flag=True, help="Replace the output file.")
@click.option("--offline", is_flag=True, help="Use only what was downloaded before.")
def command(
    model: str,
    path: str | None,
    output: Path | None,
    force: bool,
    offline: bool,
    **settings: Any,
) -> None:
    """Print an Ollama Modelfile for MODEL, a checkpoint or a GGUF file.

    Of a model on the Hub, only its configuration is downloaded.

    \b
    qatconvert modelfile gemma4-demo --system "Answer in one sentence."
    qatconvert modelfile out/gguf/gemma4-demo-q4_0.gguf -o Modelfile
    """
    from converter.errors import DestinationError
    from converter.names import resolve
    from converter.system.output import write_file
    from targets.gguf.modelfile import licence_warnings
    from targets.ollama import write_modelfile

    if output is not None and output.exists() and not force:
        raise DestinationError(f"{output} exists: choose another --output, or add --force")
    source = resolve(model)
    options, _ = take_declared(settings, ["gguf"])
    for line in licence_warnings(options):
        warn(line)
    note = ""
    if source.kind == "gguf" and source.path is not None:
        made = _of_gguf(source.path, path, output, options)
    else:
        made = _of_checkpoint(source, path, options, offline)
        note = "" if path else _NOTE
    text = write_modelfile(made)
    if note:
        text = text.replace("\n", f"\n{note}", 1)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_file(output, text)


def _of_checkpoint(
    source: Source, path: str | None, options: Mapping[str, object], offline: bool
) -> Modelfile:
    from converter.checkpoint.generation import end_texts
    from converter.checkpoint.opened import read_description
    from targets.gguf.modelfile import modelfile

    place = source.path
    if place is None:
        from converter.hub import download

        place = download(source, offline=offline, weights=False).path
    described = read_description(place)
    architecture, generation = described.architecture, described.generation
    return modelfile(
        path or _planned_path(place, source.name, described.has_weights()),
        architecture,
        generation.sampling,
        options,
        [] if described.tokenizer is None else end_texts(architecture, described.tokenizer),
        generation.penalties,
    )


def _planned_path(place: Path, name: str, has_weights: bool) -> str:
    """Where ``convert`` puts the GGUF, from the Modelfile's place. Without the weights, which say what type
    most bytes have, it is where that of a QAT checkpoint goes."""
    from converter.checkpoint.opened import open_checkpoint
    from targets.gguf import target

    if not has_weights:
        return f"../gguf/{name}-q4_0.gguf"
    return f"../{target.plan(open_checkpoint(place), name, {}).artifacts[0]}"


def _of_gguf(gguf: Path, path: str | None, output: Path | None, options: Mapping[str, object]) -> Modelfile:
    from targets.gguf.metadata import read_metadata
    from targets.gguf.modelfile import modelfile_of_gguf

    if path is None:
        # Ollama takes a model of several files by their directory
        model = gguf.parent if read_metadata(gguf).splits > 1 else gguf
        # what is printed may be put anywhere
        path = os.path.abspath(model) if output is None else os.path.relpath(model, output.parent)
        path = path if path.startswith((".", os.sep)) else f"./{path}"
    return modelfile_of_gguf(gguf, path, options)
