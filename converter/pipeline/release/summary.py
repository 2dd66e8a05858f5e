"""What came of a release: JSON for programs, Markdown for a job's summary, JUnit for CI systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final
from xml.etree import ElementTree

from converter.names import one_line

PASSED: Final = "passed"
FAILED: Final = "failed"
ERROR: Final = "error"
#: Names of the files that hold it.
JSON: Final = "release.json"
MARKDOWN: Final = "summary.md"
JUNIT: Final = "junit.xml"


@dataclass(frozen=True)
class Made:
    """One artifact of a release."""

    model: str
    target: str
    #: ``PASSED``, ``FAILED`` (a gate) or ``ERROR`` (it could not be made or measured).
    status: str
    #: Whether an earlier run had made it.
    cached: bool
    #: Its path below the release's output; ``None`` where there is none.
    path: str | None = None
    bytes: int | None = None
    mean_kld: float | None = None
    #: Gates that failed or did not run.
    gates: Sequence[str] = ()
    #: In a line, what went wrong.
    error: str | None = None
    seconds: float = 0.0


#: What became of a model's publication.
PUBLISHED: Final = "published"
BLOCKED: Final = "blocked"


@dataclass(frozen=True)
class Sent:
    """One model of a release, and the repository that it is for."""

    model: str
    repo: str
    #: ``PUBLISHED`` (also by an earlier run), ``BLOCKED`` (not all of its artifacts passed) or ``ERROR``.
    status: str
    commit: str | None = None
    #: Of the commit or, if that is asked for, of the pull request.
    url: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """All artifacts of a release, and what was published."""

    release: str
    made: Sequence[Made]
    sent: Sequence[Sent] = ()

    @property
    def exit_status(self) -> int:
        """0 if all passed, 1 after errors, 3 if a gate failed."""
        states = {one.status for one in self.made} | {one.status for one in self.sent}
        return 1 if ERROR in states else 3 if FAILED in states else 0

    def as_dict(self) -> dict[str, Any]:
        """The content of ``release.json``, which holds no time: the same artifacts give the same bytes."""
        entries = []
        for one in self.made:
            entry = {**asdict(one), "gates": list(one.gates)}
            del entry["seconds"], entry["cached"]
            entries.append(entry)
        return {
            "schema": 1,
            "release": self.release,
            "passed": self.exit_status == 0,
            "artifacts": entries,
            "publications": [asdict(one) for one in self.sent],
        }

    def markdown(self) -> str:
        """The table, for the summary of a CI job."""
        verdict = "passed" if self.exit_status == 0 else "FAILED"
        lines = [
            f"### {_cell(self.release)}: {verdict}",
            "",
            "| model | target | result | mean KLD | bytes | file |",
            "|---|---|---|---:|---:|---|",
        ]
        for one in self.made:
            told = one.status if one.status == PASSED else f"**{one.status}**"
            why = one.error or ", ".join(one.gates)
            cells = (
                one.model,
                one.target,
                f"{told}{f': {why}' if why else ''}",
                "" if one.mean_kld is None else f"{one.mean_kld:.6f}",
                "" if one.bytes is None else f"{one.bytes:,}",
                one.path or "",
            )
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
        for sent in self.sent:
            link = f"[{_cell(sent.repo)}]({sent.url})" if sent.url else _cell(sent.repo)
            told = sent.status if sent.status == PUBLISHED else f"**{sent.status}**"
            lines += [
                "",
                f"{_cell(sent.model)} to {link}: {told}{f': {_cell(sent.error)}' if sent.error else ''}",
            ]
        return "\n".join(lines) + "\n"

    def junit(self) -> str:
        """A suite for each model, a case for each target and for its publication."""
        root = ElementTree.Element("testsuites", name=self.release)
        for model in dict.fromkeys(one.model for one in self.made):
            own = [one for one in self.made if one.model == model]
            published = [one for one in self.sent if one.model == model]
            states = [*(one.status for one in own), *(one.status for one in published)]
            suite = ElementTree.SubElement(
                root,
                "testsuite",
                name=model,
                tests=str(len(states)),
                failures=str(states.count(FAILED)),
                errors=str(states.count(ERROR)),
            )
            for one in own:
                case = ElementTree.SubElement(
                    suite, "testcase", classname=model, name=one.target, time=f"{one.seconds:.1f}"
                )
                if one.status != PASSED:
                    kind = "failure" if one.status == FAILED else "error"
                    told = one_line(one.error or f"gates: {', '.join(one.gates)}")
                    ElementTree.SubElement(case, kind, message=told)
            for sent in published:
                case = ElementTree.SubElement(suite, "testcase", classname=model, name="publish", time="0")
                if sent.status == BLOCKED:
                    ElementTree.SubElement(case, "skipped", message="not all artifacts passed")
                elif sent.status == ERROR:
                    ElementTree.SubElement(case, "error", message=one_line(sent.error or ""))
        ElementTree.indent(root)
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def gates_of(entry: Mapping[str, Any]) -> list[str]:
    """Gates of a report's entry that failed, or did not run and were not allowed to."""
    return [
        gate["name"]
        for gate in entry.get("gates", ())
        if gate["passed"] is False or (gate["passed"] is None and not gate.get("allowed"))
    ]
