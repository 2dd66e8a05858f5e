"""How the ONNX artifact holds a weight: which type, under which name, in how many bytes.

A matrix on the 4-bit lattice is held as the codes and scales of ``MatMulNBits`` and
``GatherBlockQuantized`` (``INT4``); ``INT8`` is the same with 8 bits, for matrices on no lattice.
``FLOAT``, ``FLOAT16`` and ``BFLOAT16`` are ONNX's own types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from converter.checkpoint.stored.unquantized import sampled_ranges
from converter.checkpoint.weight import NEEDS_F32_SCALE, LatticeFormat, Weight
from converter.errors import UsageError
from targets.storing import off_lattice_warnings

#: Values that share a scale.
BLOCK: Final = 32
#: Bits per code of the formats that consist of codes and scales.
BITS: Final[Mapping[str, int]] = {"INT4": 4, "INT8": 8}
#: Bytes per value of the formats that are numbers, and of scales.
FLOAT_BYTES: Final[Mapping[str, int]] = {"FLOAT": 4, "FLOAT16": 2, "BFLOAT16": 2}
#: Values of the option ``off_lattice``, as for GGUF: how matrices that lie on no lattice are held.
OFF_LATTICE: Final[Mapping[str, str]] = {
    "q8_0": "INT8",
    "bf16": "BFLOAT16",
    "f16": "FLOAT16",
    "q4_0": "INT4",
    "f32": "FLOAT",
}
LATTICE: Final = LatticeFormat(4, BLOCK)

_DTYPES: Final = {"float32": "FLOAT", "float16": "FLOAT16"}
_SCALES: Final = {"f32": "FLOAT", "f16": "FLOAT16"}
_LEVELS: Final = range(5)
#: The router decides which experts a token reaches; it stays float32, as in every runtime.
_ROUTER: Final = ".router.proj.weight"
#: The checkpoint's own types.
_STORED: Final = {"BF16": "BFLOAT16", "F16": "FLOAT16", "F32": "FLOAT"}


@dataclass(frozen=True, slots=True)
class Storage:
    """Choices that hold for a whole artifact: ONNX type of activations (``FLOAT`` or ``FLOAT16``), type of
    scales (the same two), the option ``off_lattice``, and ``MatMulNBits``' ``accuracy_level`` (``None`` if it
    is to be measured)."""

    dtype: str = "FLOAT"
    scales: str = "FLOAT"
    off_lattice: str = "q8_0"
    accuracy_level: int | None = None


def read_options(options: Mapping[str, object]) -> Storage:
    """The options ``onnx_dtype`` (``float32``, ``float16``), ``onnx_scales`` (``f32``, ``f16``; by default
    those of the activations), ``off_lattice`` and ``accuracy_level`` (0 to 4); raises ``UsageError``."""
    dtype = _chosen(options, "onnx_dtype", "activation type", "float32", _DTYPES)
    default = "f16" if dtype == "float16" else "f32"
    scales = _chosen(options, "onnx_scales", "type of scales", default, _SCALES)
    if dtype == "float16" and scales == "f32":
        raise UsageError(
            "onnx: float16 activations need float16 scales, as MatMulNBits takes one type for both"
        )
    level = options.get("accuracy_level")
    if level is not None and (type(level) is not int or level not in _LEVELS):
        raise UsageError(f"onnx: accuracy level {level!r} is unknown; known: {', '.join(map(str, _LEVELS))}")
    off_lattice = _chosen(options, "off_lattice", "off-lattice type", "q8_0", OFF_LATTICE)
    return Storage(_DTYPES[dtype], _SCALES[scales], off_lattice, level)


def _chosen(options: Mapping[str, object], key: str, what: str, default: str, known: Iterable[str]) -> str:
    given = str(options.get(key) or default).lower()
    if given not in known:
        raise UsageError(f"onnx: {what} {given!r} is unknown; known: {', '.join(known)}")
    return given


def stored_name(canonical: str) -> str:
    """Name of the initializer that holds a weight, or its codes."""
    return f"model.{canonical}"


def scales_name(canonical: str) -> str:
    """Name of the initializer that holds the scales of a weight's codes."""
    return f"model.{canonical.removesuffix('.weight')}.scales"


def expert_name(canonical: str, expert: int) -> str:
    """Canonical name of one expert's matrix: ``layers.0.experts.3.down_proj.weight`` of
    ``layers.0.experts.down_proj``."""
    prefix, _, kind = canonical.rpartition(".")
    return f"{prefix}.{expert}.{kind}.weight"


def is_matrix(weight: Weight) -> bool:
    """Whether a weight is held by the rules for matrices; the rest is norms, scales and the router."""
    return len(weight.shape) > 1 and not weight.name.endswith(_ROUTER)


def storage_format(weight: Weight, storage: Storage) -> str:
    """Format of a weight: ``INT4`` for a matrix on the lattice of 4 bits in blocks of 32, that of
    ``off_lattice`` for other matrices whose rows divide into blocks of 32, the checkpoint's own type for
    those that do not; ``FLOAT`` for the router, the type of activations for all else."""
    if not is_matrix(weight):
        return "FLOAT" if weight.name.endswith(_ROUTER) else storage.dtype
    if weight.lattice == LATTICE:
        return "INT4"
    format = OFF_LATTICE[storage.off_lattice]
    return _STORED.get(weight.stored, "FLOAT") if format in BITS and weight.columns % BLOCK else format


def is_exact(weight: Weight, format: str, storage: Storage) -> bool:
    """Whether ``format`` can hold every value of the checkpoint bit for bit. Whether float16 holds the scales
    of a lattice is judged from rows spread over the matrix; raises ``CheckpointError`` if one is damaged."""
    if format in BITS:
        if weight.lattice != LATTICE or weight.codes is None:
            return False
        return storage.scales == "FLOAT" or not _needs_f32_scales(weight)
    if format == "FLOAT16" and not is_matrix(weight):
        values = weight.floats(0, weight.rows)  # a few thousand
        with np.errstate(over="ignore"):  # what is too large is infinite, and not exact
            return bool(np.all(values.astype(np.float16) == values))
    return format == "FLOAT" or format == _STORED.get(weight.stored)


def _needs_f32_scales(weight: Weight) -> bool:
    assert weight.codes is not None
    return any(
        bool(np.any(weight.codes(start, stop).status == NEEDS_F32_SCALE))
        for start, stop in sampled_ranges(weight.rows, weight.columns)
    )


def tensor_bytes(weight: Weight, format: str, storage: Storage) -> int:
    """Bytes of a weight in the data file, scales included."""
    return weight.rows * sum(row_bytes(format, weight.columns, storage))


def row_bytes(format: str, columns: int, storage: Storage) -> tuple[int, int]:
    """Bytes of a row of ``columns`` values: those of its codes or numbers, and those of its scales (0 for
    numbers). Raises ``ValueError`` for codes whose columns are not whole blocks."""
    if format not in BITS:
        return columns * FLOAT_BYTES[format], 0
    if columns % BLOCK:
        raise ValueError(f"{columns} columns are not a multiple of {BLOCK}")
    return columns * BITS[format] // 8, columns // BLOCK * FLOAT_BYTES[storage.scales]


def storage_warnings(weights: Iterable[Weight], storage: Storage) -> list[str]:
    """A line about matrices that the artifact cannot hold as 4-bit codes of a lattice; none without them."""
    matrices = [weight for weight in weights if is_matrix(weight)]
    format = OFF_LATTICE[storage.off_lattice]
    return off_lattice_warnings("onnx", matrices, LATTICE, format, in_blocks=format in BITS)
