"""One rule for storing: which type of a runtime holds which codes, in how many bytes, and what is exact."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, OFF_LATTICE, Lattice, LatticeRows, Weight
from converter.errors import TargetError
from targets.gguf.storage import GGML, holdings
from targets.gguf.writing import encode
from targets.litert.encoding import encode as litert_encode
from targets.litert.storage import LITERT
from targets.onnx.storage import Storage
from targets.onnx.writing import quantised
from targets.storing import Coded, Holdings, naively_rounded
from targets.writing import Encoded, Piece, reserved, write_pieces

ROOT = Path(__file__).parents[2]
ROWS = 6


def packed(
    bits: int,
    block: int,
    columns: int = 256,
    scales: NDArray[np.float32] | None = None,
    name: str = "w.weight",
) -> Weight:
    """A matrix that a checkpoint stores as codes and positive float16 scales, or the ``scales`` given."""
    random = np.random.default_rng(bits * 1000 + block)
    codes = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (ROWS, columns)).astype(np.int8)
    blocks = Lattice(bits, block).blocks(columns)
    if scales is None:
        scales = random.uniform(0.01, 0.02, (ROWS, blocks)).astype(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        narrow = scales.astype(np.float16).astype(np.float32) == scales
    status = np.where(narrow, EXACT, NEEDS_F32_SCALE).astype(np.uint8)

    def rows(start: int, stop: int) -> LatticeRows:
        return LatticeRows(codes[start:stop], scales[start:stop], status[start:stop])

    def floats(start: int, stop: int) -> NDArray[np.float32]:
        return codes[start:stop] * np.repeat(scales[start:stop], columns // blocks, axis=1)

    return Weight(name, name, (ROWS, columns), f"I{bits}", floats, Lattice(bits, block), rows)


def numbers(columns: int, stored: str = "BF16", shape: tuple[int, ...] | None = None) -> Weight:
    """A weight on no lattice."""
    values = np.random.default_rng(0).normal(size=(ROWS, columns)).astype(np.float32)
    values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return Weight("w.weight", "w", shape or (ROWS, columns), stored, lambda start, stop: values[start:stop])


ONNX = Storage().held


@pytest.mark.parametrize(
    ("bits", "block", "columns", "expected"),
    [
        (4, 32, 256, ("Q4_0", "INT4", "INT4")),
        (4, 128, 256, ("Q4_0", "INT4/128", "INT4")),
        (4, 0, 256, ("Q4_0", "INT4/128", "INT4 per row")),
        (2, 0, 256, ("TQ2_0", "INT2/128", "INT2 per row")),
        (2, 256, 512, ("TQ2_0", "INT2/128", "INT4")),
        (2, 0, 128, ("Q4_0", "INT2/128", "INT2 per row")),  # no whole blocks of 256
        (2, 0, 320, ("Q4_0", "INT2/64", "INT2 per row")),  # the largest blocks that divide the row
        (2, 128, 256, ("Q4_0", "INT2/128", "INT4")),  # two scales in one
        (3, 0, 256, ("Q4_0", "INT4/128", "INT4 per row")),
        (3, 64, 256, ("Q4_0", "INT4/64", "INT4")),
        (8, 0, 256, ("Q8_0", "INT8/128", "INT8 per row")),
        (4, 32, 32, ("Q4_0", "INT4", "INT4")),  # the lattice's own blocks, which are whole rows
        (5, 32, 256, ("Q8_0", "INT8", "FLOAT16")),
        (4, 16, 256, ("Q8_0", "INT4/16", "FLOAT16")),  # two scales in a block of 32: rounded
        (4, 48, 240, ("F32", "INT4/16", "FLOAT16")),  # no whole blocks of 32
        (4, 0, 40, ("F32", "FLOAT", "INT4 per row")),  # nor of 16
    ],
)
def test_the_narrowest_type_whose_blocks_lie_within_the_lattices_holds_its_codes(
    bits: int, block: int, columns: int, expected: tuple[str, ...]
) -> None:
    weight = packed(bits, block, columns)
    assert tuple(held.type_of(weight) for held in (GGML, ONNX, LITERT)) == expected


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (4, 0), (2, 0), (2, 64), (8, 0), (8, 128)])
def test_codes_of_every_lattice_are_written_as_they_are(bits: int, block: int) -> None:
    weight = packed(bits, block)
    expected = weight.floats(0, ROWS)
    format = GGML.type_of(weight)
    data, statuses = encode(weight, format, 0, ROWS, 0.0)
    assert data.nbytes == ROWS * GGML.row_bytes(format, weight.columns)
    back = gguf.quants.dequantize(data.reshape(ROWS, -1), gguf.GGMLQuantizationType[format])
    np.testing.assert_array_equal(back, expected)
    assert statuses.size == ROWS * weight.columns // GGML.find(format).block
    assert GGML.is_exact(weight, format)
    codes, scales, _ = quantised(weight, ONNX.type_of(weight), Storage(), 0, ROWS)
    assert (codes.nbytes, scales.nbytes) == tuple(
        ROWS * part for part in ONNX.row_parts(ONNX.type_of(weight), weight.columns)[:2]
    )
    np.testing.assert_array_equal(
        scales.view("<f4").reshape(ROWS, -1)[:, 0], weight.codes(0, ROWS).scales[:, 0]
    )
    if bits <= 4 or not block:
        rows = litert_encode(weight, LITERT.type_of(weight), 0, ROWS, multiplied=True)
        np.testing.assert_array_equal(rows.floats(), expected)


def test_a_lattice_that_no_type_holds_is_told_apart_from_none() -> None:
    on, odd, off = packed(4, 32, name="a"), packed(4, 16, name="b"), replace(numbers(256), name="c")
    first, second = holdings("f16").warnings([on, odd, off])
    assert first == ("gguf: 33.33% of the weights (1 of 3 matrices) lie on no lattice: 1 are stored as F16")
    assert second == (
        "gguf: 33.33% of the weights (1 of 3 matrices) have codes that no type of gguf holds: "
        "1 are stored as F16"
    )
    assert holdings("f16").warnings([on]) == []


@pytest.mark.parametrize("block", [0, 16, 32, 128])
def test_blocks_that_turn_out_to_be_off_the_lattice_are_told_with_their_share(
    block: int, tmp_path: Path
) -> None:
    held = Holdings("t", (Coded("INT4", 4, block),), {"F32": "F32"}, "F32", "F32")
    weight = packed(4, block)
    assert weight.codes is not None
    rows = weight.codes(0, ROWS)
    rows.status[2, 0] = OFF_LATTICE

    def encoded(start: int, stop: int) -> Encoded:
        coded = held.codes(weight, "INT4", start, stop)
        assert coded is not None
        return Encoded((), coded.status.reshape(-1))

    pieces = (
        Piece(weight, start, start + 2, 0, partial(encoded, start, start + 2)) for start in range(0, ROWS, 2)
    )
    with reserved([tmp_path / "data"], [0]) as outputs:
        written = write_pieces(outputs, pieces, lambda count: None)
    share = (block or weight.columns) / weight.size
    assert held.losses({weight.name: weight}, written, "") == [
        f"t: w.weight: 1 blocks ({share:.2%} of its weights) lie on no lattice and are rounded to the nearest"
    ]


def test_a_scale_that_the_type_does_not_hold_is_not_exact() -> None:
    scales = np.full((ROWS, 1), 0.1, np.float32)
    weight = packed(4, 0, scales=scales)
    assert not GGML.is_exact(weight, "Q4_0")
    assert not LITERT.is_exact(weight, "INT4")
    assert ONNX.is_exact(weight, "INT4")
    assert not Storage(scales="FLOAT16").held.is_exact(weight, "INT4")


def stored_scales(first: float, others: float = 0.1, bits: int = 4) -> Weight:
    """A matrix whose scales the checkpoint stores, so that they are asked for before anything is read."""
    scales = np.full((ROWS, 1), others, np.float32)
    scales[0] = first
    return replace(packed(bits, 0, scales=scales), scales=lambda start, stop: scales[start:stop])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("first", "others"), [(65505, 0.1), (1e30, 0), (6e-5, 6e-5), (1e-7, 0), (1e-40, 1e-20), (1e-40, 1e-5)]
)
def test_a_matrix_whose_scales_are_outside_float16s_range_is_float32(
    bits: int, first: float, others: float
) -> None:
    weight = stored_scales(first, others, bits)
    assert GGML.holding(weight) is None
    assert GGML.type_of(weight) == "F32"
    assert GGML.is_exact(weight, "F32")
    (line,) = GGML.warnings([weight])
    size, coded = 4 * weight.size, ROWS * GGML.row_bytes({2: "TQ2_0", 4: "Q4_0", 8: "Q8_0"}[bits], 256)
    assert line.startswith("gguf: w.weight: its scales are outside float16's range (6.1e-05 to 65504)")
    assert f"in {size} bytes instead of the {coded} of" in line
    data, statuses = encode(weight, "F32", 0, ROWS, 0.0)
    assert data.tobytes() == weight.floats(0, ROWS).tobytes()
    assert statuses.size == 0
    assert ONNX.type_of(weight) != ONNX.numbers["F32"]  # has float32 scales
    assert naively_rounded(weight, GGML.coded[1]) is weight


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (1e-8, "1 become 0, the others are off by 0.00% at most"),
        (1e-40, "1 become 0, the others are off by 0.00% at most"),
        (1e-6, "0 become 0, the others are off by 1.33% at most"),
    ],
)
def test_small_scales_beside_others_are_rounded_and_counted(first: float, told: str) -> None:
    weight = stored_scales(first)
    assert GGML.type_of(weight) == "Q4_0"
    (line,) = GGML.warnings([weight])
    assert line.startswith("gguf: 1 scales of 1 matrices (the first is w.weight) are below float16's normal")
    assert line.endswith(told)


@pytest.mark.parametrize("first", [0.0, 65504.0, 2.0**-14, 2.0**-20, 0.1])
def test_scales_that_float16_holds_to_half_a_step_are_not_told(first: float) -> None:
    weight = stored_scales(first)
    assert GGML.type_of(weight) == "Q4_0"
    assert GGML.warnings([weight, stored_scales(0, 0)]) == []


def large(value: float, lattice: Lattice | None = None) -> Weight:
    """A matrix all of whose values, and whose scales if it lies on a lattice, are one number."""
    if lattice is not None:
        return packed(lattice.bits, lattice.block, scales=np.full((ROWS, lattice.blocks(256)), value, "f4"))
    return replace(numbers(256), floats=lambda start, stop: np.full((stop - start, 256), value, np.float32))


HALF = Storage("FLOAT16", "FLOAT16").held


@pytest.mark.parametrize(
    ("held", "name", "weight", "message"),
    [
        (GGML, "Q4_0", large(1e6, Lattice(4, 32)), "Q4_0's float16 scales; it cannot be stored in gguf"),
        (GGML, "Q8_0", large(1e7), "Q8_0's float16 scales; try --off-lattice bf16"),
        (GGML, "Q8_0", large(1e7, Lattice(4, 16)), "Q8_0's float16 scales; try --off-lattice bf16"),
        (LITERT, "INT4", large(1e6, Lattice(4, 32)), "INT4's float16 scales; it cannot be stored in litert"),
        (
            HALF,
            "INT4",
            large(-1e6, Lattice(4, 0)),
            "INT4's float16 scales; use --onnx-scales f32 and --onnx-",
        ),
        (ONNX, "INT8", large(1e7), "INT8's float16 scales; try --off-lattice bf16"),
    ],
)
def test_scales_beyond_float16_are_refused_with_what_helps(
    held: Holdings, name: str, weight: Weight, message: str
) -> None:
    coded = held.find(name)
    assert coded is not None
    with pytest.raises(TargetError) as error:
        held.coded_rows(weight, coded, 0, ROWS)
    assert f"{held.target}: w.weight: a value is beyond the range of {message}" in str(error.value)


@pytest.mark.parametrize(
    ("held", "name", "value", "message"),
    [
        (GGML, "F16", 65520.0, "F16; try --off-lattice bf16"),
        (GGML, "BF16", 3.3965e38, "BF16; try --off-lattice f32"),
        (LITERT, "FLOAT16", -65520.0, "FLOAT16; try --off-lattice bf16"),
        (ONNX, "BFLOAT16", -3.3965e38, "BFLOAT16; try --off-lattice f32"),
    ],
)
def test_numbers_beyond_a_type_are_refused_with_what_helps(
    held: Holdings, name: str, value: float, message: str
) -> None:
    weight = large(value)
    with pytest.raises(TargetError) as error:
        held.check_numbers(weight, name, weight.floats(0, ROWS))
    assert str(error.value) == f"{held.target}: w.weight: a value is beyond the range of {message}"
    held.check_numbers(weight, name, weight.floats(0, ROWS) * np.float32(0.5))
    held.check_numbers(weight, held.numbers["F32"], weight.floats(0, ROWS))


def test_a_norm_beyond_float16_is_refused_with_what_helps() -> None:
    norm = numbers(256, shape=(256,))
    with pytest.raises(TargetError, match="range of FLOAT16; use --onnx-dtype float32"):
        HALF.check_numbers(norm, "FLOAT16", np.full((1, 256), 1e6, np.float32))


def test_only_codes_of_a_lattice_have_statuses() -> None:
    on, off = packed(4, 32, scales=np.full((ROWS, 8), 0.1, np.float32)), numbers(256)
    for held, name, expected in ((GGML, "Q4_0", NEEDS_F32_SCALE), (ONNX, "INT4", EXACT)):
        coded = held.find(name)
        assert coded is not None
        rows, statuses = held.coded_rows(on, coded, 0, ROWS)
        assert on.codes is not None
        np.testing.assert_array_equal(rows.codes, on.codes(0, ROWS).codes)
        assert statuses.tolist() == [expected] * (ROWS * 8)
        rows, statuses = held.coded_rows(off, coded, 0, ROWS)
        np.testing.assert_array_equal(rows.codes, coded.rounded(off.floats(0, ROWS)).codes)
        assert statuses.size == 0


def test_a_type_that_refuses_negative_scales_is_passed_over() -> None:
    weight = packed(4, 0, scales=np.full((ROWS, 1), -0.5, np.float32))
    assert LITERT.type_of(weight, negative=True) == "INT4+sums"
    assert LITERT.type_of(weight) == "INT4 per row"
    assert GGML.type_of(weight, negative=True) == "Q4_0"


@pytest.mark.parametrize(
    ("what", "shape", "expected"),
    [
        ("a norm", (256,), ("F32", "FLOAT16", "FLOAT")),
        ("router", (ROWS, 256), ("F32", "FLOAT", "FLOAT")),
        ("a scalar", (1,), ("F32", "FLOAT16", "FLOAT")),
    ],
)
def test_vectors_and_the_router_are_numbers(
    what: str, shape: tuple[int, ...], expected: tuple[str, ...]
) -> None:
    weight = replace(numbers(shape[-1], shape=shape), router=what == "router")
    onnx = Storage("FLOAT16", "FLOAT16").held
    assert tuple(held.type_of(weight) for held in (GGML, onnx, LITERT)) == expected


def test_numbers_are_exact_where_every_value_fits() -> None:
    held = Holdings("t", (), {"F32": "F32", "F16": "F16", "BF16": "BF16"}, "F32", "F16")
    weight = numbers(64)
    assert [held.is_exact(weight, name) for name in ("F32", "F16", "BF16")] == [True, True, True]
    small = replace(weight, floats=lambda start, stop: np.full((stop - start, 64), 2.0**-30, np.float32))
    assert [held.is_exact(small, name) for name in ("F32", "F16", "BF16")] == [True, False, True]
    stored = replace(weight, stored="F32", floats=lambda start, stop: np.full((stop - start, 64), 0.1, "f4"))
    assert [held.is_exact(stored, name) for name in ("F32", "F16", "BF16")] == [True, False, False]


@pytest.mark.parametrize(
    ("coded", "parts"),
    [
        (Coded("t", 4, 32), (64, 8, 0)),
        (Coded("t", 4, 0, "F32"), (64, 4, 0)),
        (Coded("t", 2, 64, "F32"), (32, 8, 0)),
        (Coded("t", 8, 32, sums=True), (128, 8, 16)),
    ],
)
def test_a_row_has_codes_scales_and_sums(coded: Coded, parts: tuple[int, ...]) -> None:
    assert coded.row_parts(128) == parts


def test_columns_that_are_no_whole_blocks_have_no_size() -> None:
    with pytest.raises(ValueError, match="48 columns are not a multiple of 32"):
        Coded("t", 4, 32).row_parts(48)


#: Values of a block and the bytes that they take in GGML's types, which arithmetic on blocks would name.
SIZES = {18, 20, 32, 34}
#: What arithmetic on blocks would do with them.
ARITHMETIC = (ast.FloorDiv, ast.Div, ast.Mod, ast.Mult)


def is_number(node: ast.AST | None, known: Collection[int] | None = None) -> bool:
    """Whether a node is a whole number above 1, one of those ``known`` if any are."""
    if not isinstance(node, ast.Constant) or type(node.value) is not int:
        return False
    return node.value > 1 and (known is None or node.value in known)


def is_called(node: ast.AST | None, word: str) -> bool:
    """Whether a node is a name or an attribute, whatever stands before it, that has a word in it."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return has_word(name, word)


