"""``qatconvert publish``: an output directory as a repository of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from converter.cli.options import GroupedCommand
from converter.cli.telling import telling_options, told

if TYPE_CHECKING:
    from converter.pipeline.publication.publishing import Planned, Published


@click.command("publish", cls=GroupedCommand, short_help="Publish an output directory to a repository.")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--repo", required=True, metavar="OWNER/NAME", help="The repository; it is made if need be.")
@click.option("--private", is_flag=True, help="A repository that is made is for its owners alone.")
@click.option("--create-pr", is_flag=True, help="Propose the commit as a pull request.")
@click.option("--tag", metavar="NAME", help="Name the commit. A tag that is there is never moved.")
@click.option("-m", "--message", metavar="TEXT", help="First line of the commit's message.")
@click.option(
    "--allow-failed", is_flag=True, help="Also publish what did not pass every gate; the card says so."
)
@click.option("--card-license", metavar="NAME", help="Licence in the card. Default: the source's.")
@click.option(
    "--card-language", "languages", multiple=True, metavar="CODE", help="Language in the card. Repeatable."
)
@click.option(
    "--base-model", metavar="OWNER/NAME", help="What was converted. Default: the source's repository."
)
@click.option("--quantized-by", metavar="NAME", help="Whom the card names as publisher.")
@click.option(
    "--card-tag", "tags", multiple=True, metavar="TAG", help="A further tag in the card. Repeatable."
)
@click.option("--dry-run", is_flag=True, help="Change nothing: show what would be sent.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@telling_options
def command(
    output: Path,
    repo: str,
    private: bool,
    create_pr: bool,
    tag: str | None,
    message: str | None,
    allow_failed: bool,
    card_license: str | None,
    languages: tuple[str, ...],
    base_model: str | None,
    quantized_by: str | None,
    tags: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    log_file: Path | None,
) -> int:
    """Publish OUT, which convert wrote and proved, to a repository of the Hub.

    Every file is compared with the manifest first. GGUF files go to the root, where llama.cpp and Ollama
    look, others to onnx/ and litert/, with the reports, digests and a model card. Large files are sent
    first, then one commit names all: nobody sees half of it. What is there already is not sent again. The
    token is that of HF_TOKEN or `hf auth login`.

    \b
    qatconvert publish out --repo OWNER/NAME --dry-run
    """
    from converter.cli.console import results
    from converter.pipeline.publication.card import Fields
    from converter.pipeline.publication.publishing import Request, plan_publication, publish

    fields = Fields(card_license, languages, base_model, quantized_by, tags)
    request = Request(output, repo, fields, private, create_pr, tag, message, allow_failed)
    with told(quiet, verbose, log_file, output) as telling:
        if dry_run:
            plan = plan_publication(request, telling.progress)
        else:
            done = publish(request, telling.progress)
            plan = done.plan
    with results():
        if as_json:
            click.echo(json.dumps(plan.as_dict() if dry_run else done.as_dict(), indent=2))
            return 0
        _print_plan(plan, dry_run)
        if not dry_run:
            _print_done(done)
    return 0


def _print_plan(plan: Planned, dry_run: bool) -> None:
    from converter.cli.layout import figures, line
    from converter.names import one_line
    from converter.system.amounts import amount

    what = "a dry run, nothing is sent" if dry_run else "published"
    if plan.nothing:
        what = "has all of it already"
    line(f"{plan.repo}: {what}", "bold")
    line()
    rows = [(one_line(one.path), amount(one.bytes), one.change) for one in plan.changes]
    figures(("file", "size", "change"), rows, left=(0, 2))
    line()
    for target, verdict in plan.contents.unproven.items():
        line(f"{target}: {verdict}, which the card says")
    if dry_run and not plan.nothing:
        made = "" if plan.head.commit is not None else "; the repository is made"
        line(f"to send {amount(sum(one.bytes for one in plan.uploads))} in one commit{made}")


def _print_done(done: Published) -> None:
    from converter.cli.layout import command, line

    if done.pull_request is not None:
        line(f"proposed: {done.pull_request}")
        return
    line(f"commit {done.commit}{f', tag {done.tag}' if done.tag else ''}: {done.url}")
    command(f"verify it: qatconvert verify {done.plan.repo}@{done.tag or done.commit}")
