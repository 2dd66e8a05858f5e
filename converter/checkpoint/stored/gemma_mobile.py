"""Gemma's mobile checkpoints (``quant_method: gemma``): codes of 2, 4 or 8 bits, scales of activations.

``google/gemma-4-E2B-it-qat-mobile-transformers`` stores a linear module as ``weight`` and ``weight_scale``
(F32 ``[rows, 1]``), an embedding as ``embedding_quantized`` and ``embedding_scale`` (F32 ``[rows, blocks]``,
where a block is ``columns / blocks`` values). Codes of 8 bits are I8 ``[rows, columns]``. Those of 4 and 2
bits are U8 ``[rows, ceil(columns * bits / 8)]``, the first code of a byte in its lowest bits, each plus 8
or 2. A value is ``code * scale`` in float32. Beside them stand scalars: ``input_activation_scale`` and
``output_activation_scale`` of a module, ``k_cache_scale`` and ``v_cache_scale`` of an attention. Zero means
that there is none.

How many bits a module has is said by ``quantization_config``, as transformers 5.23 reads it
(``integrations/gemma_quant.py``). ``module_quant_configs`` has expressions, which are searched in the name of
the module. Where several are found, the one that is found furthest to the left decides, and of two at one
place the first. ``num_bits`` is for all others, and ``modules_to_not_convert`` names modules that are not
packed. The shape of a packed tensor must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.canonical_names import EMBEDDING, HEAD, PER_LAYER_EMBEDDING
from converter.checkpoint.safetensors import SourceTensor
from converter.checkpoint.stored.form import Form, Layout, Parameters, Shape, quantization_of
from converter.checkpoint.stored.modules import Head, Tensors, read_scale, same_bits, settle_head
from converter.checkpoint.stored.unquantized import expected_weight, make_weight
from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, Lattice, LatticeRows, Scales, Weight
from converter.errors import CheckpointError
from converter.filenames import CONFIG
from converter.system.compiled import compiled
from converter.system.patterns import Pattern, Searched, Work, parse_pattern
from converter.system.untrusted import Settings, kind, shown

_METHOD: Final = "gemma"
_BITS: Final = (2, 4, 8)
#: Roles of stored tensors: what holds the codes, and their scales.
_CODES, _ROWS, _SCALE = "weight", "embedding", "scale"
#: Names of parameters by what they are in a module.
_EMBEDDED: Final = ("embedding_quantized", "embedding_scale")
_LINEAR: Final = ("weight", "weight_scale")
_SCALARS: Final = {
    "input": "input_activation_scale",
    "output": "output_activation_scale",
    "key": "k_cache_scale",
    "value": "v_cache_scale",
}
#: Most rules that are read, and steps that matching them may take, a few seconds.
_MOST_RULES: Final = 1024
_MOST_STEPS: Final = 20_000_000

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def recognises(config: Mapping[str, object]) -> bool:
    """Whether ``config.json`` names this form."""
    found = quantization_of(config)
    section = found[1] if found else None
    return isinstance(section, Mapping) and section.get("quant_method") == _METHOD


def layout(config: Mapping[str, object]) -> Layout:
    """How a checkpoint stores its modules; raises ``CheckpointError`` for what ``quantization_config`` says
    that is not read."""
    rules = read_rules(config)

    def weight(name: str, shape: Shape, tensors: Tensors) -> Weight:
        return make(name, shape, tensors, rules)

    def expected(name: str, shape: Shape) -> Weight:
        return _expected(name, shape, rules, config)

    return Layout(
        parameters=parameters,
        weight=weight,
        weight_of=weight_of,
        shape=lambda tensors: _shape(tensors, rules),
        scales=lambda module: {role: f"{module}.{name}" for role, name in _SCALARS.items()},
        read_scales=read_scales,
        head=head,
        check=rules.check,
        expected=expected,
    )


def parameters(name: str) -> tuple[Parameters, ...]:
    """A weight is a tensor of its own name, with scales if that is packed. An embedding may have names of
    its own for both."""
    module, _, last = name.rpartition(".")
    if last != "weight":
        return (Parameters({_CODES: name}),)
    if name.endswith((EMBEDDING, PER_LAYER_EMBEDDING)):
        codes, scale = (f"{module}.{one}" for one in _EMBEDDED)
        return (Parameters({_ROWS: codes, _SCALE: scale}), Parameters({_CODES: name}))
    return (Parameters({_CODES: name}, {_SCALE: f"{name}_scale"}),)


def weight_of(name: str) -> str:
    """The weight that a tensor belongs to."""
    module, _, last = name.rpartition(".")
    return f"{module}.weight" if last in (*_EMBEDDED, *_LINEAR) else name


def head(head: Tensors, embedding: Tensors | None) -> Head:
    """A head of the same codes and scales as the embedding is the embedding, though the names differ; any
    other one is a head of its own. Raises ``CheckpointError`` for a packed head without an embedding, which
    transformers does not take for one."""
    if _SCALE not in head:
        return settle_head(head, embedding)
    if embedding is None:
        raise CheckpointError(f"{head[_CODES].where} is packed, and there is no {EMBEDDING} beside it")
    if _ROWS not in embedding:
        return Head.OWN
    alike = same_bits(head[_CODES], embedding[_ROWS]) and same_bits(head[_SCALE], embedding[_SCALE])
    return Head.EQUAL if alike else Head.OWN


def read_scales(module: str, tensors: Tensors) -> Scales:
    """Scales of what goes through a module, ``None`` for those that are zero: training did not calibrate
    them. Raises ``CheckpointError`` for one that is negative or no single finite number."""
    return Scales(**{role: _read_scalar(tensor) for role, tensor in tensors.items()})


def _read_scalar(tensor: SourceTensor) -> Floats | None:
    if tensor.rows * tensor.columns != 1:
        raise CheckpointError(f"{tensor.where} has shape {list(tensor.shape)}, expected a single scale")
    value = read_scale(tensor)
    if value[0] < 0:
        raise CheckpointError(f"{tensor.where} is {value[0]}, a negative scale")
    return value if value[0] else None


# rules


@dataclass(frozen=True, slots=True)
class _Rule:
    """An entry of ``module_quant_configs``."""

    pattern: Pattern
    bits: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What ``quantization_config`` says of modules, by their names in transformers' model."""

    #: What leads to it, to begin messages with.
    where: str
    #: Of a module that no rule is found in.
    bits: int
    rules: tuple[_Rule, ...]
    embeddings: bool
    #: What is not packed.
    kept: tuple[Pattern, ...]
    work: Work
    _found: dict[str, int | None] = field(default_factory=dict)

    def bits_of(self, module: str) -> int | None:
        """Bits of a module's codes, ``None`` if it is not packed. Raises ``CheckpointError`` for rules that
        take too long."""
        if module not in self._found:
            with_embedding = self.embeddings or not _is_embedding(module)
            try:
                text = Searched(module, self.work)
                packed = with_embedding and not any(_keeps(one, text) for one in self.kept)
                self._found[module] = self._searched(text) if packed else None
            except TimeoutError as error:
                raise CheckpointError(f"{self.where}: matching its rules {error}") from None
        return self._found[module]

    def _searched(self, text: Searched) -> int:
        """Bits by the rule that is found furthest to the left."""
        places = [(rule.pattern.leftmost(text), rule.bits) for rule in self.rules]
        found = [(place, bits) for place, bits in places if place is not None]
        return min(found, key=lambda one: one[0])[1] if found else self.bits

    def check(self, names: Collection[str]) -> None:
        """Raise ``CheckpointError`` for a rule that is found in no module of the stored tensors ``names``."""
        modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
        waiting = dict.fromkeys(rule.pattern for rule in self.rules)
        for module in modules:
            if not waiting:
                break
            try:
                text = Searched(module, self.work)
                found = [pattern for pattern in waiting if pattern.leftmost(text) is not None]
            except TimeoutError as error:
                raise CheckpointError(f"{self.where}: matching its rules {error}") from None
            for pattern in found:
                del waiting[pattern]
        for pattern in waiting:
            rule = f"{self.where}.module_quant_configs: {shown(pattern.source)}"
            raise CheckpointError(f"{rule} matches no module")


