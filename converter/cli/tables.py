"""Reports and inspections on standard output."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from converter.checkpoint.stored.modules import NUMBERS
from converter.cli.layout import command, facts, figures, fits, line
from converter.names import one_line
from converter.system.amounts import amount
from validation.report.figures import bits, rate, share
from validation.report.prompts import chats_told
from validation.report.summary import measured_against, recovery_told, side_by_side
from validation.report.texts import (
    difference_lines,
    engine_text,
    gate_value,
    options_told,
    report_verdict,
    way_told,
)

#: Numbers within the name of a weight: of its layer, of its expert.
_NUMBER: Final = re.compile(r"\.\d+(?=\.)")
#: From so many seconds on, minutes are told.
_MINUTES: Final = 120
_NUMBERS: Final = "norms, vectors, scalars"


def print_report(report: Mapping[str, Any], output: Path | None, try_it: Sequence[str] = ()) -> None:
    """The verdict, the figures of the targets side by side, more about each, where it all lies, and the
    commands that ``try_it``."""
    targets: Mapping[str, Mapping[str, Any]] = report["targets"]
    line(f"{one_line(str(report['model']))}: {report_verdict(report)}", "bold")
    line()
    figures(("", *targets), list(side_by_side(targets)))
    for sentence in filter(None, (recovery_told(report), measured_against(report))):
        line()
        line(sentence)
    for target, entry in targets.items():
        if told := list(_told(entry)):
            line()
            line(target, "bold")
            facts((f"  {label}", one_line(text)) for label, text in told)
    line()
    if output is not None:
        details = ": report.html has the details" if _measured(targets) else ""
        line(f"written to {one_line(str(output))}{details}")
    for tried in try_it:
        command(f"try it: {tried}")


def _measured(targets: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(entry.get("logits") for entry in targets.values())


def _told(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the table does not say of a target."""
    yield ("file", str(entry["artifact"]))
    gates = [("", gate) for gate in entry.get("gates", ()) if _is_told(gate)]
    for name, found in entry.get("parts", {}).items():
        gates += [(f"{name}, ", gate) for gate in found.get("gates", ()) if _is_told(gate)]
    for where, gate in gates:
        yield ("gate", f"{where}{_gate(gate)}")
    if (entry.get("options") or {}).get("from") == "artifact":  # no manifest said how it was converted
        yield ("options", options_told(entry))
    if entry.get("foreign"):  # of any other artifact a gate tells
        for text in difference_lines(entry):
            yield ("differs in", text)
    if "alternatives" in entry:
        yield ("run with", _tried(entry["alternatives"]))
    if engine := (entry.get("runtime") or {}).get("engine"):
        yield ("run by", f"{engine['name']} {engine['version']}")
        yield ("text", _engine(engine))
    if "error" in entry:
        yield ("could not be validated", entry["error"])


def _is_told(gate: Mapping[str, Any]) -> bool:
    """Whether the table is not enough: a gate that did not pass, or that a part of the model was run for."""
    return not gate["passed"] or (gate["name"] == "graph_kld" and "note" in gate)


def _gate(gate: Mapping[str, Any]) -> str:
    """What became of a gate, in one line."""
    name, note = gate["name"], gate.get("note", "")
    if gate["passed"]:
        return f"{name} passed ({note})"
    if gate["passed"] is None:
        without = "" if gate.get("allowed") else f" (--allow-unrun {name} goes on without it)"
        return f"{name} {note}{without}"
    told = f"{name} failed: {gate_value(name, gate['value'])}, the limit is {gate_value(name, gate['limit'])}"
    return f"{told} ({note})" if note else told


def _engine(engine: Mapping[str, Any]) -> str:
    """What the runtime's program for text made of the artifact, in one line."""
    tokens = engine["tokenizer"]
    told = f"{tokens['equal']} of {tokens['texts']} texts with the checkpoint's tokens"
    if prompts := engine.get("prompts"):
        told += f"; {chats_told(prompts)}"
    if engine.get("greedy"):
        told += f"; {engine_text(engine)}"
    return told


