"""The table of sources and targets: what is read, and the type in which each target holds it.

Nothing of it is written by hand: each form's checkpoint is of random weights, and each target plans it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from checkpoints.generate import write_checkpoint
from checkpoints.mobile import write_mobile
from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.checkpoint.stored import known_forms
from converter.checkpoint.weight import Weight
from targets.storing import is_matrix
from targets.target import find_target, known_targets

#: Widths of which some are multiples of 256 and some are not.
_WIDTHS: Final = {"hidden_size": 384, "hidden_size_per_layer_input": 256}
_HEADINGS: Final = {"gguf": "GGUF", "onnx": "ONNX", "litert": "LiteRT"}


def _unquantized(directory: Path) -> list[Path]:
    """On a lattice, and on none."""
    return [
        write_checkpoint(directory / scheme, "e2b", scheme, text=_WIDTHS) for scheme in ("max7", "latent")
    ]


def _mobile(directory: Path) -> list[Path]:
    return [write_mobile(write_checkpoint(directory / "source", "e2b", text=_WIDTHS), directory / "mobile")]


#: How a form's checkpoints are made.
_MADE: Final[Mapping[str, Callable[[Path], list[Path]]]] = {
    "bf16-lattice": _unquantized,
    "gemma-mobile": _mobile,
}


def _codes(weight: Weight) -> str:
    if not is_matrix(weight):
        return "norms, scalars"
    if weight.lattice is None:
        return "matrices on no lattice"
    return f"{weight.lattice.bits} bits, a scale {_scaled(weight.lattice.block)}"


def _scaled(block: int) -> str:
    return f"for {block} values" if block else "for a row"


def _held(checkpoint: Checkpoint) -> dict[str, dict[str, dict[str, None]]]:
    """Types in the order of their first use, by what a weight is and by target."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for name in known_targets():
        for tensor in find_target(name).plan(checkpoint, "model", {}).tensors:
            if tensor.weight is not None and not checkpoint.weights[tensor.weight].router:
                codes = _codes(checkpoint.weights[tensor.weight])
                found.setdefault(codes, {}).setdefault(name, {})[tensor.type] = None
    return found


def table() -> str:
    """The table in Markdown."""
    targets = [name for name in _HEADINGS if name in known_targets()]
    lines = [
        f"| checkpoint | its weights | {' | '.join(_HEADINGS[name] for name in targets)} |",
        "|---|---|" + "---|" * len(targets),
    ]
    for form in known_forms():
        kind = form.example.rpartition("-qat-")[2]
        with tempfile.TemporaryDirectory() as directory:
            held: dict[str, dict[str, dict[str, None]]] = {}
            for path in _MADE[form.name](Path(directory)):
                held = {**_held(open_checkpoint(path)), **held}
        for codes in sorted(held):
            types = (" or ".join(f"`{one}`" for one in held[codes][name]) for name in targets)
            lines.append(f"| `{kind}` | {codes} | {' | '.join(types)} |")
    return "\n".join(lines) + "\n"