def _keeps(pattern: Pattern, text: Searched) -> bool:
    """Whether an entry of ``modules_to_not_convert`` means a module. It does if it matches from the beginning
    of the name to the end of one of its parts, or if it is the end of the name."""
    name = text.text
    dots = [place for place, one in enumerate(name) if one == "."]
    ends = {*dots, *(place + 1 for place in dots), len(name)}
    return name.endswith(pattern.source) or pattern.reaches(text, ends)


def _is_embedding(module: str) -> bool:
    return f".{module}.weight".endswith((f".{EMBEDDING}", f".{PER_LAYER_EMBEDDING}"))


def read_rules(config: Mapping[str, object]) -> Rules:
    """What ``quantization_config`` says of modules; raises ``CheckpointError`` that names the key."""
    found = quantization_of(config)
    assert found is not None
    where = f"{CONFIG}: {found[0]}"
    if not isinstance(found[1], Mapping):
        raise CheckpointError(f"{where} is {kind(found[1])}, expected an object")
    section = Settings(found[1], where)
    bits = _bits(section, 4)
    return Rules(
        where,
        bits,
        _rules(section, bits),
        section.flag("quantize_embeddings", False),
        _kept(section, config),
        Work(_MOST_STEPS),
    )


def _bits(section: Settings, default: int) -> int:
    section.require("num_bits", _BITS, default)
    return section.integer("num_bits", default)


