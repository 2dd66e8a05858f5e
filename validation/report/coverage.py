"""What "proven" covered in each target, gate by gate, and what did not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from validation.gates import SAME_AS_BUILT
from validation.limits import AT_LEAST, GRAPH, TEXT, WEIGHTS
from validation.report.texts import gate_value, report_verdict, verdict

#: In a cell: the target's proof has no such gate.
NONE: Final = "-"


@dataclass(frozen=True, slots=True)
class Point:
    """One of the six things that "proven" means (docs/validation.md)."""

    title: str
    #: In a sentence.
    means: str
    #: The gates that judge it; the one without any takes what is left.
    gates: tuple[str, ...] = ()


BYTES: Final = Point(
    "the bytes converted", "The files that were read have the digests that the Hub lists for the commit."
)
SHIPPED: Final = Point(
    "as it ships", "Run as users run it, the artifact stays within the limits of what rounding may cost."
)
#: In the order of docs/validation.md.
POINTS: Final = (
    BYTES,
    Point(
        "the weights",
        "Read back from the file, they are the trained ones, block by block and value by value.",
        WEIGHTS,
    ),
    Point(
        "as built",
        "Metadata, graph, tokenizer, template and bytes are what the converter derives from the checkpoint.",
        (SAME_AS_BUILT,),
    ),
    Point(
        "without rounding",
        "Run so that nothing is rounded, the artifact gives the logits that transformers gives on the same "
        "weights.",
        (GRAPH,),
    ),
    SHIPPED,
    Point(
        "text",
        "The runtime makes the checkpoint's tokens of a text and its prompt of a chat, and ends an answer "
        "where the checkpoint does.",
        tuple(TEXT),
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table of gates and targets."""

    label: str
    #: One for each target, in order.
    cells: tuple[str, ...]
    #: The point whose heading this is, ``None`` for a gate.
    point: Point | None = None


def coverage(report: Mapping[str, Any]) -> list[Row]:
    """For each point a heading with its verdicts, then its gates: value, limit, and what there is to say."""
    targets = report["targets"].values()
    judged = [dict(_gates(entry)) for entry in targets]
    names = list(dict.fromkeys(name for gates in judged for name in gates))
    rows = []
    for number, point in enumerate(POINTS, 1):
        own = [name for name in names if _point(name) is point]
        cells = [
            _source_told(entry.get("source", report["source"]))
            if point is BYTES
            else _point_told(point, entry, [gates[name] for name in own if name in gates])
            for entry, gates in zip(targets, judged, strict=True)
        ]
        rows.append(Row(f"{number}. {point.title}", tuple(cells), point))
        rows += [
            Row(name, tuple(gate_told(gates[name]) if name in gates else NONE for gates in judged))
            for name in own
        ]
    return rows


def _gates(entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Gates of a target by name; those of a part beside the text model have its name before theirs."""
    yield from ((gate["name"], gate) for gate in entry.get("gates", ()))
    for part, found in entry.get("parts", {}).items():
        yield from ((f"{part}: {gate['name']}", gate) for gate in found.get("gates", ()))


def _point(name: str) -> Point:
    gate = name.rpartition(": ")[2]
    return next((point for point in POINTS if gate in point.gates), SHIPPED)


def _point_told(point: Point, entry: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> str:
    if not gates:
        if SAME_AS_BUILT in point.gates and entry.get("foreign"):
            return "not judged: another tool's artifact"
        if entry.get("error"):
            return f"{verdict(None)}: {entry['error']}"
        return "no gate" if entry.get("gates") else f"{verdict(None)}: not validated"
    passed = [gate["passed"] for gate in gates]
    return verdict(False if False in passed else None if None in passed else True)


def _source_told(source: Mapping[str, Any]) -> str:
    files = source.get("files")
    if not source.get("repo"):
        return "no gate: a directory, of which nobody lists digests"
    if files is None:
        return "not recorded"
    told = f"{files['compared']} of {files['read']} files have the listed digests"
    return f"{verdict(True)}: {told}" if files["compared"] == files["read"] else told


def gate_told(gate: Mapping[str, Any]) -> str:
    """A gate in one line: verdict, value and limit, and its note."""
    name, note = gate["name"], gate.get("note", "")
    if gate["passed"] is None:
        return note or verdict(None)
    told = []
    if gate["value"] is not None:
        bound = "at least" if name in AT_LEAST else "at most"
        limit = "" if gate["limit"] is None else f", {bound} {gate_value(name, gate['limit'])}"
        told.append(gate_value(name, gate["value"]) + limit)
    told += [note] if note else []
    return verdict(gate["passed"]) + (f": {'; '.join(told)}" if told else "")


def verdict_told(report: Mapping[str, Any]) -> str:
    """Why the verdict of a report is what it is, in one sentence."""
    targets = report["targets"]
    failed = [line for name, entry in targets.items() for line in _named(name, entry, False)]
    if failed:
        return f"Failed: {'; '.join(failed)}."
    unrun = [line for name, entry in targets.items() for line in _named(name, entry, None)]
    if report_verdict(report) == "not validated":
        return "Converted, and not validated: nothing here is proven."
    if unrun:
        return f"Nothing failed. Did not run: {'; '.join(unrun)}."
    return "Every gate of every target ran and passed."


def _named(target: str, entry: Mapping[str, Any], passed: bool | None) -> Iterator[str]:
    names = [name for name, gate in _gates(entry) if gate["passed"] is passed]
    if names:
        yield f"{target}: {', '.join(names)}"
    elif passed is False and entry.get("error"):
        yield f"{target}: could not be validated"
    elif entry.get("passed") is passed:
        yield target


def not_covered(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the proof leaves open beside gates that say so themselves: label and text, target by target."""
    found = [(part["part"], "not converted") for part in report.get("left_out", ())]
    for target, entry in report["targets"].items():
        found += [(target, line) for line in _open(entry)]
    return found


def _open(entry: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{part['part']} is not converted" for part in entry.get("left_out", ()))
    for gate in (gate for _, gate in _gates(entry) if gate["passed"] is None):
        yield f"{gate['name']}: {gate.get('note') or verdict(None)}"
    runtime = entry.get("runtime") or {}
    if runtime.get("note"):
        yield str(runtime["note"])
    graph = runtime.get("graph") or {}
    if graph.get("layers_of"):
        yield f"without rounding, {len(graph['layers'])} of {graph['layers_of']} layers ran"
    grids = entry.get("activation_grids")
    if grids and not grids["applied"]:
        yield f"the runtime does not round to the static grids of {grids['modules']} modules"
    engine = runtime.get("engine") or {}
    prompts = engine.get("prompts") or {}
    for key, what in (
        ("not_expressible", "cannot be expressed in the runtime"),
        ("runtime_limits", "become another prompt by the runtime itself"),
    ):
        if chats := len(prompts.get(key) or ()):
            yield f"not counted: {chats} of the chats {what}"
    if texts := len((engine.get("tokenizer") or {}).get("runtime_limits") or ()):
        yield f"not counted: {texts} of the texts become other tokens by the runtime itself"
