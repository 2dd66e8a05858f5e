"""Small TFLite graphs that take their weights as arguments, and what LiteRT computes with them."""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

FLOAT, INT = schema.TensorType.FLOAT32, schema.TensorType.INT32


class Function:
    """One function under construction."""

    def __init__(self, model, key):
        self.model, self.key = model, key
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.name = [], [], key.encode()
        self.inputs, self.outputs = [], []
        model.subgraphs.append(self.graph)

    def tensor(self, name, shape, type=FLOAT, data=None):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.hasRank = name.encode(), list(shape), type, True
        tensor.buffer = 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def argument(self, name, shape, type=FLOAT):
        for index in self.inputs:
            if self.graph.tensors[index].name == name.encode():
                return index
        self.inputs.append(self.tensor(name, shape, type))
        return self.inputs[-1]

    def result(self, name, shape):
        self.outputs.append(self.tensor(name, shape))
        return self.outputs[-1]

    def operator(self, name, inputs, outputs, options=None, kind=0, version=1):
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, outputs
        operator.builtinOptions, operator.builtinOptionsType = options, kind
        self.graph.operators.append(operator)

    def product(self, x, name, rows, columns, out, activation=0):
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = activation
        weight = self.argument(name, (rows, columns))
        kind = schema.BuiltinOptions.FullyConnectedOptions
        self.operator("FULLY_CONNECTED", [x, weight, -1], [out], options, kind, 5)

    def multiply(self, name, rows, columns, count, activation=0):
        """Input ``x:<name>`` ``[count, columns]`` to output ``y:<name>``, behind a fused ``activation``."""
        x = self.argument(f"x:{name}", (count, columns))
        self.product(x, name, rows, columns, self.result(f"y:{name}", (count, rows)), activation)

    def look_up(self, name, rows, columns, count):
        """Input ``i:<name>`` ``[count]`` to output ``e:<name>`` ``[count, columns]``."""
        index, table = self.argument(f"i:{name}", (count,), INT), self.argument(name, (rows, columns))
        out = self.result(f"e:{name}", (count, columns))
        self.operator("EMBEDDING_LOOKUP", [index, table], [out], version=4)

    def scale(self, name, size, data):
        """A vector constant without a name of its own."""
        x, vector = self.argument(f"x:{name}", (size,)), self.tensor("arith.constant", (size,), FLOAT, data)
        out, options = self.result(f"y:{name}", (size,)), schema.MulOptionsT()
        self.operator("MUL", [x, vector], [out], options, schema.BuiltinOptions.MulOptions)


def graph(*builders, names=()):
    """A flatbuffer with a function for each ``builder(function)``, named ``function_0`` and so on."""
    model = schema.ModelT()
    model.version, model.description = 3, b""
    model.buffers, model.operatorCodes, model.subgraphs = [schema.BufferT()], [], []
    model.signatureDefs = []
    for number, build in enumerate(builders):
        function = Function(model, names[number] if names else f"function_{number}")
        build(function)
        function.graph.inputs, function.graph.outputs = function.inputs, function.outputs
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = function.key.encode(), number
        for field, tensors in (("inputs", function.inputs), ("outputs", function.outputs)):
            setattr(signature, field, [_named(function, index) for index in tensors])
        model.signatureDefs.append(signature)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _named(function, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = function.graph.tensors[index].name, index
    return entry


def run(path, function=0, **inputs):
    """Outputs of a function by name; XNNPACK computes what it can."""
    runner = Interpreter(model_path=str(path)).get_signature_runner(f"function_{function}")
    return runner(**inputs)
