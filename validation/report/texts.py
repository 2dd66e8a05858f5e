"""A report's figures as texts for people: the rows that report.md and report.html both show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from converter.system.amounts import amount
from validation.report.figures import bits, distance, divergence, number, perplexity, rate, share
from validation.report.prompts import other_tokens, prompts_told, template_told

#: Metrics of the ``logits`` block in the order of the tables: key, label, form. Perplexity stands apart.
METRICS = (
    ("mean_kld", "mean KLD", divergence),
    ("p999_kld", "99.9 % KLD", divergence),
    ("max_kld", "maximum KLD", divergence),
    ("same_top_p", "same top token", rate),
    ("rms_delta_p", "RMS Δp", rate),
    ("max_abs", "largest logit difference", number),
)
#: Forms of gates' values; others are numbers.
_FORMS = {
    **dict.fromkeys(("exact_fraction", "exact_values", "on_lattice_fraction"), share),
    **dict.fromkeys(("engine_same_tokens", "engine_same_prompts", "engine_same_ends", "same_top_p"), rate),
    **dict.fromkeys(("mean_kld", "graph_kld", "decode_mean_kld"), divergence),
}
#: What headings call ``max_ulp``; the cells name the precision whose steps are counted.
ULP = "largest error"
#: Rows about checkpoints that store codes and scales.
CODES, SCALES = "blocks with the checkpoint's codes", "largest error of a scale"
#: Rows about static grids of activations, by the key of the ``activation_grids`` block.
GRIDS = {
    "mean_kld": "mean KLD of the activation grids",
    "mean_kld_artifact": "mean KLD with activation grids",
}
#: Blocks that are not exact, by their class.
_CLASSES = (
    ("not_representable_blocks", "blocks whose scale the type cannot hold"),
    ("off_lattice_blocks", "blocks on no lattice in the checkpoint"),
    ("wrong_blocks", "wrong blocks"),
)
#: Characters of a continuation that a table shows on either side of the first difference.
_SHOWN = 48
#: Differences from what is built that are shown; the report's JSON has more of them.
_DIFFERENCES = 10


def gate_value(name: str, value: Any) -> str:
    """A gate's limit or value as the tables show it."""
    if value is None:
        return "none"
    return _FORMS.get(name, number)(value)


def verdict(passed: bool | None) -> str:
    """One word for a gate."""
    return {True: "passed", False: "FAILED", None: "did not run"}[passed]


def target_verdict(entry: Mapping[str, Any]) -> str:
    """A word or two for a target: what is not wholly proven is not called proven."""
    passed = entry.get("passed")
    if passed is None:
        return "not fully proven" if entry.get("gates") else "not validated"
    return verdict(passed)


def report_verdict(report: Mapping[str, Any]) -> str:
    """A word or two for a whole report: proven, if every target is."""
    found = [entry.get("passed") for entry in report["targets"].values()]
    if False in found:
        return verdict(False)
    if None not in found:
        return "proven"
    judged = any(entry.get("gates") for entry in report["targets"].values())
    return "not fully proven" if judged else "not validated"