def _tried(alternatives: Sequence[Mapping[str, Any]]) -> str:
    """The way to run the artifact that was chosen, then the others, each with its speed and verdict."""
    told = []
    for one in sorted(alternatives, key=lambda one: not one["chosen"]):
        speed = one.get("decode_tokens_per_second")
        figure = one.get("error", f"{speed:,.0f} tokens/s" if speed else "no speed")
        word = {True: "passed", False: "failed", None: "not judged"}[one["passed"]]
        kept = "kept" if one["chosen"] else word
        told.append(f"{way_told(one)}: {kept}, {figure}")
    return "; ".join(told)


def print_inspection(found: Mapping[str, Any], every_tensor: bool = False) -> None:
    """Architecture, what each target would make of the model, and its weights by kind or, with
    ``every_tensor``, one by one."""
    line(f"{one_line(str(found['model']))}: {found['source']['stored_as']}", "bold")
    line()
    facts(_architecture(found))
    names = [name for name, target in found["targets"].items() if "error" not in target]
    near = _near(found["weights"])
    for name, target in found["targets"].items():
        line()
        line(f"{name}, planned", "bold")
        facts((f"  {label}", one_line(text)) for label, text in _planned(name, target, near))
    line()
    types = {name: _types(found["targets"][name]["tensors"]) for name in names}
    groups = _every(found["weights"]) if every_tensor else _kinds(found["weights"])
    figures(*_weights(groups, every_tensor), left=(0, 3, 4))
    line()
    figures(
        ("stored as", *names),
        [(label, *(_joined(types[name].get(one["name"], "-") for one in group) for name in names))
         for label, group in groups],
        left=range(len(names) + 1),
    )  # fmt: skip
    if not every_tensor:
        line()
        line("--tensors lists every tensor")
    _print_left_out(found["left_out"])


def print_preview(found: Mapping[str, Any]) -> None:
    """What a conversion would write, download and take, and its weights by kind."""
    line(f"{one_line(str(found['model']))}: a dry run, nothing is written", "bold")
    line()
    facts(_outcome(found))
    for name, target in found["targets"].items():
        line()
        line(f"{name}, planned", "bold")
        facts((f"  {label}", one_line(text)) for label, text in _expected(name, target, found["validated"]))
    line()
    types = {name: _types(target["tensors"]) for name, target in found["targets"].items()}
    figures(
        ("kind", "tensors", "shape", *types),
        [
            (
                label,
                str(len(group)),
                _shapes(group) if group[0]["matrix"] else "",
                *(_joined(types[name].get(one["name"], "-") for one in group) for name in types),
            )
            for label, group in _kinds(found["weights"])
        ],
        left=(0, *range(3, len(types) + 3)),
    )
    line()
    line(f"Time and memory are estimates, measured on {found['estimated_for']}.")


def print_models(found: Sequence[Mapping[str, Any]]) -> None:
    """The short names with what they stand for and take."""
    told = [(model["name"], _stands_for(model)) for model in found]
    rows = [(_download(model), _memory(model["memory"]), _targets(model)) for model in found]
    heading = ("name", "download", "memory", "targets")
    if fits(("name", "stands for"), told):
        figures(
            (*heading, "stands for"),
            [(name, *row, meant) for (name, meant), row in zip(told, rows, strict=True)],
            left=(0, 3, 4),
        )
    else:
        figures(heading, [(name, *row) for (name, _), row in zip(told, rows, strict=True)], left=(0, 3))
        line()
        for name, meant in told:
            line(name)
            command(f"  {meant}")
    line()
    line("memory: about what converting takes without a proof, by target; NAME --dry-run tells more")
    reasons: dict[str, list[str]] = {}
    for model in found:
        if model["targets"] == []:
            reasons.setdefault(one_line(model["why"]), []).append(model["name"])
    for why, names in reasons.items():
        line(f"not yet: {', '.join(names)}: {why}")


def _download(model: Mapping[str, Any]) -> str:
    if model["download"] is None:
        return "unknown"
    return f"{'about ' if model['about'] else ''}{amount(model['download'])}" if model["download"] else "none"


def _memory(needed: Mapping[str, int] | None) -> str:
    """The least and the most that targets take."""
    if not needed:
        return "unknown"
    least, most = (amount(_rounded(one)) for one in (min(needed.values()), max(needed.values())))
    return f"about {least}" if least == most else f"{least} to {most}"


def _targets(model: Mapping[str, Any]) -> str:
    if model["targets"] is None:
        return "unknown"
    return ", ".join(model["targets"]) or "not yet"


