"""Blocks of a target's entry in report.json: what was measured of its weights and its logits."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from validation.exactness import TensorExactness, WeightExactness, largest_ulps
from validation.metrics import LogitMetrics


def weights_entry(weights: WeightExactness) -> dict[str, Any]:
    """The ``weights`` block of the report: totals over lattice weights, the others apart, every tensor."""
    lattice, others = weights.lattice, weights.off_lattice
    return {
        "tensors": len(lattice),
        "blocks": sum(tensor.blocks for tensor in lattice),
        "exact_blocks": sum(tensor.exact_blocks for tensor in lattice),
        "exact_fraction": weights.exact_fraction,
        "not_representable_blocks": weights.count("not_representable"),
        "off_lattice_blocks": weights.count("off_lattice"),
        "wrong_blocks": weights.count("wrong"),
        "on_lattice_fraction": weights.on_lattice_fraction,
        "equal_code_blocks": weights.count("equal_codes"),
        "max_scale_error": max((tensor.max_scale_error for tensor in lattice), default=0.0),
        "max_ulp": max((tensor.max_ulp for tensor in lattice), default=0),
        "max_ulp_by_precision": largest_ulps(lattice),
        "nan_values": weights.count("nan_values"),
        "formats": dict(sorted(Counter(tensor.type for tensor in lattice).items())),
        "off_lattice": {
            "tensors": len(others),
            "values": sum(tensor.values for tensor in others),
            "exact_values": sum(tensor.exact_values for tensor in others),
            "wrong_values": sum(tensor.wrong for tensor in others),
            "max_ulp": max((tensor.max_ulp for tensor in others), default=0),
            "max_ulp_by_precision": largest_ulps(others),
            "nan_values": sum(tensor.nan_values for tensor in others),
            "rms_error": max((tensor.rms_error for tensor in others), default=0.0),
        },
        "per_tensor": [_tensor_entry(tensor) for tensor in weights.tensors],
    }


def _tensor_entry(tensor: TensorExactness) -> dict[str, Any]:
    return {
        "name": tensor.weight,
        "stored_as": tensor.stored_as,
        "format": tensor.type,
        "lattice": tensor.block is not None,
        "values": tensor.values,
        "blocks": tensor.blocks,
        "exact_blocks": tensor.exact_blocks,
        "exact_fraction": tensor.exact_fraction,
        "equal_code_blocks": tensor.equal_codes,
        "max_scale_error": tensor.max_scale_error,
        "max_ulp": tensor.max_ulp,
        "precision": tensor.precision,
        "nan_values": tensor.nan_values,
        "rms_error": number(tensor.rms_error),
        "not_representable": tensor.not_representable,
        "off_lattice": tensor.off_lattice,
        "wrong": tensor.wrong,
        **({"inexact_blocks": [asdict(block) for block in tensor.named]} if tensor.named else {}),
    }


def logits_entry(metrics: LogitMetrics) -> dict[str, Any]:
    """The ``logits`` block of the report, with the divergence of every position to six digits."""
    names = (
        "mean_kld",
        "p999_kld",
        "max_kld",
        "same_top_p",
        "rms_delta_p",
        "max_abs",
        "ppl",
        "ppl_reference",
    )
    return {
        "positions": metrics.positions,
        **{name: number(getattr(metrics, name)) for name in names},
        "faulty_positions": metrics.faulty,
        "kld": [number(float(f"{value:.6g}")) for value in metrics.kld],
        "same_top": [int(same) for same in metrics.same_top],
    }


def number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