def comparison(entry: Mapping[str, Any]) -> list[tuple[str, str, str | None]]:
    """Rows (label, artifact, baseline or ``None``) of the table that sets both side by side."""
    baseline = entry.get("baseline")
    weights, logits = entry.get("weights") or {}, entry.get("logits") or {}
    other_weights = (baseline or {}).get("weights") or {}
    other_logits = (baseline or {}).get("logits") or {}
    rows: list[tuple[str, str, str | None]] = []

    def row(label: str, ours: str, theirs: str) -> None:
        rows.append((label, ours, theirs if baseline else None))

    if weights:
        row("exact blocks", share(weights["exact_fraction"]), share(other_weights.get("exact_fraction")))
        for key, label in _CLASSES:
            if weights.get(key) or other_weights.get(key):
                row(label, f"{weights.get(key, 0):,}", f"{other_weights.get(key, 0):,}")
        row(
            f"{ULP} against the checkpoint's",
            _largest_errors(weights),
            _largest_errors(other_weights) if other_weights else "-",
        )
    if packed(weights):
        row(CODES, codes_told(weights), codes_told(other_weights) if other_weights else "-")
        row(SCALES, scales_told(weights), scales_told(other_weights) if other_weights else "-")
    for key, label, form in METRICS if logits else ():
        row(label, form(logits[key]), form(other_logits[key]) if other_logits else "-")
    if logits:
        row(
            f"perplexity (reference: {perplexity(logits['ppl_reference'])})",
            _perplexity(logits),
            _perplexity(other_logits) if other_logits else "-",
        )
    for key, label in GRIDS.items() if entry.get("activation_grids") else ():
        row(label, divergence(entry["activation_grids"][key]), "-")
    return rows


def packed(weights: Mapping[str, Any]) -> bool:
    """Whether the checkpoint stores codes and scales, which are then worth telling apart."""
    return any(one["lattice"] and one.get("precision") == "f32" for one in weights.get("per_tensor", ()))


def codes_told(weights: Mapping[str, Any]) -> str:
    """The share of blocks with the checkpoint's codes."""
    return share(weights["equal_code_blocks"] / weights["blocks"] if weights["blocks"] else None)


def scales_told(weights: Mapping[str, Any]) -> str:
    """The largest relative error of the scales of these blocks, in percent."""
    return f"{100 * weights['max_scale_error']:.2g} %"


def ulps(count: int, tensor: Mapping[str, Any]) -> str:
    """A distance in steps of the precision in which a tensor is compared, which older reports do not name."""
    return " ".join(filter(None, (str(count), tensor.get("precision"), "ulp")))


def _largest_errors(weights: Mapping[str, Any]) -> str:
    """The largest distance of each precision."""
    found = weights.get("max_ulp_by_precision") or {"": weights["max_ulp"]}
    return ", ".join(ulps(count, {"precision": precision}) for precision, count in found.items())


def _perplexity(logits: Mapping[str, Any]) -> str:
    return f"{distance(logits['ppl'], logits['ppl_reference'])} ({perplexity(logits['ppl'])})"


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the report is about: source and reference."""
    source, reference = report["source"], report.get("reference")
    origin = source.get("repo") or source.get("path") or "-"
    found = _made_by(report)
    found.append(("source", f"{origin}@{source['revision']}" if source.get("revision") else str(origin)))
    if source.get("date"):
        found.append(("source commit of", str(source["date"])))
    found.append(("stored as", str(source.get("stored_as") or source.get("format", "-"))))
    if report.get("left_out"):
        found.append(("left out", left_out_text(report["left_out"])))
    return [*found, *_reference_facts(reference)]


def _made_by(block: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tool and command of a report, or of a target's entry that another run made."""
    found = []
    if tool := block.get("tool"):
        found.append(("made by", f"{tool['name']} {tool['version']}"))
    if block.get("command"):
        found.append(("command", str(block["command"])))
    return found


def left_out_text(parts: Iterable[Mapping[str, Any]]) -> str:
    """What is not converted, with tensors and bytes of each part."""
    return ", ".join(
        f"{one['part']} ({one['tensors']} tensor{'s' * (one['tensors'] != 1)}, {amount(one['bytes'])})"
        for one in parts
    )


