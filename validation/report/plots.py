"""Which plots a report has: each once, with a panel for every target that has something to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from validation.report.svg import Panel, Series, exactness_by_tensor, kld_by_position, kld_distribution

#: Gates whose limits are divergences over the positions, and what of them each limits.
_LIMITED: Final = {"mean_kld": "mean", "p999_kld": "99.9 %", "max_kld": "maximum"}


def plots(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Captions and SVG texts. Exactness is plotted where a tensor of an artifact is not exact."""
    measured = {name: entry for name, entry in report["targets"].items() if entry.get("logits")}
    if measured:
        panels = [_kld(name, entry, report.get("reference")) for name, entry in measured.items()]
        yield (
            "Divergence from the reference at every position: a dot for each of the artifact's, a cross for "
            "each of the baseline's. Sequences of the text are shaded in turn.",
            kld_by_position(panels),
        )
        yield (
            "Share of positions at or below a divergence: a whole line for the artifact, a broken one for "
            "the baseline. The mark on a line is its mean, which the gate mean_kld limits.",
            kld_distribution(panels),
        )
    inexact = {name: entry for name, entry in report["targets"].items() if _is_inexact(entry)}
    if inexact:
        yield (
            "Share of blocks that reproduce the checkpoint bit for bit, for every tensor on the lattice.",
            exactness_by_tensor([_exactness(name, entry) for name, entry in inexact.items()]),
        )


def _kld(name: str, entry: Mapping[str, Any], reference: Mapping[str, Any] | None) -> Panel:
    sequences = (entry.get("reference") or reference or {}).get("sequences", ())
    baseline = entry.get("baseline") or {}
    limits = {gate["name"]: gate["limit"] for gate in entry.get("gates", ()) if gate["limit"] is not None}
    return Panel(
        name,
        Series("artifact", entry["logits"]["kld"]),
        Series(str(baseline["name"]), baseline["logits"]["kld"]) if baseline.get("logits") else None,
        tuple((what, limits[gate]) for gate, what in _LIMITED.items() if gate in limits),
        tuple((one["kind"], one["positions"]) for one in sequences),
    )


def _is_inexact(entry: Mapping[str, Any]) -> bool:
    tensors = (entry.get("weights") or {}).get("per_tensor", ())
    return any(tensor["lattice"] and tensor["exact_fraction"] < 1 for tensor in tensors)


def _exactness(name: str, entry: Mapping[str, Any]) -> Panel:
    baseline = entry.get("baseline") or {}
    theirs = _shares(baseline) if baseline.get("weights") else None
    artifact = Series("artifact", _shares(entry))
    return Panel(name, artifact, None if theirs is None else Series(str(baseline["name"]), theirs))


def _shares(entry: Mapping[str, Any]) -> list[float | None]:
    tensors = entry["weights"]["per_tensor"]
    return [tensor["exact_fraction"] for tensor in tensors if tensor["lattice"]]
