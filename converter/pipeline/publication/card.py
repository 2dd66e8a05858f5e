"""The model card of a publication: front matter, and a section between two marks that is written anew.

What people write around the section stays, and so do keys of the front matter that are theirs. Keys:
https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from converter.errors import HubError
from converter.names import printable
from converter.pipeline.publication.contents import Contents
from converter.system.amounts import amount
from targets.publishing import place_of, publishable
from validation.report.coverage import verdict_told
from validation.report.markdown import said_in_words, table, text
from validation.report.summary import measured_against, side_by_side
from validation.report.texts import report_verdict

#: What stands around the section.
BEGIN: Final = "<!-- qatconvert: what follows is written anew at each publication -->"
END: Final = "<!-- qatconvert: end -->"
#: Keys of the front matter that the publication decides; of the others it says what nobody has said yet.
_DECIDED: Final = frozenset({"base_model", "base_model_relation", "library_name"})
#: What belongs to one licence and is wrong beside another.
_OF_LICENSE: Final = frozenset({"license_name", "license_link"})
_FENCE: Final = "---"


@dataclass(frozen=True, slots=True)
class Fields:
    """What a publisher says of the model, each field empty where they say nothing."""

    license: str | None = None
    languages: tuple[str, ...] = ()
    #: The repository that was converted, where the source is none.
    base_model: str | None = None
    quantized_by: str | None = None
    tags: tuple[str, ...] = ()


def card(repo: str, contents: Contents, fields: Fields, earlier: str | None) -> bytes:
    """``README.md`` of ``repo``; ``earlier`` is the one that is there.

    The same arguments give the same bytes. Raises ``HubError`` for an earlier card whose front matter cannot
    be read.
    """
    before, body = _read(earlier, repo)
    front = _merged(before, _front_matter(contents, fields), fields)
    section = "\n".join([BEGIN, "", *_section(repo, contents), "", END])
    if earlier is None:
        body = f"# {text(contents.report['model'])}\n"
    start, end = body.find(BEGIN), body.find(END)
    if 0 <= start < end:
        body = body[:start] + section + body[end + len(END) :]
    else:
        body = f"{body.rstrip()}\n\n{section}\n" if body.strip() else f"{section}\n"
    return f"{_FENCE}\n{_yaml(front)}{_FENCE}\n\n{body.lstrip()}".encode()


def is_ours(earlier: str | None) -> bool:
    """Whether a card was written by an earlier publication."""
    return earlier is not None and BEGIN in earlier


def _read(earlier: str | None, repo: str) -> tuple[dict[str, Any], str]:
    """The front matter of a card, and what follows it."""
    import yaml

    lines = (earlier or "").removeprefix("\ufeff").split("\n")  # what else ends a line for Python stays
    if lines[0].rstrip() != _FENCE:
        return {}, earlier or ""
    ends = [number for number, line in enumerate(lines[1:], 1) if line.rstrip() == _FENCE]
    where = f"{repo}: README.md has a front matter that"
    if not ends:
        raise HubError(f"{where} does not end: mend it there, then run the same command again")
    try:
        values = yaml.load("\n".join(lines[1 : ends[0]]), _loader()) or {}
    except Exception as error:  # PyYAML raises more than its own errors
        problem = printable(str(getattr(error, "problem", None) or type(error).__name__))
        raise HubError(f"{where} is no YAML ({problem}): mend it there") from None
    if not isinstance(values, dict):
        raise HubError(f"{where} is no mapping: mend it there, then run the same command again")
    return values, "\n".join(lines[ends[0] + 1 :])


def _loader() -> Any:
    """YAML's safe loader, for which ``no`` is a language, as it is for the Hub, and not false."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    boolean = "tag:yaml.org,2002:bool"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != boolean or first in "tTfF"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _yaml(front: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True, width=1 << 14))