def _rules(section: Settings, bits: int) -> tuple[_Rule, ...]:
    rules = section.section("module_quant_configs")
    if rules is None:
        return ()
    if len(rules.values) > _MOST_RULES:
        raise section.error("module_quant_configs", f"has {len(rules.values)} rules, more than {_MOST_RULES}")
    found = []
    for source in rules.values:
        override = Settings(_object(rules, source), f"{rules.where}: {shown(source)}")
        for key in override.values:
            if key != "num_bits":
                raise override.error(shown(key), "is not read (expected num_bits)")
        found.append(_Rule(_pattern(rules.where, source), _bits(override, bits)))
    return tuple(found)


def _object(rules: Settings, source: str) -> Mapping[str, object]:
    value = rules.values[source]
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{rules.where}: {shown(source)} is {kind(value)}, expected an object")
    return value


def _kept(section: Settings, config: Mapping[str, object]) -> tuple[Pattern, ...]:
    """What is not packed: what ``modules_to_not_convert`` says, or else the head and what is tied to it."""
    names = section.values.get("modules_to_not_convert")
    if names is None:
        tied = config.get("tie_word_embeddings", True)
        names = [_module(HEAD), f"{_prefix(config)}{_module(EMBEDDING)}"][: 2 if tied else 1]
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise section.error("modules_to_not_convert", "is no list of names")
    if len(names) > _MOST_RULES:
        raise section.error("modules_to_not_convert", f"has {len(names)} names, more than {_MOST_RULES}")
    return tuple(_pattern(f"{section.where}.modules_to_not_convert", one) for one in names)


def _pattern(where: str, source: str) -> Pattern:
    try:
        return parse_pattern(source)
    except ValueError as error:
        raise CheckpointError(f"{where}: {shown(source)} {' '.join(str(error).split())}") from None


def _module(weight: str) -> str:
    return weight.rpartition(".")[0]


def _prefix(config: Mapping[str, object]) -> str:
    """What module names of the text model begin with."""
    return "model.language_model." if isinstance(config.get("text_config"), Mapping) else "model."


# weights


def make(name: str, shape: Shape, tensors: Tensors, rules: Rules) -> Weight:
    """The weight of these tensors. It reads nothing of packed ones. Raises ``CheckpointError`` for dtypes and
    shapes other than ``shape`` and the module's bits ask for."""
    codes = tensors.get(_ROWS) or tensors[_CODES]
    scale = tensors.get(_SCALE)
    bits = rules.bits_of(_module(codes.name)) if len(shape) == 2 else None
    if scale is None:
        return _number(name, codes, shape, bits, rules.where)
    if bits is None:
        module = shown(_module(codes.name))
        raise CheckpointError(f"{codes.where} has scales, but {rules.where} does not pack {module}")
    rows, columns = shape
    _check_codes(codes, rows, columns, bits, rules)
    blocks = _check_scale(scale, rows, columns, embedding=_ROWS in tensors)
    read_row_scales = _scale_reader(scale)
    read = _reader(codes, read_row_scales, columns, bits)
    block = columns // blocks if blocks > 1 else 0
    return Weight(
        name=name,
        source=codes.name,
        shape=shape,
        stored=f"I{bits}",
        floats=lambda start, stop: multiplied(read(start, stop)),
        lattice=Lattice(bits, block),
        codes=read,
        scales=read_row_scales,
        coded=True,
    )


