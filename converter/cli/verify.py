"""``qatconvert verify``: an output, or one that was published, beside its manifest or a conversion again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from converter.cli import candidates
from converter.cli.options import GroupedCommand
from converter.cli.telling import telling_options, told

if TYPE_CHECKING:
    from converter.pipeline.verification import Verification

#: Differences that are listed on a terminal; ``--json`` has them all.
_SHOWN = 50
#: Options that say what the verdict names anyway.
_PLAIN = ("name", "repo", "revision")


@click.command(
    "verify", cls=GroupedCommand, short_help="Compare an output, or what was published, with its manifest."
)
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--rebuild",
    "convert_again",
    is_flag=True,
    help="Also convert again from the source that the manifest names, and compare every byte.",
)
@click.option(
    "--reference",
    metavar="MODEL",
    shell_complete=candidates.models,
    help="With --rebuild: where the source is, if the manifest has only a directory's name.",
)
@click.option("--offline", is_flag=True, help="With --rebuild: use only what was downloaded before.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, with every difference.")
@telling_options
def command(
    output: Path,
    convert_again: bool,
    reference: str | None,
    offline: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log_file: Path | None,
) -> int:
    """Compare every file of OUT, which convert wrote, with OUT/manifest.json.

    OUT may be a repository that was published, OWNER/NAME[@REVISION]: the files that it names are
    downloaded, and none of them is run.

    Size and SHA-256 of each listed file must be as they were, and no other file may be there. Needs no
    network and no model. With --rebuild, the same source is converted again with the same options, and
    every artifact must have the same bytes, whoever wrote OUT and its manifest. Exit status 3 when
    something differs.

    \b
    qatconvert verify out
    qatconvert verify out --rebuild --offline
    """
    if not convert_again and (reference is not None or offline):
        option = "--reference" if reference is not None else "--offline"
        raise click.UsageError(f"{option} has no effect without --rebuild")
    from contextlib import ExitStack
    from dataclasses import replace

    from converter.cli.console import results
    from converter.pipeline.origin import published_source
    from converter.pipeline.verification import verify

    source = published_source(str(output))
    with told(quiet, verbose, log_file, output) as telling, ExitStack() as stack:
        if source is None:
            found = verify(output, telling.progress)
        else:
            from converter.pipeline.publication.repository import published_output

            published = stack.enter_context(published_output(source, telling.progress))
            found = published.verify(telling.progress)
        if convert_again:
            from converter.pipeline.rebuild import rebuild

            again = rebuild(
                found, reference=reference, offline=offline, progress=telling.progress, tell=telling.warn
            )
            found = replace(found, rebuild=again)
    with results():
        if as_json:
            click.echo(json.dumps(_as_json(found), indent=2))
        else:
            _print(found)
    return found.exit_status


def _as_json(found: Verification) -> dict[str, object]:
    manifest, again = found.manifest, found.rebuild
    rebuilt = None
    if again is not None:
        rebuilt = {
            "other_versions": list(again.versions),
            "options": {target: dict(options) for target, options in again.options.items()},
            "same": list(again.same),
            "not_made_again": dict(again.apart),
        }
    return {
        "schema": 1,
        "passed": not found.differences,
        "tool": manifest.tool,
        "source": {
            "repo": manifest.origin.repo,
            "revision": manifest.origin.revision,
            "path": manifest.origin.path,
        },
        "published": found.published,
        "files": len(manifest.files),
        "bytes": found.bytes,
        "differences": [
            {"path": one.path, "problem": one.problem, "versions_differ": one.versions_differ}
            for one in found.differences
        ],
        "report": dict(found.verdicts),
        "rebuild": rebuilt,
    }


def _print(found: Verification) -> None:
    """The differences, the first one first, what the report says if it is not ``passed``, and a verdict."""
    from converter.cli.layout import line
    from converter.names import one_line
    from converter.system.amounts import amount

    def say(text: str) -> None:
        line(one_line(text))

    differences, manifest = found.differences, found.manifest
    for one in differences[:_SHOWN]:
        say(f"{one.path}: {one.problem}")
    if len(differences) > _SHOWN:
        say(f"and {len(differences) - _SHOWN} more (--json lists them)")
    for target, verdict in found.verdicts.items():
        if verdict != "passed":
            say(f"the report says: {target}: {verdict}")
    written = f"written by qatconvert {manifest.tool} from {manifest.origin.text}"
    if differences:
        count = "1 difference" if len(differences) == 1 else f"{len(differences)} differences"
        reason = ""
        if all(one.versions_differ for one in differences):
            reason = "; other versions wrote these files, and may be the whole reason"
        say(f"{found.shown}: {count}, the first in {differences[0].path}{reason}; {written}")
        return
    files = f"{len(manifest.files)} files ({amount(found.bytes)})"
    say(f"{found.shown}: {files} are as its manifest says; {written}")
    if found.rebuild is not None:
        again = found.rebuild
        for target, options in again.options.items():
            say(f"{target}: {_options(options)}")
        apart = f"; {len(again.apart)} reports of measured figures are not made again" if again.apart else ""
        say(f"converted again: the same bytes in {len(again.same)} files{apart}")


def _options(options: Mapping[str, object]) -> str:
    """The options of a target in one line, as far as they were given."""
    told = {
        name: value
        for name, value in options.items()
        if name not in _PLAIN and value not in (None, False, [])
    }
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in told.items())
