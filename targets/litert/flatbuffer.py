"""A graph whose arguments become constants: TFLite's flatbuffer, taken apart and put together again.

What depends on how weights are stored is added here, so that one export serves every way: a ``DEQUANTIZE``
in front of what reads float16, the product with the sums of blocks, a head apart from its embedding.
The graph is this program's own export; files of strangers are read in ``targets.litert.schema``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from converter.checkpoint.canonical_names import EMBEDDING, HEAD
from converter.errors import TargetError
from targets.litert.activations import Grid
from targets.litert.additions import Function
from targets.litert.storage import CODED, sums_name
from targets.litert.type_names import FLOAT16
from targets.storing import Coded

#: The type of codes by their bits.
_CODES: Final = {2: schema.TensorType.INT2, 4: schema.TensorType.INT4, 8: schema.TensorType.INT8}
#: Operators, and the place of the input, that take codes.
_MULTIPLIED: Final = (schema.BuiltinOperator.FULLY_CONNECTED, 1)
_LOOKED_UP: Final = (schema.BuiltinOperator.EMBEDDING_LOOKUP, 1)


@dataclass(frozen=True, slots=True)
class Filling:
    """A weight's argument: its shape, and whether a matrix product uses it."""

    shape: tuple[int, ...]
    multiplied: bool


class _Packed:
    """Where parts lie in a flatbuffer under construction, so that several tables share them."""

    def __init__(self) -> None:
        self.places: dict[object, int] = {}

    def place(self, key: object, pack: Callable[[], int]) -> int:
        """Where the part of a key lies, which ``pack`` puts there the first time."""
        if key not in self.places:
            self.places[key] = pack()
        return self.places[key]


class _RowScales:
    """``QuantizationParameters`` with one scale for each row, float32 ``[rows]``, and zero points of 0.

    It packs itself as ``QuantizationParametersT`` does, but once for all tensors that share it, and zero
    points once for all of as many rows: functions share the weights, and a table of E2B has 262144 rows.
    """

    def __init__(self, scales: NDArray[np.float32], packed: _Packed) -> None:
        self._scales, self._packed = scales, packed

    def Pack(self, builder: Any) -> int:  # noqa: N802 (the schema's name)
        """The place of the table, which is written the first time."""
        return self._packed.place(self, lambda: self._table(builder))

    def _table(self, builder: Any) -> int:
        count = len(self._scales)
        scales = builder.CreateNumpyVector(self._scales)
        zeros = self._packed.place(count, lambda: builder.CreateNumpyVector(np.zeros(count, np.int64)))
        schema.QuantizationParametersStart(builder)
        schema.QuantizationParametersAddScale(builder, scales)
        schema.QuantizationParametersAddZeroPoint(builder, zeros)
        return int(schema.QuantizationParametersEnd(builder))


@dataclass(frozen=True, slots=True)
class _Argument:
    """A tensor of one function that stands for a weight."""

    subgraph: int
    tensor: int


