"""Tensors and operators that are added to a function of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converter.errors import TargetError
from targets.litert.activations import Grid

_OPERATORS: Final = schema.BuiltinOperator
#: Versions of operators that take these inputs (``tensorflow/lite/tools/versioning``): ``DEQUANTIZE`` of
#: float16, ``FULLY_CONNECTED`` without a bias.
_VERSIONS: Final = {_OPERATORS.DEQUANTIZE: 3, _OPERATORS.FULLY_CONNECTED: 5}
#: The same of those that take or give int8: ``FULLY_CONNECTED`` with a scale for each row of the weight.
_INTEGER_VERSIONS: Final = {
    _OPERATORS.QUANTIZE: 1,
    _OPERATORS.DEQUANTIZE: 2,
    _OPERATORS.FULLY_CONNECTED: 12,
}


#: Values beyond this many times the mean magnitude of their row go to a row of their own.
_THRESHOLD: Final = 4.0


class Function:
    """A function of a parsed graph."""

    def __init__(self, model: Any, index: int) -> None:
        self._model, self._graph = model, model.subgraphs[index]
        #: What was made of a tensor, which several operators read: its rows, and the sums of its blocks.
        self._rows: dict[int, int] = {}
        self._sums: dict[tuple[int, int], int] = {}
        #: The same of its numbers on a grid, by the grid's step: as int8, and as float32 again.
        self._integers: dict[tuple[int, float], int] = {}
        self._on_grid: dict[tuple[int, float], int] = {}

    def tensor(
        self, name: str, shape: Sequence[int], type: int = schema.TensorType.FLOAT32, buffer: int = 0
    ) -> int:
        """The index of a new tensor; buffer 0 is that of tensors without data."""
        made = schema.TensorT()
        made.name, made.shape = name.encode(), np.array(shape, np.int32)
        made.type, made.buffer, made.hasRank = type, buffer, True
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def products(self, weight: int) -> list[Any]:
        """The operators that multiply with a tensor."""
        code = _OPERATORS.FULLY_CONNECTED
        return [
            one for one in self._graph.operators if self._builtin(one) == code and one.inputs[1] == weight
        ]

    def dequantize(self, tensor: int) -> None:
        """Read a tensor as float16 and hand it on as float32."""
        source = self._graph.tensors[tensor]
        source.type = schema.TensorType.FLOAT16
        made = self._like(tensor, "float")
        for operator in self._graph.operators:
            if operator.inputs is not None:
                operator.inputs = np.where(np.equal(operator.inputs, tensor), made, operator.inputs)
        self._graph.operators.insert(0, self._operator(_OPERATORS.DEQUANTIZE, [tensor], made))

    def add_sums(self, product: Any, sums: int) -> None:
        """Add to a ``product`` that of the sums of its input's blocks with ``sums``, a tensor ``[rows,
        blocks]``. Raises ``TargetError`` for a product that does more than multiply."""
        self._check(product)
        result = int(product.outputs[0])
        summed = self._summed(int(product.inputs[0]), int(self._graph.tensors[sums].shape[1]))
        plain, added = self._like(result, "plain"), self._like(result, "added")
        product.outputs = np.array([plain], np.int32)
        options = product.builtinOptions
        self._insert(
            self._place(product) + 1,
            self._operator(_OPERATORS.FULLY_CONNECTED, [summed, sums, -1], added, options),
            self._operator(_OPERATORS.ADD, [plain, added], result, schema.AddOptionsT()),
        )

    def split_input(self, product: Any) -> None:
        """Have a ``product`` take every row of its input as two: one of the large values, with zeros in the
        places of others, and one of the rest.

        The runtime rounds a row to int8 by one scale, which its largest value decides, so that small values
        keep their precision in a row of their own. The product reads the weight once for both, which are
        added then. Raises ``TargetError`` for a product that does more than multiply.
        """
        self._check(product)
        source, result = int(product.inputs[0]), int(product.outputs[0])
        shape = [int(size) for size in self._graph.tensors[result].shape]
        name = self._name(result)
        both = self.tensor(f"{name}|both", [2 * shape[0], *shape[1:]])
        product.inputs = np.array([self._split(source), *product.inputs[1:]], np.int32)
        product.outputs = np.array([both], np.int32)
        halves, slices = [], []
        for half in range(2):
            begin, size = (
                self._constant(one, np.int32) for one in ([half * shape[0], *[0] * len(shape[1:])], shape)
            )
            halves.append(self._like(result, f"half {half}"))
            slices.append(self._operator(_OPERATORS.SLICE, [both, begin, size], halves[half]))
        added = self._operator(_OPERATORS.ADD, halves, result, schema.AddOptionsT())
        self._insert(self._place(product) + 1, *slices, added)

    def round_to(self, product: Any, grid: Grid, *, integers: bool) -> None:
        """Have a ``product`` round its input and its output to multiples of a grid's steps, by -128..127.

        With ``integers`` it multiplies int8 with the codes and gives int8, if both have a step: nothing else
        is rounded then. Otherwise numbers go through int8 and back, and the runtime may round them once more
        where it multiplies with codes. Raises ``TargetError`` for a product that does more than multiply.
        """
        self._check(product)
        source, result = int(product.inputs[0]), int(product.outputs[0])
        if integers and grid.input is not None and grid.output is not None:
            product.inputs = np.array([self._integer(source, grid.input), *product.inputs[1:]], np.int32)
            product.opcodeIndex = self._code(_OPERATORS.FULLY_CONNECTED, _INTEGER_VERSIONS)
            given = self._integer_tensor(result, grid.output)
            product.outputs = np.array([given], np.int32)
            self._insert(self._place(product) + 1, self._float(given, result))
            return
        if grid.input is not None:
            product.inputs = np.array([self._gridded(source, grid.input), *product.inputs[1:]], np.int32)
        if grid.output is not None:
            plain = self._like(result, "plain")
            product.outputs = np.array([plain], np.int32)
            given = self._integer_tensor(result, grid.output)
            rounded = self._operator(_OPERATORS.QUANTIZE, [plain], given, versions=_INTEGER_VERSIONS)
            self._insert(self._place(product) + 1, rounded, self._float(given, result))

    def _integer(self, source: int, step: float) -> int:
        """A tensor as int8 multiples of a step."""
        if (source, step) not in self._integers:
            made = self._integer_tensor(source, step)
            rounded = self._operator(_OPERATORS.QUANTIZE, [source], made, versions=_INTEGER_VERSIONS)
            self._insert(self._behind(source), rounded)
            self._integers[source, step] = made
        return self._integers[source, step]

    def _gridded(self, source: int, step: float) -> int:
        """A tensor of the multiples of a step as float32."""
        if (source, step) not in self._on_grid:
            integer = self._integer(source, step)
            made = self._like(source, f"on a grid of {step}")
            self._insert(self._behind(integer), self._float(integer, made))
            self._on_grid[source, step] = made
        return self._on_grid[source, step]

    def _integer_tensor(self, like: int, step: float) -> int:
        made = self.tensor(
            f"{self._name(like)}|by {step}", self._graph.tensors[like].shape, schema.TensorType.INT8
        )
        quantization = schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = np.array([step], np.float32), np.zeros(1, np.int64)
        self._graph.tensors[made].quantization = quantization
        return made

    def _float(self, integer: int, result: int) -> Any:
        """The operator that makes numbers of int8."""
        return self._operator(_OPERATORS.DEQUANTIZE, [integer], result, versions=_INTEGER_VERSIONS)

    def _summed(self, source: int, blocks: int) -> int:
        """The sums of a tensor's blocks, ``[..., blocks]``."""
        if (source, blocks) not in self._sums:
            *leading, columns = (int(size) for size in self._graph.tensors[source].shape)
            shape = [*leading, blocks, columns // blocks]
            cut = self.tensor(f"{self._name(source)}|blocks", shape)
            summed = self.tensor(f"{self._name(source)}|sums of blocks", shape[:-1])
            reshape = schema.ReshapeOptionsT()
            reshape.newShape = np.array(shape, np.int32)
            axis = self._constant([len(leading) + 1], np.int32)
            self._insert(
                self._behind(source),
                self._operator(_OPERATORS.RESHAPE, [source, self._constant(shape, np.int32)], cut, reshape),
                self._operator(_OPERATORS.SUM, [cut, axis], summed, schema.ReducerOptionsT()),
            )
            self._sums[source, blocks] = summed
        return self._sums[source, blocks]

    def _split(self, source: int) -> int:
        """The rows of a tensor's small values, and behind them those of its large ones."""
        if source not in self._rows:
            shape = [int(size) for size in self._graph.tensors[source].shape]
            name, bool_type = self._name(source), schema.TensorType.BOOL
            one = [*shape[:-1], 1]
            magnitudes, small, large = (self._like(source, what) for what in ("magnitudes", "small", "large"))
            mean, most = self.tensor(f"{name}|mean magnitude", one), self.tensor(f"{name}|most", one)
            is_large = self.tensor(f"{name}|is large", shape, bool_type)
            both = self.tensor(f"{name}|small and large", [2 * shape[0], *shape[1:]])
            axis = self._constant([len(shape) - 1], np.int32)
            factor, zero = self._constant(_THRESHOLD, np.float32), self._constant(0, np.float32)
            keep, concatenation = schema.ReducerOptionsT(), schema.ConcatenationOptionsT()
            keep.keepDims = True
            self._insert(
                self._behind(source),
                self._operator(_OPERATORS.ABS, [source], magnitudes),
                self._operator(_OPERATORS.MEAN, [magnitudes, axis], mean, keep),
                self._operator(_OPERATORS.MUL, [mean, factor], most, schema.MulOptionsT()),
                self._operator(_OPERATORS.GREATER, [magnitudes, most], is_large),
                self._operator(_OPERATORS.SELECT_V2, [is_large, zero, source], small),
                self._operator(_OPERATORS.SUB, [source, small], large, schema.SubOptionsT()),
                self._operator(_OPERATORS.CONCATENATION, [small, large], both, concatenation),
            )
            self._rows[source] = both
        return self._rows[source]

    def _check(self, product: Any) -> None:
        if product.builtinOptions.fusedActivationFunction or any(one != -1 for one in product.inputs[2:]):
            name = self._name(int(product.outputs[0]))
            raise TargetError(f"litert: {name}: the graph does more than multiply where a product is changed")

    def _name(self, tensor: int) -> str:
        return str(self._graph.tensors[tensor].name.decode())

    def _like(self, tensor: int, what: str) -> int:
        """A new tensor of float32 of another's shape."""
        return self.tensor(f"{self._name(tensor)}|{what}", self._graph.tensors[tensor].shape)

    def _place(self, operator: Any) -> int:
        return next(index for index, one in enumerate(self._graph.operators) if one is operator)

    def _behind(self, tensor: int) -> int:
        """The place behind the operator that makes a tensor, the first one for an argument."""
        made = (index for index, one in enumerate(self._graph.operators) if tensor in one.outputs)
        return next(made, -1) + 1

    def _insert(self, place: int, *operators: Any) -> None:
        self._graph.operators[place:place] = operators

    def _constant(self, value: object, dtype: type[np.generic]) -> int:
        """A constant of int32 or float32 numbers; equal bytes share a buffer."""
        values = np.array(value, dtype)
        data, buffers = np.frombuffer(values.tobytes(), np.uint8), self._model.buffers
        same = (i for i, one in enumerate(buffers) if one.data is not None and np.array_equal(one.data, data))
        index = next(same, len(buffers))
        if index == len(buffers):
            buffers.append(schema.BufferT())
            buffers[index].data = data
        kind = schema.TensorType.INT32 if values.dtype == np.int32 else schema.TensorType.FLOAT32
        return self.tensor(f"constant {value}", values.shape, kind, index)

    def _operator(
        self,
        builtin: int,
        inputs: Sequence[int],
        output: int,
        options: Any = None,
        *,
        versions: Mapping[int, int] = _VERSIONS,
    ) -> Any:
        made = schema.OperatorT()
        made.opcodeIndex = self._code(builtin, versions)
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if options is not None:
            made.builtinOptions = options
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        return made

    def _code(self, builtin: int, versions: Mapping[int, int] = _VERSIONS) -> int:
        """The index of an operator's code, of a version that takes what is given here."""
        version = versions.get(builtin, 1)
        codes = self._model.operatorCodes
        for index, code in enumerate(codes):
            if (code.builtinCode, code.version) == (builtin, version):
                return index
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = version
        codes.append(code)
        return len(codes) - 1

    def _builtin(self, operator: Any) -> int:
        code = self._model.operatorCodes[operator.opcodeIndex]
        return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
