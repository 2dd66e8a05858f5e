"""The figures of all targets side by side: the same rows on the terminal, in report.md and in report.html."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from converter.system.amounts import amount
from validation.report.figures import bits, distance, divergence, perplexity, rate, share
from validation.report.texts import CODES, GRIDS, SCALES, codes_told, packed, scales_told, target_verdict

#: Figures of an artifact and of its baseline: label, block of the entry, its key, form.
_MEASURED: Final = (
    ("exact blocks", "weights", "exact_fraction", share),
    ("mean KLD", "logits", "mean_kld", divergence),
    ("same top token", "logits", "same_top_p", rate),
)


def side_by_side(targets: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows of a label and a cell for each target; those of the baseline are indented and come last."""
    entries = list(targets.values())
    yield ("verdict", *map(target_verdict, entries))
    if any("bytes" in entry for entry in entries):
        for label, key in (("files", "bytes"), ("weights in them", "weight_bytes")):
            yield (label, *(amount(one[key]) if key in one else "-" for one in entries))
        yield ("bits per weight", *(bits(entry.get("bits_per_weight")) for entry in entries))
    yield from _recovered(entries)
    yield from _codes(entries)
    yield from _figures(entries, "")
    grids = [entry.get("activation_grids") for entry in entries]
    for key, label in GRIDS.items() if any(grids) else ():
        yield (label, *(divergence(one[key]) if one else "-" for one in grids))
    baselines = [entry.get("baseline") or {} for entry in entries]
    if name := next((one["name"] for one in baselines if one), None):
        yield (f"baseline {name}", *("" for _ in entries))
        yield from _figures(baselines, "  ")


def _recovered(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """What was verified in writing, of targets that were not read back. Blocks that are not exact have a row
    where there are any."""
    found = [entry.get("recovery") for entry in entries]
    if not any(found):
        return
    for label, key, of in (
        ("matrices as trained codes", "coded_matrices", "matrices"),
        ("blocks recovered exactly", "exact_blocks", "blocks"),
    ):
        yield (label, *(f"{one[key]:,} of {one[of]:,}" if one else "-" for one in found))
    for label, key in (
        ("scales rounded", "not_representable_blocks"),
        ("blocks on no lattice", "off_lattice_blocks"),
    ):
        if any(one and one[key] for one in found):
            yield (label, *(f"{one[key]:,}" if one else "-" for one in found))


def _codes(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Codes and scales apart, of checkpoints that store both."""
    found = [entry.get("weights") or {} for entry in entries]
    if any(map(packed, found)):
        for label, told in ((CODES, codes_told), (SCALES, scales_told)):
            yield (label, *(told(one) if one else "-" for one in found))


def _figures(entries: Sequence[Mapping[str, Any]], indent: str) -> Iterator[tuple[str, ...]]:
    for label, block, key, form in _MEASURED:
        blocks = [entry.get(block) or {} for entry in entries]
        if any(blocks):
            yield (f"{indent}{label}", *(form(one[key]) if key in one else "-" for one in blocks))
    logits = [entry.get("logits") or {} for entry in entries]
    if any(logits):
        yield (
            f"{indent}perplexity",
            *(distance(one["ppl"], one["ppl_reference"]) if one else "-" for one in logits),
        )


def measured_against(report: Mapping[str, Any]) -> str:
    """What the figures are measured against, in one line; empty where nothing was measured."""
    told: dict[str, None] = {}
    for entry in report["targets"].values():
        if logits := entry.get("logits"):
            reference = entry.get("reference", report["reference"])
            grids = ""
            if found := entry.get("activation_grids"):
                grids = f" {'with' if found['applied'] else 'without'} static grids"
            told[
                f"transformers in {reference['dtype']}{grids}, whose perplexity is"
                f" {perplexity(logits['ppl_reference'])} ({logits['positions']} positions)"
            ] = None
    return f"against {'; '.join(told)}" if told else ""


def recovery_told(report: Mapping[str, Any]) -> str:
    """How the recovered blocks were counted, and that this is no proof; empty where all was read back."""
    entries = report["targets"].values()
    if not any(entry.get("recovery") for entry in entries):
        return ""
    told = "Blocks were counted as they were written: exact are those whose codes and scale give the"
    told += " checkpoint's values bit for bit"
    unrun = all(entry.get("passed") is None for entry in entries)
    return f"{told}. {'Nothing was read back or run.' if unrun else 'Nothing was read back for it.'}"
