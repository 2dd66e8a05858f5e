"""``qatconvert modelfile``: an Ollama Modelfile for a checkpoint or a GGUF."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from converter.cli.options import OutputPath, modelfile_options, read_license

if TYPE_CHECKING:
    from converter.names import Source
    from targets.ollama import Modelfile


@click.command("modelfile", short_help="Print an Ollama Modelfile for a checkpoint or a GGUF.")
@click.argument("model")
@click.option(
    "--from", "path", help="What FROM says. Default: where convert puts the GGUF, or the GGUF given."
)
@modelfile_options
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
    system: str | None,
    license_files: tuple[Path, ...],
    num_ctx: int | None,
    output: Path | None,
    force: bool,
    offline: bool,
) -> None:
    """Print an Ollama Modelfile for MODEL, a checkpoint or a GGUF file.

    Of a model on the Hub, only its configuration is downloaded.

    \b
    qatconvert modelfile gemma4-demo --system "Answer in one sentence."
    qatconvert modelfile out/gguf/gemma4-demo-q4_0.gguf -o Modelfile
    """
    from converter.errors import DestinationError
    from converter.names import resolve
    from converter.output import write_file
    from targets.ollama import write_modelfile

    if output is not None and output.exists() and not force:
        raise DestinationError(f"{output} exists: choose another --output, or add --force")
    source = resolve(model)
    options = {
        "system": system,
        "licenses": [read_license(file) for file in license_files],
        "num_ctx": num_ctx,
    }
    if source.kind == "gguf" and source.path is not None:
        made = _of_gguf(source.path, path, output, options)
    else:
        made = _of_checkpoint(source, path, options, offline)
    text = write_modelfile(made)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_file(output, text)


def _of_checkpoint(
    source: Source, path: str | None, options: Mapping[str, object], offline: bool
) -> Modelfile:
    from converter.architecture import read_architecture
    from converter.document import read_object
    from converter.tokenizer import read_tokenizer
    from targets.gguf import modelfile
    from targets.sampling import end_texts, read_penalties, read_sampling

    directory = source.path
    if directory is None:
        from converter.hub import download

        directory = download(source, offline=offline, weights=False).path
    architecture = read_architecture(read_object(directory / "config.json"))
    stops = []
    if os.path.lexists(directory / "tokenizer.json"):
        stops = end_texts(architecture, read_tokenizer(directory, architecture.vocabulary))
    default = f"../gguf/{source.name}-q4_0.gguf"
    sampling, penalties = read_sampling(directory), read_penalties(directory)
    return modelfile(path or default, architecture, sampling, options, stops, penalties)


def _of_gguf(gguf: Path, path: str | None, output: Path | None, options: Mapping[str, object]) -> Modelfile:
    from targets.gguf import read_metadata
    from targets.ollama import gemma_modelfile

    metadata = read_metadata(gguf)
    # Ollama takes a model of several files by their directory
    model = gguf.parent if metadata.splits > 1 else gguf
    beside = output.parent if output is not None else Path()
    default = os.path.relpath(model, beside)
    licenses = options["licenses"]
    return gemma_modelfile(
        path or (default if default.startswith(".") else f"./{default}"),
        metadata.architecture,
        metadata.parameters,
        context=metadata.context,
        num_ctx=options["num_ctx"] if isinstance(options["num_ctx"], int) else None,
        system=str(options["system"]) if options["system"] else None,
        licenses=licenses if isinstance(licenses, list) else [],
    )