def _front_matter(contents: Contents, fields: Fields) -> dict[str, Any]:
    manifest = contents.manifest
    said = manifest.card
    base = fields.base_model or manifest.origin.repo
    targets = list(manifest.targets)
    libraries = [found.library for name in targets if (found := publishable(name)) is not None]
    front: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": "quantized" if base else None,
        "license": fields.license or said.get("license"),
        "license_name": None if fields.license else said.get("license_name"),
        "license_link": None if fields.license else said.get("license_link"),
        "language": list(fields.languages or said.get("languages", ())),
        "library_name": libraries[0] if libraries else None,
        "pipeline_tag": "text-generation",
        "quantized_by": fields.quantized_by,
        "tags": list(dict.fromkeys(["qat", "quantized", *targets, "qatconvert", *fields.tags])),
    }
    return {key: value for key, value in front.items() if value}


def _merged(before: Mapping[str, Any], ours: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Both front matters: keys that a publication decides are ours, and so are those that were given."""
    given = {"license": fields.license, "language": fields.languages, "quantized_by": fields.quantized_by}
    decided = {*(_DECIDED & ours.keys()), *(key for key, value in given.items() if value)}
    if fields.license:
        decided |= _OF_LICENSE
    elif "license" in before:
        ours = {key: value for key, value in ours.items() if key not in _OF_LICENSE}
    front = {**ours, **{key: value for key, value in before.items() if key not in decided}}
    theirs = before.get("tags")
    if isinstance(theirs, list):
        front["tags"] = list(dict.fromkeys([*theirs, *ours["tags"]]))
    return front


def _section(repo: str, contents: Contents) -> Iterator[str]:
    report, manifest = contents.report, contents.manifest
    targets: Mapping[str, Mapping[str, Any]] = report["targets"]
    yield f"Written by qatconvert {text(manifest.tool)} from {_origin(contents)}."
    yield ""
    yield f"**{report_verdict(report)}**: {text(verdict_told(report))}"
    if contents.unproven:
        yield ""
        told = ", ".join(f"{target} {said}" for target, said in contents.unproven.items())
        yield f"**Published although not all of it passed ({text(told)}); see report.md.**"
    yield from ("", "## Fidelity", "")
    yield from table(("", *targets), said_in_words(side_by_side(targets)))
    if told := measured_against(report):
        yield from ("", f"Figures are {text(told)}. All of them: [report.md](report.md).")
    yield from ("", "## Files", "")
    yield from table(("file", "size", "for"), _files(contents))
    if report["left_out"]:
        yield from ("", "## Left out", "")
        for one in report["left_out"]:
            yield f"- {text(one['part'])}: {one['tensors']} tensors, {amount(one['bytes'])} in the checkpoint"
    yield from ("", "## Use it")
    for target in manifest.targets:
        yield from _usage(repo, contents, target)
    yield from ("", "## Verify it", "")
    yield "Every file against its digest, and the artifacts against the manifest of the conversion:"
    yield from ("", *_shell("pip install qatconvert", f"qatconvert verify {repo}"))
    yield from ("", "Or, in a download of all files:", "", *_shell("sha256sum -c SHA256SUMS"))


def _origin(contents: Contents) -> str:
    origin = contents.manifest.origin
    if origin.repo is not None:
        return f"[{text(origin.repo)}](https://huggingface.co/{origin.repo}) at commit `{origin.revision}`"
    return text(origin.text)


def _files(contents: Contents) -> Iterator[Sequence[str]]:
    """The main file of each target with its size; side files are with it."""
    for target in contents.manifest.targets:
        names = contents.of(target)
        size = sum(contents.manifest.files[name].bytes for name in names)
        if names:
            path = place_of(target, names[0])
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield (f"{path}{others}", amount(size), target)


def _usage(repo: str, contents: Contents, target: str) -> Iterator[str]:
    found, names = publishable(target), contents.of(target)
    if found is not None and names:
        for usage in found.usage(repo, names):
            yield from ("", f"With {usage.runtime}:", "", *_shell(*usage.lines))


def _shell(*lines: str) -> Iterator[str]:
    yield from ("```sh", *lines, "```")
