"""Reports and inspections as tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from converter.names import one_line
from validation.report.prompts import chats_told
from validation.report.texts import (
    difference_lines,
    engine_text,
    options_told,
    share,
    target_verdict,
    way_told,
)


def size(count: float) -> str:
    """A number of bytes for people, in powers of ten as disks and downloads count."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def _console() -> Console:
    console = Console(highlight=False)
    # Piped output is for other programs: cells are not cut to a terminal that is not there.
    return console if console.is_terminal else Console(highlight=False, width=160)


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _row(label: str, entry: Mapping[str, Any], verdict: str) -> tuple[str, ...]:
    logits, weights = entry.get("logits") or {}, entry.get("weights") or {}
    return (
        escape(label),
        size(entry["bytes"]) if "bytes" in entry else "",
        _number(entry.get("bits_per_weight"), ".2f"),
        share(weights.get("exact_fraction")),
        _number(logits.get("mean_kld"), ".6f"),
        share(logits.get("same_top_p"), 2),
        _number(logits.get("ppl"), ".3f"),
        verdict,
    )


def print_report(report: Mapping[str, Any], output: Path | None) -> None:
    """One line per target (and baseline) with the figures that decide, what failed, and where all lies."""
    table = Table(title=f"{escape(report['model'])} ({report['source']['format']})", title_justify="left")
    for heading in (
        "artifact",
        "size",
        "bits/weight",
        "exact blocks",
        "mean KLD",
        "same top",
        "PPL",
        "gates",
    ):
        table.add_column(
            heading, justify="left" if heading in ("artifact", "gates") else "right", overflow="fold"
        )
    told_of = []
    for target, entry in report["targets"].items():
        table.add_row(*_row(entry["artifact"], entry, target_verdict(entry)))
        if baseline := entry.get("baseline"):
            table.add_row(*_row(f"  {baseline['name']} (baseline)", baseline, ""))
        told_of += [(target, gate) for gate in entry.get("gates", ()) if _is_told(gate)]
        for part, found in entry.get("parts", {}).items():
            told_of += [(f"{target}, {part}", gate) for gate in found.get("gates", ()) if _is_told(gate)]
    references = [
        (entry.get("reference", report["reference"]), _number(entry["logits"]["ppl_reference"], ".3f"))
        for entry in report["targets"].values()
        if entry.get("logits")
    ]
    told = dict.fromkeys(f"{reference['dtype']}, PPL {ppl}" for reference, ppl in references)
    if references:
        table.caption = f"reference: transformers, {'; '.join(told)}"
        table.caption_justify = "left"
    console = _console()
    console.print(table)
    for target, gate in told_of:
        console.print(f"{target}: {_gate(gate)}", soft_wrap=True)
    for target, entry in report["targets"].items():
        if (entry.get("options") or {}).get("from") == "artifact":  # no manifest said how it was converted
            console.print(f"{target}: options {escape(options_told(entry))}", soft_wrap=True)
        if entry.get("foreign"):  # of any other artifact a gate tells
            for line in difference_lines(entry):
                console.print(f"{target}: differs in {escape(line)}", soft_wrap=True)
        if "alternatives" in entry:
            console.print(f"{target}: {_tried(entry['alternatives'])}")
        if engine := (entry.get("runtime") or {}).get("engine"):
            console.print(f"{target}: {_engine(engine)}")
        if "error" in entry:
            console.print(f"{target}: could not be validated: {escape(entry['error'])}")
    if output is not None:
        details = ": report.html has the details" if references else ""
        console.print(f"written to {escape(one_line(str(output)))}{details}")


def _is_told(gate: Mapping[str, Any]) -> bool:
    """Whether the table is not enough: a gate that did not pass, or that a part of the model was run for."""
    return not gate["passed"] or (gate["name"] == "graph_kld" and "note" in gate)


def _gate(gate: Mapping[str, Any]) -> str:
    """What became of a gate, in one line."""
    note = escape(gate.get("note", ""))
    if gate["passed"]:
        return f"gate {gate['name']} passed ({note})"
    if gate["passed"] is None:
        without = "" if gate.get("allowed") else f" (--allow-unrun {gate['name']} goes on without it)"
        return f"gate {gate['name']} {note}{without}"
    told = f"gate {gate['name']} failed: {gate['value']} against a limit of {gate['limit']}"
    return f"{told} ({note})" if note else told


def _engine(engine: Mapping[str, Any]) -> str:
    """What the runtime's program for text made of the artifact, in one line."""
    tokens = engine["tokenizer"]
    told = f"{tokens['equal']} of {tokens['texts']} texts with the checkpoint's tokens"
    if prompts := engine.get("prompts"):
        told += f"; {chats_told(prompts)}"
    if engine.get("greedy"):
        told += f"; {engine_text(engine)}"
    return escape(f"{engine['name']} {engine['version']}: {told}")