def _reference_facts(reference: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    found = []
    if reference:
        kinds = dict.fromkeys(sequence["kind"] for sequence in reference.get("sequences", ()))
        about = f" of {reference['text_name']}" if reference.get("text_name") else ""
        about += f" ({', '.join(kinds)})" if kinds else ""
        told = f"{reference['runtime']} {reference['version']}, {reference['dtype']}"
        told += (
            ", without the static grids of activations (with them for an artifact that applies them)"
            if reference.get("activation_grids") is False
            else ""
        )
        found.append(("reference", told))
        found.append(("text", f"{reference['positions']} positions{about}"))
    return found


def target_facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a target's section opens with: file, size, runtime, and which part of the error is whose."""
    found = []
    if "artifact" in entry:
        found.append(("artifact", str(entry["artifact"])))
    found += _made_by(entry)  # of a target that another run made or proved
    found += _reference_facts(entry.get("reference"))
    if entry.get("error"):
        found.append(("could not be validated", str(entry["error"])))
    if "bytes" in entry:
        found.append(("files", f"{amount(entry['bytes'])} ({entry['bytes']:,} bytes)"))
    if entry.get("bits_per_weight") is not None:
        held = f"{amount(entry['weight_bytes'])}, " if "weight_bytes" in entry else ""
        found.append(("weights in them", f"{held}{bits(entry['bits_per_weight'])} bits per weight"))
    for runtime_name, version in entry.get("requires", {}).items():
        found.append(("runs in", f"{runtime_name} {version} and newer"))
    if cache := entry.get("kv_cache"):
        told = f"{cache['bytes'] / 1e6:,.0f} MB for {cache['tokens']:,} tokens, before the first one"
        found.append(("keys and values", told))
    if runtime := entry.get("runtime"):
        found.append(("runtime", f"{runtime['name']} {runtime['version']}"))
        own = runtime.get("mean_kld_same_weights")
        if own is not None:
            found.append(
                ("runtime alone", f"mean KLD {divergence(own)} against float32 logits of its own weights")
            )
        if runtime.get("note"):
            found.append(("runtime alone", str(runtime["note"])))
        found += _grid_facts(entry)
        found += _graph_facts(runtime.get("graph"))
        found += _runtime_facts(runtime)
        found += _engine_facts(runtime.get("engine"))
    found += _built_facts(entry)
    if weights := entry.get("weights"):
        others = weights["off_lattice"]
        found.append(
            (
                "weights",
                f"{weights['tensors']} on the lattice, {weights['exact_blocks']:,} of {weights['blocks']:,}"
                f" blocks exact{_types(weights)}; {others['tensors']} others, of which none is off by more"
                f" than {number(others['rms_error'])} of itself (relative RMS error)",
            )
        )
    found += _part_facts(entry)
    found += [("warning", str(warning)) for warning in entry.get("warnings", ())]
    return found


def _part_facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parts beside the text model, and what this target leaves out of them though another does not."""
    found = []
    for name, part in entry.get("parts", {}).items():
        told = ", ".join(part["files"])
        if "bytes" in part:  # else the files lie elsewhere
            told += f", {part['bytes']:,} bytes"
        if weights := part.get("weights"):
            others = weights["off_lattice"]
            told += f"; {weights['tensors']} tensors on the lattice, {weights['exact_blocks']:,} of"
            told += f" {weights['blocks']:,} blocks exact; {others['tensors']} others,"
            told += f" {others['exact_values']:,} of {others['values']:,} values exact"
        failed = [gate["name"] for gate in part.get("gates", ()) if gate["passed"] is False]
        found.append((name, f"{told}; FAILED: {', '.join(failed)}" if failed else told))
    if entry.get("left_out"):
        found.append(("left out", left_out_text(entry["left_out"])))
    return found


def _grid_facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the checkpoint's static grids of activations do, and what the weights alone cost beside them."""
    grids = entry.get("activation_grids")
    if grids is None:
        return []
    found = []
    own = entry["runtime"].get("mean_kld_own_weights")
    if own is not None:
        told = f"mean KLD {divergence(own)} between float32 logits of its own weights and the reference's"
        found.append(("weights alone", told))
    told = f"{grids['modules']} modules of the checkpoint round to them, which "
    told += (
        "the artifact and its reference do too"
        if grids["applied"]
        else "the runtime and the reference do not"
    )
    told += f": that alone is a mean KLD of {divergence(grids['mean_kld'])}, with the same top token at"
    told += f" {rate(grids['same_top_p'])} of the positions; the artifact is"
    told += f" {divergence(grids['mean_kld_artifact'])} from the reference with grids"
    return [*found, ("activation grids", told)]


def _graph_facts(graph: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What the runtime gave without rounding."""
    if graph is None:
        return []
    told = f"mean KLD {divergence(graph['mean_kld'])} against float32 logits of its own weights, run as "
    told += str(graph["form"])
    if graph["mean_kld_beyond_window"] is not None:
        told += f"; beyond the sliding window {divergence(graph['mean_kld_beyond_window'])}"
    return [("without rounding", told)]


def _built_facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the artifact stands beside what the converter makes of the checkpoint, and by which options."""
    found = []
    if entry.get("options"):
        found.append(("options", options_told(entry)))
    if differences := entry.get("differences"):
        deciding, descriptive = differences["deciding"], differences["descriptive"]
        told = f"{deciding} deciding and {descriptive} descriptive differences from what is built"
        foreign = "; another tool's artifact: not judged" if entry.get("foreign") else ""
        found.append(("as built", ("everything" if not deciding + descriptive else told) + foreign))
        found += [("differs", line) for line in difference_lines(entry)]
    return found


def options_told(entry: Mapping[str, Any]) -> str:
    """By which options a target's artifact is taken to be converted, and what tells them."""
    options = entry["options"]
    values = ", ".join(f"{key} {value}" for key, value in options.items() if key != "from")
    return f"known from the {options['from']}: {values}"


def difference_lines(entry: Mapping[str, Any]) -> list[str]:
    """The first differences of a target's artifact from what is built, a line each, and how many more there
    are. None where nothing was compared."""
    differences = entry.get("differences")
    if differences is None:
        return []
    shown = differences["listed"][:_DIFFERENCES]
    lines = [
        f"{one['where']}: expected {one['expected']}, found {one['found']}"
        + ("" if one["deciding"] else " (descriptive)")
        for one in shown
    ]
    more = differences["deciding"] + differences["descriptive"] - len(shown)
    return [*lines, f"and {more:,} more"] if more else lines


def differences(entry: Mapping[str, Any], limit: int = 40) -> list[tuple[str, ...]]:
    """Heading and rows of the table of differences from what is built. Empty where there is none."""
    listed = (entry.get("differences") or {}).get("listed") or []
    rows = [
        (one["where"], one["expected"], one["found"], "yes" if one["deciding"] else "no")
        for one in listed[:limit]
    ]
    return [("where", "expected", "found", "decides something"), *rows] if rows else []


def inexact_blocks(entry: Mapping[str, Any], limit: int = 40) -> list[tuple[str, ...]]:
    """Heading and rows of the table of single blocks that are not exact, wrong ones first. Empty where all
    are."""
    tensors = (entry.get("weights") or {}).get("per_tensor", ())
    blocks = [
        (tensor["name"], tensor, block) for tensor in tensors for block in tensor.get("inexact_blocks", ())
    ]
    blocks.sort(key=lambda one: one[2]["kind"] != "wrong")
    rows = [
        (name, str(block["row"]), str(block["index"]), ulps(block["ulp"], tensor), block["kind"])
        for name, tensor, block in blocks[:limit]
    ]
    return [("tensor", "row", "block", ULP, "class"), *rows] if rows else []


def _types(weights: Mapping[str, Any]) -> str:
    """How many tensors are stored in which way, where there are several ways."""
    types = weights.get("formats") or {}
    told = ", ".join(f"{count} as {type_name}" for type_name, count in types.items())
    return f" ({told})" if len(types) > 1 else ""


def _runtime_facts(runtime: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the artifact was run, as far as the runtime says."""
    found = []
    if runtime.get("provider"):
        level = runtime.get("accuracy_level")
        accuracy = "" if level is None else f", accuracy level {level}"
        if level is None and runtime.get("rounded_activations"):
            accuracy = ", activations rounded to int8"
        threads = f", {runtime['threads']} threads" if runtime.get("threads") else ""
        peak = runtime.get("peak_bytes")
        memory = f", at most {peak / 1e6:,.0f} MB of memory" if peak else ""
        found.append(("run with", f"provider {runtime['provider']}{accuracy}{threads}{memory}"))
    if signatures := runtime.get("signatures"):
        context = runtime["context_length"]
        found.append(("signatures", f"{', '.join(map(str, signatures))}; context of {context:,} tokens"))
    if decode := runtime.get("decode"):
        other = "behind a prefill" if signatures else "computed at once"
        found.append(
            (
                "decoding",
                f"{number(decode['tokens_per_second'])} tokens per second; mean KLD"
                f" {divergence(decode['mean_kld'])}, largest {divergence(decode['max_kld'])}, against the"
                f" same {decode['positions']} positions {other}",
            )
        )
    return found


def _engine_facts(engine: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What the runtime's program for text made of the artifact."""
    if engine is None:
        return []
    found = [("engine", f"{engine['name']} {engine['version']}"), ("its tokens", _tokens_told(engine))]
    if prompts := engine.get("prompts"):
        found.append(("its prompts", prompts_told(prompts)))
        if template := prompts.get("template"):
            found.append(("its template", template_told(template)))
    if ends := engine.get("ends"):
        found.append(("its ends", _ends_told(ends)))
    if engine.get("greedy"):
        found.append(("its text", engine_text(engine)))
    if scores := engine.get("scores"):
        found.append(
            (
                "its scores",
                f"log-probabilities of {scores['tokens']} tokens are off by {number(scores['mean_abs'])} nats"
                f" on average, {number(scores['max_abs'])} at most",
            )
        )
    return found


def _tokens_told(engine: Mapping[str, Any]) -> str:
    tokens = engine["tokenizer"]
    told = f"{tokens['equal']} of {tokens['texts']} texts have the checkpoint's tokens"
    if other := tokens["difference"]:
        told += f"; one with {visible(other['text'])} has {other_tokens(other)}"
    for one in tokens.get("runtime_limits", ()):
        told += f"; {engine['name']} by itself: one with {visible(one['text'])} has {other_tokens(one)}"
    if hidden := tokens.get("hidden"):
        told += f"; {hidden['tokens']} special tokens are hidden"
        if wrong := hidden["wrong"]:
            told += f", wrong: {', '.join(visible(one['text']) for one in wrong[:_DIFFERENCES])}"
    return told


def _ends_told(ends: Mapping[str, Any]) -> str:
    def listed(tokens: Iterable[Mapping[str, Any]]) -> str:
        return ", ".join(visible(one["text"] or str(one["id"])) for one in tokens)

    same = len(set(ends["checkpoint"]) & set(ends["engine"]))
    told = f"{same} of {len(ends['checkpoint'])} tokens that end an answer are the checkpoint's"
    for key, what in (
        ("missing", "missing"),
        ("extra", "not the checkpoint's"),
        ("lost", "no place for"),
        ("by_rule", "always"),
    ):
        if ends[key]:
            told += f"; {what}: {listed(ends[key])}"
    return told


def engine_text(engine: Mapping[str, Any]) -> str:
    """How far the engine says what the reference says, and what the first difference costs."""
    greedy = engine["greedy"]
    same = greedy["prompts"] - greedy["diverging"]
    told = (
        f"{same} of {greedy['prompts']} greedy continuations are the reference's,"
        f" {greedy['equal_characters']} of {greedy['characters']} characters"
    )
    if not greedy["diverging"]:
        return told
    gap = number(greedy["largest_gap"])
    return f"{told}; where one is not, the reference holds the two tokens at most {gap} nats apart"


def continuations(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Heading and rows of the table of the engine's text beside the reference's, a row for each prompt; empty
    where no engine ran."""
    engine = (entry.get("runtime") or {}).get("engine")
    if engine is None or not (engine.get("greedy") or {}).get("texts"):
        return []
    rows: list[tuple[str, ...]] = [
        ("after", "both say", "then the reference", f"then {engine['name']}", "first other token")
    ]
    for one in engine["greedy"]["texts"]:
        at, other = one["equal_characters"], one["divergence"]
        common = one["reference"][:at]
        rest, theirs = (
            (one["reference"][at : at + _SHOWN], one["engine"][at : at + _SHOWN]) if other else ("", "")
        )
        rows.append(
            (
                f"{one['kind']}: {visible(one['prompt'], last=True)}",
                visible(common, last=True),
                visible(rest) if rest else "-",
                visible(theirs) if theirs else "-",
                _first_other(other) if other else "none",
            )
        )
    return rows


def _first_other(divergence: Mapping[str, Any]) -> str:
    gap = divergence["gap"]
    apart = "the texts do not tell how far apart" if gap is None else f"{number(gap)} nats apart"
    return (
        f"token {divergence['token'] + 1}, character {divergence['character'] + 1}:"
        f" {visible(divergence['reference'])} and {visible(divergence['engine'])}, {apart}"
    )


def visible(text: str, *, last: bool = False) -> str:
    """A stretch of text as one line: its beginning, or with ``last`` its end, in quotation marks."""
    cut = len(text) > _SHOWN
    shown = "".join(map(_visible, text[-_SHOWN:] if last else text[:_SHOWN]))
    return f"“{'…' if cut and last else ''}{shown}{'…' if cut and not last else ''}”"


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return {"\n": "↵", "\t": "⇥"}.get(character) or f"\\u{ord(character):04x}"


#: Figures of an alternative in the order of the table: key, label, form.
_ALTERNATIVE = (
    ("decode_tokens_per_second", "decoded tokens per second", number),
    ("mean_kld", "mean KLD", divergence),
    ("same_top_p", "same top token", rate),
    ("max_abs", "largest logit difference", number),
    ("decode_mean_kld", "mean KLD of decoding", divergence),
)


def alternatives(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Heading and rows of the table that sets the ways to run the artifact side by side, a column each. Empty
    unless several were measured."""
    tried = entry.get("alternatives") or []
    heading, verdicts = ["figure"], ["gates"]
    for one in tried:
        name = way_told(one)
        heading.append(f"{name} (chosen)" if one["chosen"] else name)
        failed = [gate["name"] for gate in one.get("gates", ()) if not gate["passed"]]
        why = one.get("error") or ", ".join(failed)
        verdicts.append(verdict(one["passed"]) + (f": {why}" if why else ""))
    rows = [
        (label, *("-" if "error" in one else form(one[key]) for one in tried))
        for key, label, form in _ALTERNATIVE
    ]
    return [tuple(heading), *rows, tuple(verdicts)] if tried else []


def way_told(alternative: Mapping[str, Any]) -> str:
    """In which way an artifact was run: the option and its value."""
    known = {"chosen", "passed", "gates", "error", *(key for key, _, _ in _ALTERNATIVE)}
    choice = {key: value for key, value in alternative.items() if key not in known}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in choice.items())


def least_exact(entry: Mapping[str, Any], limit: int = 20) -> list[tuple[str, ...]]:
    """Cells of the lattice tensors that are not wholly exact, worst first, at most ``limit``."""
    tensors = (entry.get("weights") or {}).get("per_tensor", ())
    inexact = [
        tensor for tensor in tensors if tensor["lattice"] and tensor["exact_blocks"] < tensor["blocks"]
    ]
    inexact.sort(key=lambda tensor: (tensor["exact_fraction"], tensor["name"]))
    return [
        (tensor["name"], tensor["format"], share(tensor["exact_fraction"]), ulps(tensor["max_ulp"], tensor))
        for tensor in inexact[:limit]
    ]
