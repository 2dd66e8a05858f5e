"""How the ONNX artifact holds a weight: which type, under which name, in how many bytes.

A matrix on a lattice is held as the codes and scales of ``MatMulNBits`` and ``GatherBlockQuantized``:
``INT4`` has codes of 4 bits in blocks of 32, ``INT2/128`` codes of 2 bits in blocks of 128. The operators
have no scale for a whole row: such a row is the largest blocks that divide it, each with the row's scale.
``INT8`` holds matrices on no lattice too. ``FLOAT``, ``FLOAT16`` and ``BFLOAT16`` are ONNX's own types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from converter.errors import UsageError
from targets.off_lattice import read_off_lattice
from targets.storing import Coded, Holdings

#: Values of the option ``off_lattice``, as for GGUF: how matrices that lie on no lattice are held.
OFF_LATTICE: Final[Mapping[str, str]] = {
    "q8_0": "INT8",
    "bf16": "BFLOAT16",
    "f16": "FLOAT16",
    "q4_0": "INT4",
    "f32": "FLOAT",
}
_DTYPES: Final = {"float32": "FLOAT", "float16": "FLOAT16"}
_SCALES: Final = {"f32": "FLOAT", "f16": "FLOAT16"}
_LEVELS: Final = range(5)
_NUMBERS: Final = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}
#: What follows the bits in a type's name, by the values of its blocks, the one with the fewest scales first.
#: The operators take 256 too, but those of 2 bits onnxruntime (1.32) multiplies by float32 activations alone,
#: whatever the accuracy level is.
_NAMED: Final[Mapping[int, str]] = {128: "/128", 64: "/64", 32: "", 16: "/16"}


def type_name(bits: int, block: int) -> str:
    """What codes of ``bits`` bits with a scale for each ``block`` of them are called: ``INT4`` for 32,
    ``INT2/128``."""
    return f"INT{bits}{_NAMED.get(block, f'/{block}')}"


#: The types of codes and scales, the smallest first. Rounding loses what GGML's types lose, whatever the type
#: of scales is.
_CODED: Final = tuple(
    Coded(type_name(bits, block), bits, block, rounded_scale="F16") for bits in (2, 4, 8) for block in _NAMED
)


#: Bits of codes that ``MatMulNBits`` multiplies by float32 as they are. Others it unpacks for each product,
#: which takes 50 ms for 9.4 million of them on two cores (1.32), where activations of 8 bits take 0.2 ms.
_AS_THEY_ARE: Final = 4


@dataclass(frozen=True, slots=True)
class Storage:
    """Choices that hold for a whole artifact."""

    #: ONNX type of activations, ``FLOAT`` or ``FLOAT16``.
    dtype: str = "FLOAT"
    #: Type of scales, one of the same two.
    scales: str = "FLOAT"
    #: The option ``off_lattice``.
    off_lattice: str = "q8_0"
    #: ``MatMulNBits``' ``accuracy_level``; ``None`` if it is to be measured.
    accuracy_level: int | None = None
    #: Whether activations are rounded to the checkpoint's static grids.
    static_activations: bool = False

    @property
    def held(self) -> Holdings:
        """What an artifact with these choices holds."""
        scale = "F16" if self.scales == "FLOAT16" else "F32"
        return Holdings(
            "onnx",
            tuple(replace(one, scale=scale) for one in _CODED),
            _NUMBERS,
            vectors=self.dtype,
            off_lattice=OFF_LATTICE[self.off_lattice],
            wider_scales="use --onnx-scales f32 and --onnx-dtype float32",
            wider_vectors="use --onnx-dtype float32",
        )


def read_options(options: Mapping[str, object]) -> Storage:
    """The options ``onnx_dtype`` (``float32``, ``float16``), ``onnx_scales`` (``f32``, ``f16``; by default
    those of the activations), ``off_lattice``, ``accuracy_level`` (0 to 4) and ``static_activations``. Raises
    ``UsageError``."""
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
    static = options.get("static_activations") or False
    if type(static) is not bool:
        raise UsageError(f"onnx: static_activations {static!r} is no true or false")
    off_lattice = read_off_lattice(options, "onnx", OFF_LATTICE)
    return Storage(_DTYPES[dtype], _SCALES[scales], off_lattice, level, static)


def is_unpacked(held: Holdings, type_name: str) -> bool:
    """Whether a product with a weight of this type takes long where activations stay float32."""
    coded = held.find(type_name)
    return coded is not None and coded.bits != _AS_THEY_ARE


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