def _number(name: str, tensor: SourceTensor, shape: Shape, bits: int | None, where: str) -> Weight:
    """The weight of a tensor that is not packed. Its module has no ``bits``: those of a matrix that the
    configuration packs are not to be found."""
    if bits is not None and name.endswith(".weight"):
        raise CheckpointError(
            f"{tensor.where} is {tensor.dtype} and has no scales, but {where} packs its module in {bits} bits"
        )
    return replace(make_weight(name, tensor, shape), coded=False)


def _packed_width(columns: int, bits: int) -> int:
    """Bytes of a row of codes."""
    return -(-columns * bits // 8)


def _check_codes(tensor: SourceTensor, rows: int, columns: int, bits: int, rules: Rules) -> None:
    expected = "I8" if bits == 8 else "U8"
    width = _packed_width(columns, bits)
    if tensor.dtype == expected and tensor.shape == (rows, width):
        return
    for other in _BITS:
        told = ("I8" if other == 8 else "U8", (rows, _packed_width(columns, other)))
        if (tensor.dtype, tensor.shape) == told:
            raise CheckpointError(
                f"{tensor.where} has codes of {other} bits, but {rules.where} gives its module {bits}"
            )
    raise CheckpointError(
        f"{tensor.where} is {tensor.dtype} {list(tensor.shape)}, expected {expected} {[rows, width]}: "
        f"{columns} codes of {bits} bits"
    )


def _check_scale(tensor: SourceTensor, rows: int, columns: int, *, embedding: bool) -> int:
    """The number of blocks in a row."""
    blocks = tensor.columns if embedding and len(tensor.shape) == 2 else 1
    whole = blocks > 0 and columns % blocks == 0
    if tensor.dtype != "F32" or tensor.shape != (rows, blocks) or not whole:
        some = "1 or more that divide the columns" if embedding else "1"
        raise CheckpointError(
            f"{tensor.where} is {tensor.dtype} {list(tensor.shape)}, expected F32 [{rows}, {some}]"
        )
    return blocks


def _scale_reader(scale: SourceTensor) -> Callable[[int, int], Floats]:
    def read(start: int, stop: int) -> Floats:
        scales = np.asarray(scale.read_rows(start, stop), np.float32)
        good = np.isfinite(scales) & (scales >= 0)
        if not good.all():
            row, block = np.argwhere(~good)[0]
            raise CheckpointError(
                f"{scale.where} has the scale {scales[row, block]} in row {start + row}, expected a finite "
                "number that is not negative"
            )
        return scales

    return read


def _reader(
    codes: SourceTensor, read_scales: Callable[[int, int], Floats], columns: int, bits: int
) -> Callable[[int, int], LatticeRows]:
    def read(start: int, stop: int) -> LatticeRows:
        scales = read_scales(start, stop)
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16)
        status = np.where(halves == scales, np.uint8(EXACT), np.uint8(NEEDS_F32_SCALE))
        packed = codes.read_rows(start, stop)
        return LatticeRows(unpacked(packed, columns, bits), scales, status)

    return read


def multiplied(rows: LatticeRows) -> Floats:
    """Values of rows, float32 ``[rows, columns]``: each code times its scale."""
    values = rows.codes.astype(np.float32)
    blocks = values.reshape(*rows.scales.shape, -1)
    blocks *= rows.scales[:, :, None]
    return values