class Graph:
    """A parsed graph; ``names`` are the weights among its arguments, sorted, by what ``known`` knows.

    If the head is among the names ``planned`` and no argument, products read it instead of the embedding.
    """

    def __init__(self, graph: bytes, known: Callable[[str], bool], planned: Collection[str] = ()) -> None:
        self._model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(graph, 0))
        self._functions = [Function(self._model, index) for index in range(len(self._model.subgraphs))]
        self._arguments: dict[str, list[_Argument]] = {}
        self._buffers: list[int] = []
        self._shared = _Packed()
        for signature in self._model.signatureDefs or []:
            prefix = signature.signatureKey.decode() + "_"
            tensors = self._model.subgraphs[signature.subgraphIndex].tensors
            for index in self._model.subgraphs[signature.subgraphIndex].inputs:
                # the exporter may put the function's name before that of an argument
                name = tensors[index].name.decode().split(":")[0].removeprefix(prefix)
                if known(name):
                    place = _Argument(signature.subgraphIndex, int(index))
                    self._arguments.setdefault(name, []).append(place)
        if HEAD in planned and HEAD not in self._arguments:
            self._part_head()
        self.names = tuple(sorted(self._arguments))

    def is_multiplied(self, name: str) -> bool:
        """Whether a product uses the argument of a weight."""
        return any(_MULTIPLIED in self._uses(place) for place in self._arguments[name])

    def use(
        self,
        name: str,
        type_name: str,
        two_rows: bool = False,
        row_scales: NDArray[np.float32] | None = None,
        grid: Grid | None = None,
    ) -> Filling:
        """Make the argument of a weight a constant of the type ``type_name``; with ``two_rows`` products with
        it split their input, with a ``grid`` they round to it. A type with one scale for each row has them
        here, float32 ``[rows]``. Raises ``TargetError`` if the graph uses it as that type cannot be used."""
        places = self._arguments[name]
        shapes = {self._shape(place) for place in places}
        if len(shapes) != 1:
            raise TargetError(f"litert: {name}: the graph takes it in {len(shapes)} shapes")
        shape = shapes.pop()
        uses = {use for place in places for use in self._uses(place)}
        if coded := CODED.get(type_name):
            if not uses <= {_MULTIPLIED, _LOOKED_UP} or len(shape) != 2:
                raise TargetError(f"litert: {name}: the graph uses it in a way that codes cannot be used")
            if row_scales is not None:
                self._set_row_codes(name, coded, places, shape, row_scales)
            else:
                self._set_codes(name, coded, places, shape)
            if coded.sums:
                self._add_sums(name, (shape[0], shape[1] // coded.block), places)
        else:
            buffer = self._new_buffer()
            for place in places:
                self._tensor(place).buffer = buffer
                if type_name == FLOAT16:
                    self._function(place).dequantize(place.tensor)
        for place in places:
            function = self._function(place)
            for product in function.products(place.tensor) if two_rows or grid else ():
                if two_rows:
                    function.split_input(product)
                elif grid is not None:
                    function.round_to(product, grid, integers=row_scales is not None)
        return Filling(shape, _MULTIPLIED in uses)

    def finished(
        self, sizes: Sequence[int], offsets: Callable[[int, list[int]], list[int]]
    ) -> tuple[bytes, list[int]]:
        """The flatbuffer, and the places of the data, which have ``sizes`` in bytes, in the order of ``use``;
        ``offsets`` says for the flatbuffer's length where they are."""
        self._drop_arguments()
        # numbers above 1, so that the fields take the room that they will take
        length = len(self._packed([2] * len(sizes), [2] * len(sizes)))
        places = offsets(length, list(sizes))
        packed = self._packed(places, sizes)
        if len(packed) != length:
            raise TargetError(f"litert: the graph takes {len(packed)} bytes, not {length}")
        return packed, places

    def _packed(self, offsets: Sequence[int], sizes: Sequence[int]) -> bytes:
        for index, offset, size in zip(self._buffers, offsets, sizes, strict=True):
            self._model.buffers[index].offset, self._model.buffers[index].size = offset, size
        self._shared.places.clear()
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _tensor(self, place: _Argument) -> Any:
        return self._model.subgraphs[place.subgraph].tensors[place.tensor]

    def _shape(self, place: _Argument) -> tuple[int, ...]:
        shape = self._tensor(place).shape
        return tuple(int(size) for size in (() if shape is None else shape))

    def _uses(self, place: _Argument) -> set[tuple[int, int]]:
        """Operators that read a tensor, each with the place among its inputs."""
        found = set()
        for operator in self._model.subgraphs[place.subgraph].operators:
            code = self._model.operatorCodes[operator.opcodeIndex]
            builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
            inputs = () if operator.inputs is None else operator.inputs
            found |= {(builtin, index) for index, tensor in enumerate(inputs) if tensor == place.tensor}
        return found

    def _new_buffer(self) -> int:
        self._model.buffers.append(schema.BufferT())
        self._buffers.append(len(self._model.buffers) - 1)
        return self._buffers[-1]

    def _set_codes(
        self,
        name: str,
        coded: Coded,
        places: list[_Argument],
        shape: tuple[int, ...],
    ) -> None:
        if shape[1] % coded.block:
            raise TargetError(f"litert: {name}: has rows of {shape[1]} values, no blocks of {coded.block}")
        codes, scales = self._new_buffer(), self._new_buffer()
        for place in places:
            tensors = self._model.subgraphs[place.subgraph].tensors
            scale = schema.TensorT()
            scale.name = f"{name}|scales".encode()
            scale.shape = np.array([shape[0], shape[1] // coded.block], np.int32)
            scale.type, scale.buffer, scale.hasRank = schema.TensorType.FLOAT16, scales, True
            tensors.append(scale)
            details = schema.BlockwiseQuantizationT()
            details.scales, details.zeroPoints, details.blockSize = len(tensors) - 1, -1, coded.block
            quantization = schema.QuantizationParametersT()
            quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            quantization.details, quantization.quantizedDimension = details, 0
            tensor = self._tensor(place)
            tensor.type, tensor.buffer = _CODES[coded.bits], codes
            tensor.quantization = quantization

    def _set_row_codes(
        self,
        name: str,
        coded: Coded,
        places: list[_Argument],
        shape: tuple[int, ...],
        scales: NDArray[np.float32],
    ) -> None:
        if len(scales) != shape[0] or shape[1] * coded.bits % 8:
            raise TargetError(
                f"litert: {name}: the graph takes it as {list(shape)}, which {coded.name} with {len(scales)} "
                "scales does not hold"
            )
        codes, quantization = self._new_buffer(), _RowScales(scales, self._shared)
        for place in places:
            tensor = self._tensor(place)
            tensor.type, tensor.buffer, tensor.quantization = _CODES[coded.bits], codes, quantization

    def _add_sums(self, name: str, shape: tuple[int, int], places: Sequence[_Argument]) -> None:
        """Add to every product with a weight that of the sums of its input's blocks with a constant of
        ``shape``, float32 ``[rows, blocks]``."""
        buffer = self._new_buffer()
        for place in places:
            function = self._function(place)
            sums = function.tensor(sums_name(name), shape, buffer=buffer)
            for product in function.products(place.tensor):
                function.add_sums(product, sums)

    def _part_head(self) -> None:
        """Make an argument of its own of the head that is the embedding; in a function that only multiplies
        with it, the embedding's argument becomes the head's."""
        places = self._arguments.pop(EMBEDDING, [])
        found: dict[str, list[_Argument]] = {EMBEDDING: [], HEAD: []}
        for place in places:
            function, products = self._function(place), self._function(place).products(place.tensor)
            looked_up = _LOOKED_UP in self._uses(place)
            if looked_up or not products:
                found[EMBEDDING].append(place)
            else:
                self._tensor(place).name = HEAD.encode()
                found[HEAD].append(place)
            if looked_up and products:
                head = function.tensor(HEAD, self._shape(place))
                for product in products:
                    product.inputs = np.where(np.equal(product.inputs, place.tensor), head, product.inputs)
                found[HEAD].append(replace(place, tensor=head))
        self._arguments.update({name: places for name, places in found.items() if places})

    def _function(self, place: _Argument) -> Function:
        return self._functions[place.subgraph]

    def _drop_arguments(self) -> None:
        """Constants are no arguments."""
        filled = {(place.subgraph, place.tensor) for places in self._arguments.values() for place in places}
        for index, subgraph in enumerate(self._model.subgraphs):
            kept = [tensor for tensor in subgraph.inputs if (index, int(tensor)) not in filled]
            subgraph.inputs = np.array(kept, np.int32)
        for signature in self._model.signatureDefs or []:
            index = signature.subgraphIndex
            signature.inputs = [one for one in signature.inputs if (index, one.tensorIndex) not in filled]