def _tried(alternatives: Sequence[Mapping[str, Any]]) -> str:
    """The way to run the artifact that was chosen, then the others, each with its speed and verdict."""
    told = []
    for one in sorted(alternatives, key=lambda one: not one["chosen"]):
        speed = one.get("decode_tokens_per_second")
        figure = escape(one["error"]) if "error" in one else f"{speed:,.0f} tokens/s" if speed else "no speed"
        word = {True: "passed", False: "failed", None: "not judged"}[one["passed"]]
        kept = "kept" if one["chosen"] else word
        told.append(f"{way_told(one)}: {kept}, {figure}")
    return "; ".join(told)


def print_inspection(found: Mapping[str, Any]) -> None:
    """Architecture and sizes, then one line per tensor."""
    console = _console()
    console.print(_summary(found))
    names = [name for name, target in found["targets"].items() if "error" not in target]
    table = Table(title="Tensors", title_justify="left")
    for heading in ("weight", "shape", "stored", "lattice", "exact blocks", *names):
        table.add_column(heading, justify="right" if heading in ("shape", "exact blocks") else "left")
    types = {name: _types(found["targets"][name]["tensors"]) for name in names}
    for weight in found["weights"]:
        table.add_row(
            escape(weight["name"]),
            " x ".join(map(str, weight["shape"])),
            weight["dtype"],
            _lattice(weight),
            share(weight["exact_fraction"]),
            *(types[name].get(weight["name"], "-") for name in names),
        )
    console.print(table)
    _print_left_out(console, found["left_out"])


def _lattice(weight: Mapping[str, Any]) -> str:
    if weight["lattice"] is not None:
        return f"{weight['lattice']['bits']} bits / {weight['lattice']['block']}: {weight['scheme']}"
    return "none" if weight["matrix"] else "-"


def _types(tensors: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for tensor in tensors:
        name = tensor["weight"]
        if name is not None and tensor["format"] not in found.get(name, "").split(" + "):
            found[name] = f"{found[name]} + {tensor['format']}" if name in found else tensor["format"]
    return found


def _summary(found: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"{escape(found['model'])} ({found['source']['format']})",
        title_justify="left",
        show_header=False,
    )
    for key, value in found["architecture"].items():
        table.add_row(key.replace("_", " "), escape(str(value)))
    table.add_row("parameters", f"{found['parameters']:,}")
    lattice = found["lattice"]
    table.add_row(
        "on the lattice",
        f"{lattice['matrices']} of {lattice['of']} matrices, {share(lattice['share'], 2)} of their "
        f"values; {share(lattice['exact_fraction'])} of their blocks exact",
    )
    for name, target in found["targets"].items():
        if "error" in target:
            table.add_row(name, escape(target["error"].removeprefix(f"{name}: ")))
            continue
        table.add_row(
            f"planned {name}", f"{size(target['bytes'])}, {target['bits_per_weight']:.2f} bits per weight"
        )
        for part, held in target.get("parts", {}).items():
            table.add_row("", f"{part}: {size(held['bytes'])} in {escape(', '.join(held['files']))}")
        if told := _inexact(target["blocks"], target["scales"]):
            table.add_row("", told)
        for operator, types in target.get("operators", {}).items():
            held = ", ".join(f"{count} {type_name}" for type_name, count in types.items())
            table.add_row("", f"{operator}: {held}")
        if "memory" in target:
            table.add_row("", f"up to {size(target['memory'])} of memory to write it")
        if "kv_cache" in target:
            tokens, held = target["kv_cache"]["tokens"], target["kv_cache"]["bytes"]
            table.add_row("", f"KV cache: {size(held)} for {tokens:,} tokens, allocated at once")
        for warning in target["warnings"]:
            table.add_row("", escape(warning))
    return table


def _inexact(blocks: Mapping[str, int], scales: str) -> str:
    """How many blocks will not be exact, and why; empty where all will."""
    told = {
        "scale_not_representable": f"have a scale that {scales} cannot hold: at most one bf16 step away",
        "off_lattice": "lie on no lattice and are rounded to the nearest",
    }
    return "; ".join(f"{blocks[name]:,} blocks {why}" for name, why in told.items() if blocks[name])


def _print_left_out(console: Console, left_out: list[Mapping[str, Any]]) -> None:
    if not left_out:
        return
    reasons: dict[str, list[int]] = {}
    for item in left_out:
        reasons.setdefault(item["reason"], []).append(item["bytes"])
    table = Table(title="Left out (--json lists them by name)", title_justify="left")
    for heading in ("why", "tensors", "size"):
        table.add_column(heading, justify="left" if heading == "why" else "right")
    for reason, sizes in reasons.items():
        table.add_row(escape(reason), str(len(sizes)), size(sum(sizes)))
    console.print(table)