def unpacked(packed: NDArray[np.generic], columns: int, bits: int) -> NDArray[np.int8]:
    """Codes, int8 ``[rows, columns]``, of rows as stored: int8 of the same shape for 8 ``bits``, else uint8
    ``[rows, ceil(columns * bits / 8)]``."""
    if bits == 8:
        return packed.astype(np.int8, copy=False)
    rows = len(packed)
    codes = np.empty((rows, columns), np.int8)
    whole = rows and columns % 8 == 0
    if whole and bits == 4:
        _unpack_4(packed.reshape(-1).view("<u4"), codes.reshape(-1).view("<u8"))
    elif whole:
        _unpack_2(packed.reshape(-1).view("<u2"), codes.reshape(-1).view("<u8"))
    else:
        _unpack_odd(packed.view(np.uint8), bits, codes)
    return codes


@compiled()
def _unpack_4(packed, out):  # type: ignore[no-untyped-def]
    """Eight codes at a time: the nibbles of an uint32 spread to the bytes of an uint64. A nibble is a code
    plus 8: with its highest bit flipped it is the code in two's complement of 4 bits. That bit times 30 fills
    the byte's upper half with it."""
    for index in range(packed.size):
        word = np.uint64(packed[index])
        word = (word | (word << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
        word = (word | (word << np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
        word = (word | (word << np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        word ^= np.uint64(0x0808080808080808)
        out[index] = word | ((word & np.uint64(0x0808080808080808)) * np.uint64(30))


@compiled()
def _unpack_2(packed, out):  # type: ignore[no-untyped-def]
    """The same for eight codes of 2 bits, each plus 2: the highest bit times 126 fills the other six."""
    for index in range(packed.size):
        word = np.uint64(packed[index])
        word = (word | (word << np.uint64(24))) & np.uint64(0x000000FF000000FF)
        word = (word | (word << np.uint64(12))) & np.uint64(0x000F000F000F000F)
        word = (word | (word << np.uint64(6))) & np.uint64(0x0303030303030303)
        word ^= np.uint64(0x0202020202020202)
        out[index] = word | ((word & np.uint64(0x0202020202020202)) * np.uint64(126))


@compiled()
def _unpack_odd(packed, bits, out):  # type: ignore[no-untyped-def]
    """Rows that end within a byte, one code at a time."""
    each = 8 // bits
    mask, middle = (1 << bits) - 1, 1 << (bits - 1)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            byte = np.int32(packed[row, column // each])
            out[row, column] = ((byte >> (bits * (column % each))) & mask) - middle


def _shape(tensors: Tensors, rules: Rules) -> Shape:
    """The shape of a weight of a part beside the text model, by what is stored of it. Where a row of codes
    ends within a byte, which no known model has, it is told too long by what the byte has room for."""
    codes = tensors.get(_ROWS) or tensors[_CODES]
    bits = rules.bits_of(_module(codes.name))
    if _SCALE not in tensors or bits is None or len(codes.shape) != 2:
        return codes.shape
    rows, width = codes.shape
    return rows, width * (8 // bits)


def _expected(name: str, shape: Shape, rules: Rules, config: Mapping[str, object]) -> Weight:
    """A weight by what the configuration says, with zeros for its codes."""
    prefix = "" if name == HEAD else _prefix(config)
    linear = len(shape) == 2 and name.endswith(".weight")
    bits = rules.bits_of(f"{prefix}{_module(name)}") if linear else None
    if bits is None:
        return replace(expected_weight(name, shape), lattice=None, codes=None, coded=False)
    columns = shape[1]

    def codes(start: int, stop: int) -> LatticeRows:
        rows = stop - start
        ones = np.ones((rows, 1), np.float32)
        return LatticeRows(np.zeros((rows, columns), np.int8), ones, np.full((rows, 1), EXACT, np.uint8))

    def floats(start: int, stop: int) -> Floats:
        return np.zeros((stop - start, columns), np.float32)

    return Weight(name, name, shape, f"I{bits}", floats, Lattice(bits, 0), codes, coded=True)


form: Final = Form(
    name="gemma-mobile",
    describes="Gemma's mobile form (quant_method gemma: packed codes of 2, 4 and 8 bits)",
    example="google/gemma-4-E2B-it-qat-mobile-transformers",
    recognises=recognises,
    layout=layout,
)