def _stands_for(model: Mapping[str, Any]) -> str:
    own = " (yours)" if model["origin"] == "user" else ""
    return f"{model['repo'] or 'ships with qatconvert'}{own}"


def _outcome(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    output, download = found["output"], found["download"]
    place = one_line(output["path"])
    told = [
        *([f"replaces {', '.join(output['replaces'])}"] if output["replaces"] else []),
        *([f"keeps {', '.join(output['keeps'])}"] if output["keeps"] else []),
    ]
    yield "output", f"{place}: {'; '.join(told) or ('exists' if output['exists'] else 'is new')}"
    yield "beside", ", ".join(found["files"])
    if download["bytes"]:
        yield "download", f"{amount(download['bytes'])} of {amount(download['of'])} of weights"
        yield "weights", "not at hand: taken to lie on their lattice, as training leaves them"
    else:
        yield "download", "nothing"
    for part in found["left_out"]:
        yield "left out", f"{one_line(str(part['part']))}: {part['tensors']} tensors, {amount(part['bytes'])}"


def _expected(name: str, target: Mapping[str, Any], validated: bool) -> Iterator[tuple[str, str]]:
    """The files of a target and what making them takes."""
    yield "weights", f"{amount(target['bytes'])}, {bits(target['bits_per_weight'])} bits per weight"
    for file in target["files"]:
        about = "" if file["exact"] else "about " if file["bytes"] else "small, not known before: "
        yield "file", f"{file['path']}, {about}{amount(file['bytes']) if file['bytes'] else ''}".rstrip(" :")
    expected = target["estimate"]
    for key, unit in (("seconds", _duration), ("memory", amount)):
        label = "time" if key == "seconds" else key
        if expected is None:
            yield label, "unknown"
            continue
        proof = f", {unit(_rounded(expected['with_proof'][key]))} with the proof"
        yield label, f"about {unit(_rounded(expected['alone'][key]))}{proof if validated else ''}"
    for warning in target["warnings"]:
        yield "warning", warning.removeprefix(f"{name}: ")


def _rounded(value: float) -> int:
    """Two leading digits: an estimate has no more."""
    step: int = 10 ** max(0, len(str(int(value))) - 2)
    return round(value / step) * step


def _duration(seconds: float) -> str:
    """Seconds, or minutes where there are some."""
    return f"{seconds:.0f} s" if seconds < _MINUTES else f"{seconds / 60:.0f} min"


def _architecture(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in found["architecture"].items():
        yield key.replace("_", " "), one_line(str(value))
    yield "parameters", f"{found['parameters']:,}"
    lattice = found["lattice"]
    yield (
        "on a lattice",
        f"{lattice['matrices']} of {lattice['of']} matrices, {rate(lattice['share'])} of their values;"
        f" {share(lattice['exact_fraction'])} of their blocks exact",
    )


def _near(weights: Iterable[Mapping[str, Any]]) -> str:
    """How far blocks are off whose scale becomes the nearest float16: those of numbers, those of codes that
    the checkpoint stores with their scales."""
    numbers = {weight["dtype"] in NUMBERS for weight in weights if weight["lattice"]}
    told = {True: "at most one bf16 step away", False: "scales at most half a float16 step away"}
    return ", or ".join(text for kind, text in told.items() if kind in numbers)


def _planned(name: str, target: Mapping[str, Any], near: str) -> Iterator[tuple[str, str]]:
    """What a target would make of the model, or why it cannot. ``near`` is what is said of rounded scales."""
    if "error" in target:
        yield "not possible", target["error"].removeprefix(f"{name}: ")
        return
    yield "weights", f"{amount(target['bytes'])}, {bits(target['bits_per_weight'])} bits per weight"
    for beside, held in target.get("parts", {}).items():
        yield beside, f"{amount(held['bytes'])} in {', '.join(held['files'])}"
    if told := _inexact(target["blocks"], target["scales"], near):
        yield "not exact", told
    for operator, types in target.get("operators", {}).items():
        yield operator, ", ".join(f"{count} {type_name}" for type_name, count in types.items())
    if "memory" in target:
        yield "memory", f"up to {amount(target['memory'])} to write it"
    if "kv_cache" in target:
        tokens, held = target["kv_cache"]["tokens"], target["kv_cache"]["bytes"]
        yield "KV cache", f"{amount(held)} for {tokens:,} tokens, allocated at once"
    yield from _accelerators(target.get("accelerators", ()))
    for warning in target["warnings"]:
        yield "warning", warning.removeprefix(f"{name}: ")


def _accelerators(found: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What compilers of other processors take of a plan; what they do not take the CPU computes."""
    for one in found:
        label = " ".join(filter(None, (one["vendor"], one["processor"])))
        if one["untried"] is not None:
            yield label, f"untried: {one['untried']}"
            continue
        told = []
        for taken, what in ((True, "takes"), (False, "leaves to the CPU")):
            cells = [
                ", ".join(filter(None, (f"{cell['operator']} {cell['type']}", cell["input"])))
                for cell in one["cells"]
                if cell["taken"] is taken
            ]
            if cells:
                told.append(f"{what} {'; '.join(cells)}")
        yield label, "; ".join(told)


def _inexact(blocks: Mapping[str, int], scales: str, near: str) -> str:
    """How many blocks will not be exact, and why; empty where all will."""
    told = {
        "scale_not_representable": f"have a scale that {scales} cannot hold: {near}",
        "codes_not_held": "have codes that no type holds, and become other numbers",
        "off_lattice": "lie on no lattice and are rounded to the nearest",
    }
    return "; ".join(f"{blocks[name]:,} blocks {why}" for name, why in told.items() if blocks[name])


Group = tuple[str, Sequence[Mapping[str, Any]]]


def _every(weights: Iterable[Mapping[str, Any]]) -> list[Group]:
    return [(one_line(weight["name"]), [weight]) for weight in weights]


def _kinds(weights: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Weights of the same kind in all layers; what is no matrix is one kind."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for weight in weights:
        name = _NUMBER.sub("", weight["name"]).removeprefix("layers.").removesuffix(".weight")
        found.setdefault(one_line(name) if weight["matrix"] else _NUMBERS, []).append(weight)
    return sorted(found.items(), key=lambda one: one[0] == _NUMBERS)


def _weights(groups: Sequence[Group], every_tensor: bool) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table of what the checkpoint has."""
    heading = ("weight" if every_tensor else "kind", "tensors", "shape", "dtype", "lattice", "exact")
    rows: list[tuple[str, ...]] = []
    for label, group in groups:
        matrix = group[0]["matrix"]
        shape = _shapes(group) if matrix or every_tensor else ""
        lattices = _joined(_lattice(weight) for weight in group) if matrix else ""
        dtypes = _joined(weight["dtype"] for weight in group)
        rows.append((label, str(len(group)), shape, dtypes, lattices, _exact(group)))
    return heading, rows


def _shapes(group: Sequence[Mapping[str, Any]]) -> str:
    """The most frequent shape, and whether there are others."""
    counted = Counter(" x ".join(map(str, weight["shape"])) for weight in group)
    shape = counted.most_common(1)[0][0]
    return f"{shape} …" if len(counted) > 1 else shape


def _exact(group: Sequence[Mapping[str, Any]]) -> str:
    """Share of exact blocks over all weights of a group."""
    blocks = sum(weight["blocks"] or 0 for weight in group)
    exact = sum((weight["exact_fraction"] or 0) * (weight["blocks"] or 0) for weight in group)
    return share(round(exact) / blocks) if blocks else ""


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _lattice(weight: Mapping[str, Any]) -> str:
    """Bits and block of a weight's lattice, and how its scales were made."""
    if weight["lattice"] is None:
        return "none"
    size, block = weight["lattice"]["bits"], weight["lattice"]["block"]
    return f"{size}-bit/{block or 'row'} {weight['scheme']}"


def _types(tensors: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for tensor in tensors:
        name = tensor["weight"]
        if name is not None and tensor["format"] not in found.get(name, "").split(" + "):
            found[name] = f"{found[name]} + {tensor['format']}" if name in found else tensor["format"]
    return found


def _print_left_out(left_out: list[Mapping[str, Any]]) -> None:
    if not left_out:
        return
    reasons: dict[str, list[int]] = {}
    for item in left_out:
        reasons.setdefault(item["reason"], []).append(item["bytes"])
    line()
    figures(
        ("left out (--json lists them by name)", "tensors", "size"),
        [(one_line(reason), str(len(sizes)), amount(sum(sizes))) for reason, sizes in reasons.items()],
    )