def has_word(name: str, word: str) -> bool:
    """Whether ``word``, or its plural, is one of the words of a name; ``blockSize`` has two."""
    return (
        re.search(rf"(?<![a-z]){word}s?(?![a-z])", re.sub("([a-z])([A-Z])", r"\1_\2", name).lower())
        is not None
    )


def broken_rules(node: ast.AST) -> Iterator[str]:
    """What a node says that the rule for storing alone may say, or a target's table."""
    match node:
        case ast.BinOp(left, ast.LShift() | ast.RShift(), right) if is_number(right, {5}):
            yield "a block size"
        case ast.BinOp(left, operator, right) if isinstance(operator, ARITHMETIC):
            if is_number(left, SIZES) or is_number(right, SIZES):
                yield "a block size"
        case ast.Compare(left, operators, others):
            sides = [left, *others]
            equal = any(isinstance(one, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for one in operators)
            if equal and any(is_called(one, "block") for one in sides) and any(map(is_number, sides)):
                yield "a block size"
            if equal and any(is_called(one, "lattice") and isinstance(one, ast.Attribute) for one in sides):
                yield "a comparison with one lattice"
        case ast.keyword(str(name), value) if has_word(name, "block") and is_number(value):
            yield "a block size"
        case ast.Assign([target], value) | ast.AnnAssign(target, _, value):
            if is_called(target, "block") and is_number(value):
                yield "a block size"
        case ast.Call(function) if ast.unparse(function).split(".")[-1] == "Lattice":
            yield "a lattice of its own"
        case ast.Call(function) if ast.unparse(function).split(".")[-1] == "Coded":
            yield "a type"
        case ast.alias("BLOCK") | ast.Attribute(attr="BLOCK"):
            yield "a block size"
        case ast.Constant(str(text)) if "router.proj" in text:
            yield "the router"


def test_no_other_file_says_what_the_rule_says() -> None:
    found = set()
    for room in ("targets", "validation", "converter/pipeline", "converter/cli"):
        for path in sorted((ROOT / room).rglob("*.py")):
            place = path.relative_to(ROOT)
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                for what in broken_rules(node):
                    table = place.name == "storage.py" and place.parts[0] == "targets"
                    if place != Path("targets/storing.py") and not (table and node_is_of_a_table(node)):
                        found.add(f"{place}:{getattr(node, 'lineno', '')}: {what}")
    assert not found


def node_is_of_a_table(node: ast.AST) -> bool:
    """Whether a node belongs to the types that a target hands in."""
    return isinstance(node, ast.Call)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("blocks = columns // 32", "a block size"),
        ("size = blocks * 18", "a block size"),
        ("odd = columns % 32", "a block size"),
        ("blocks = columns >> 5", "a block size"),
        ("size: Final = 34 * blocks", "a block size"),
        ("BLOCK: Final = 32", "a block size"),
        ("self.block = 64", "a block size"),
        ("details.blockSize = 32", "a block size"),
        ("node(block_size=32)", "a block size"),
        ("from converter.checkpoint.lattice import BLOCK", "a block size"),
        ("lattice.BLOCK", "a block size"),
        ("if coded.block == 32: pass", "a block size"),
        ("if weight.lattice != trained: pass", "a comparison with one lattice"),
        ("if weight.lattice in known: pass", "a comparison with one lattice"),
        ("Lattice(4, block)", "a lattice of its own"),
        ("weight.Lattice(4, block)", "a lattice of its own"),
        ("Coded('t', 4, block)", "a type"),
        ("name.endswith('.router.proj.weight')", "the router"),
    ],
)
def test_the_search_finds_what_it_looks_for(code: str, what: str) -> None:
    assert {one for node in ast.walk(ast.parse(code)) for one in broken_rules(node)} == {what}


@pytest.mark.parametrize(
    "code",
    [
        "blocks = columns // coded.block",
        "if weight.lattice is None: pass",
        "if status == OFF_LATTICE: pass",
        "place = index * 4",
        "_BLOCKWISE: Final = 2",
        "block = coded.block or columns",
    ],
)
def test_the_search_passes_over_the_rest(code: str) -> None:
    assert not [one for node in ast.walk(ast.parse(code)) for one in broken_rules(node)]
