"""Reports made by hand: small, and with whatever a real one may have."""

from __future__ import annotations

from typing import Any

from validation.report.files import assemble

HOSTILE = "<script>alert(1)</script>|`*_[x](javascript:1)\n# \"head\" & 'tail'"
WEIGHT = "layers.0.mlp.up_proj.weight"


def logits(kld: list[float | None], **changes: Any) -> dict[str, Any]:
    """The block ``logits`` of an entry."""
    return {
        "positions": len(kld),
        "mean_kld": 0.001,
        "p999_kld": 0.004,
        "max_kld": 0.005,
        "same_top_p": 0.995,
        "rms_delta_p": 0.008,
        "max_abs": 0.2,
        "ppl": 12.5,
        "ppl_reference": 12.4,
        "faulty_positions": 0,
        "kld": kld,
        "same_top": [1] * len(kld),
    } | changes


def weights(exact: int, name: str = WEIGHT) -> dict[str, Any]:
    """The block ``weights`` of an entry, with ``exact`` of 100 blocks exact."""

    def tensor(name: str, blocks: int, exact: int, lattice: bool) -> dict[str, Any]:
        return {
            "name": name,
            "stored_as": "blk.0.ffn_up.weight",
            "format": "Q4_0",
            "lattice": lattice,
            "values": 3200,
            "blocks": blocks,
            "exact_blocks": exact,
            "exact_fraction": exact / blocks if blocks else 1.0,
            "equal_code_blocks": exact,
            "max_scale_error": 0.0,
            "max_ulp": 0 if exact == blocks else 3,
            "precision": "bf16",
            "nan_values": 0,
            "rms_error": 1e-3,
            "not_representable": 0,
            "off_lattice": 0,
            "wrong": blocks - exact,
        }

    return {
        "tensors": 1,
        "blocks": 100,
        "exact_blocks": exact,
        "exact_fraction": exact / 100,
        "not_representable_blocks": 0,
        "off_lattice_blocks": 0,
        "wrong_blocks": 100 - exact,
        "on_lattice_fraction": 1.0,
        "equal_code_blocks": exact,
        "max_scale_error": 0.0,
        "max_ulp": 0 if exact == 100 else 3,
        "max_ulp_by_precision": {"bf16": 0 if exact == 100 else 3},
        "nan_values": 0,
        "formats": {"Q4_0": 1},
        "off_lattice": {
            "tensors": 1,
            "values": 3200,
            "exact_values": 3200,
            "wrong_values": 0,
            "max_ulp": 0,
            "max_ulp_by_precision": {"bf16": 0},
            "nan_values": 0,
            "rms_error": 0.0,
        },
        "per_tensor": [tensor(name, 100, exact, True), tensor("norm.weight", 0, 0, False)],
    }


def gate(name: str, limit: float | None, value: float | None, passed: bool | None, **more: Any) -> Any:
    """A gate."""
    return {"name": name, "limit": limit, "value": value, "passed": passed, **more}


def entry(tensor: str = WEIGHT, **changes: Any) -> dict[str, Any]:
    """A target's entry."""
    return {
        "artifact": "gguf/model-q4_0.gguf",
        "bytes": 1234567,
        "bits_per_weight": 4.5,
        "passed": True,
        "weights": weights(100, tensor),
        "logits": logits([1e-3, 2e-3, 0.0, 5e-4]),
        "runtime": {"name": "llama.cpp", "version": "1.2", "mean_kld_same_weights": 9e-4},
        "gates": [gate("mean_kld", 0.01, 0.001, True)],
    } | changes


def baseline(exact: int = 3) -> dict[str, Any]:
    """What is measured beside an artifact."""
    return {"name": "naive-q4_0", "weights": weights(exact), "logits": logits([1.0] * 4, mean_kld=0.9)}


def report_of(targets: dict[str, Any], model: str = "gemma4-demo", **source: Any) -> dict[str, Any]:
    """A report of ``targets``."""
    reference = {
        "runtime": "transformers",
        "version": "5.23.0",
        "dtype": "float32",
        "positions": 4,
        "sequences": [{"kind": "prose", "positions": 3}, {"kind": "chat", "positions": 1}],
    }
    origin = {"repo": None, "revision": None, "path": model, "format": "bf16-lattice"} | source
    return assemble(model, origin, reference, targets)


def report(model: str = "gemma4-demo", tensor: str = WEIGHT, **changes: Any) -> dict[str, Any]:
    """A report of one target."""
    return report_of({"gguf": entry(tensor, **changes)}, model)
