"""Stand-ins: weights without memory in torch, and without bytes in the exported graph.

A stand-in is a parameter over pages that nobody touches. It is lowered to a constant of one value that no
other has, which names the weight whatever the converter does to operators around it. Before the flatbuffer is
written, every such constant becomes an argument of its function, named as the weight.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from litert_converter.mlir import ir
from litert_torch.backend import inline_consts, lowerings
from litert_torch.backend.lowerings import utils as lowering_utils

from converter.errors import TargetError

_FLOAT32: Final = 4
_PAGE: Final = 4096
#: Of Linux; Python names it from 3.13 on.
_MAP_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0
_CONSTANTS: Final = ("tfl.pseudo_const", "arith.constant", "tfl.const")
#: Operators whose second operand is a weight.
_WEIGHTED: Final = ("tfl.fully_connected", "tfl.embedding_lookup")
#: Values are odd multiples of this above 1: no bfloat16 and no float16, so no value of a checkpoint in these.
_STEP: Final = 2.0**-21
_MOST: Final = 1 << 20


@dataclass
class StandIns:
    """The stand-ins of one export: shape and value by the name that the tensor has in the flatbuffer."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _values: dict[str, float] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)  # by address

    def parameter(self, name: str, shape: tuple[int, ...]) -> torch.nn.Parameter:
        """A float32 parameter of ``shape`` that stands for ``name``."""
        if name in self.shapes or len(self.shapes) >= _MOST:
            raise ValueError(f"a second stand-in for {name}, or too many")
        size = math.prod(shape) * _FLOAT32
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        memory = mmap.mmap(-1, max(size, _PAGE), flags=flags)
        tensor = torch.frombuffer(memory, dtype=torch.float32, count=size // _FLOAT32).reshape(shape)
        self.shapes[name] = shape
        self._values[name] = 1 + (2 * len(self._values) + 1) * _STEP
        self._names[tensor.data_ptr()] = name
        return torch.nn.Parameter(tensor, requires_grad=False)

    def lower(self) -> None:
        """Have litert-torch lower stand-ins to constants of one value, for the rest of the process."""
        upstream = inline_consts.tensor_lowering_placeholder_lowering

        @lowerings.lower(inline_consts.tensor_lowering_placeholder)  # type: ignore[untyped-decorator]
        def lowered(context: Any, tensor: Any) -> Any:
            name = self._names.get(tensor.data_ptr()) if tensor.numel() else None
            if name is None:
                return upstream(context, tensor)
            element = lowering_utils.torch_dtype_to_ir_element_type(tensor.dtype)
            kind = ir.RankedTensorType.get(tensor.shape, element)
            value = lowering_utils.splat_attr(self._values[name], kind.element_type, kind.shape)
            return inline_consts._build_const(value, kind)

    def open(self, model: Any) -> dict[str, frozenset[str]]:
        """Make every stand-in in a converted model an argument of its function, named as its weight.

        Returns the names by function. Raises ``TargetError`` if the converter changed a weight.
        """
        module = model._exporter.module
        root = module.operation if isinstance(module, ir.Module) else module
        known = {np.float32(value): name for name, value in self._values.items()}
        opened = {}
        with root.context, ir.Location.unknown():
            for function in list(root.regions[0].blocks[0].operations):
                operation = function.operation
                if operation.name == "func.func":
                    label = ir.StringAttr(operation.attributes["sym_name"]).value
                    opened[label] = self._open_function(operation, known)
        return opened

    def _open_function(self, function: Any, known: dict[np.float32, str]) -> frozenset[str]:
        block = function.regions[0].blocks[0]
        arguments: dict[str, Any] = {}
        for operation, value, kind in list(_splats(block)):
            name, shape = known.get(np.float32(value)), tuple(kind.shape)
            if name is None:
                continue
            if _long(shape) != _long(self.shapes[name]):
                raise TargetError(
                    f"the converter made {list(shape)} of {name}, which is {list(self.shapes[name])}"
                )
            if name not in arguments:
                arguments[name] = block.add_argument(kind, operation.location)
            elif tuple(ir.RankedTensorType(arguments[name].type).shape) != shape:
                raise TargetError(f"the converter uses {name} in two shapes")
            operation.results[0].replace_all_uses_with(arguments[name])
            operation.erase()
        _check_weights(block)
        if arguments:
            _declare(function, {name: argument.type for name, argument in arguments.items()})
        return frozenset(arguments)


def _splats(block: Any) -> Iterator[tuple[Any, float, Any]]:
    """Every float32 constant of one value in a function: its operation, the value and its type."""
    for one in list(block.operations):
        operation = one.operation
        if operation.name not in _CONSTANTS:
            continue
        try:
            dense = ir.DenseElementsAttr(operation.attributes["value"])
        except (ValueError, TypeError):  # bytes that MLIR holds elsewhere
            continue
        kind = ir.RankedTensorType(operation.results[0].type)
        if dense.is_splat and str(kind.element_type) == "f32":
            yield operation, ir.FloatAttr(dense.get_splat_value()).value, kind


def _check_weights(block: Any) -> None:
    """Refuse a function that still has a weight as a constant: one into which a factor was folded."""
    for one in block.operations:
        operation = one.operation
        if operation.name in _WEIGHTED:
            owner = operation.operands[1].owner  # the block for an argument
            if getattr(getattr(owner, "operation", owner), "name", None) in _CONSTANTS:
                kind = operation.operands[1].type
                raise TargetError(f"the converter changed a weight of type {kind}")


def _long(shape: tuple[int, ...]) -> list[int]:
    """Dimensions without those of 1: a product with one column becomes one by element."""
    return [size for size in shape if size > 1]


def _declare(function: Any, added: dict[str, Any]) -> None:
    """Tell a function's attributes of the arguments that its block has got."""
    attributes = function.attributes
    kind = ir.FunctionType(ir.TypeAttr(attributes["function_type"]).value)
    inputs = [*kind.inputs, *added.values()]
    attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, list(kind.results)))
    entry = {one.name: one.attr for one in ir.DictAttr(attributes["tf.entry_function"])}
    names = [ir.StringAttr(entry["inputs"]).value, *added]
    entry["inputs"] = ir.StringAttr.get(",".join(names))
    attributes["tf.entry_function"] = ir.DictAttr.get(entry)
    paths = [
        ir.DictAttr.get({"tf_saved_model.index_path": ir.ArrayAttr.get([ir.StringAttr.get(name)])})
        for name in added
    ]
    attributes["arg_attrs"] = ir.ArrayAttr.get([*ir.ArrayAttr(attributes["arg_attrs"]), *paths])
