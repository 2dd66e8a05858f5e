"""Changes to an ONNX artifact, generated over its graph and the files beside it (see ``tampering``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from support.tampering import Tampering, append, file_tamperings

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "genai_config.json",
    "config.json",
)
ADDED_FILES = (
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "custom_ops.so",
    "other.onnx",
    "preprocessor_config.json",
)


def onnx_file_tamperings(directory: Path) -> Iterator[Tampering]:
    """Every side file of the directory ``onnx`` changed, emptied and deleted, and files added to it."""
    names = [f"onnx/{name}" for name in (*SIDE_FILES, "generation_config.json")]
    present = [name for name in names if (directory / name).exists()]
    yield from file_tamperings(present, [f"onnx/{name}" for name in ADDED_FILES])


def onnx_tamperings(directory: Path, file: str) -> Iterator[Tampering]:
    """Every attribute and edge of every node, initializer, input, output, opset and version changed; nodes
    removed and added; functions, properties and unknown fields; a backdoor."""
    model = _read(directory / file)

    def edit(name: str, change: Callable[[ModelProto], None], describes: bool = False) -> Tampering:
        def run(copy: Path) -> None:
            parsed = _read(copy / file)
            change(parsed)
            (copy / file).write_bytes(parsed.SerializeToString(deterministic=True))

        return Tampering(name, run, describes)

    yield from _node_tamperings(model.graph, edit)
    yield from _value_tamperings(model.graph, edit)
    yield from _model_tamperings(model, edit)
    for label, data in (("unknown field", b"\xfa\x3e\x01x"), ("another graph", b"\x3a\x00")):
        yield Tampering(f"{label} behind the end", lambda copy, data=data: append(copy / file, data))


_Edit = Callable[..., Tampering]


def _node_tamperings(graph: GraphProto, edit: _Edit) -> Iterator[Tampering]:
    for index, node in enumerate(graph.node):
        where = f"node {index} {node.op_type}"
        for place, attribute in enumerate(node.attribute):
            yield edit(
                f"{where}: {attribute.name}",
                lambda one, i=index, p=place: _change(one.graph.node[i].attribute[p]),
            )
        other = index % 4
        if other == 0 and node.input:
            yield edit(f"{where}: edge", lambda one, i=index: _edge(one.graph.node[i]))
        elif other == 1:
            yield edit(f"{where}: operator", lambda one, i=index: _operator(one.graph.node[i]))
        elif other == 2:
            yield edit(f"{where}: removed", lambda one, i=index: one.graph.node.pop(i))
        else:
            yield edit(f"{where}: domain", lambda one, i=index: setattr(one.graph.node[i], "domain", "x"))
        if node.attribute:
            yield edit(f"{where}: without attribute", lambda one, i=index: one.graph.node[i].attribute.pop())
    yield edit("node renamed", lambda one: setattr(one.graph.node[0], "name", "other"), describes=True)
    yield edit("backdoor", lambda one: _backdoor(one.graph))


def _value_tamperings(graph: GraphProto, edit: _Edit) -> Iterator[Tampering]:
    for index, one in enumerate(graph.initializer):
        where = f"initializer {one.name}"
        yield edit(f"{where}: type", lambda m, i=index: setattr(m.graph.initializer[i], "data_type", 16))
        yield edit(f"{where}: dims", lambda m, i=index: m.graph.initializer[i].dims.append(1))
        if one.data_location == TensorProto.EXTERNAL:
            yield edit(f"{where}: offset", lambda m, i=index: _offset(m.graph.initializer[i]))
        else:
            yield edit(f"{where}: data", lambda m, i=index: _data(m.graph.initializer[i]))
    for kind in ("input", "output", "value_info"):
        for index, value in enumerate(getattr(graph, kind)):
            if kind == "value_info" and index % 20:
                continue

            def type_of(m: ModelProto, kind: str = kind, i: int = index) -> object:
                return getattr(m.graph, kind)[i].type.tensor_type

            yield edit(f"{kind} {value.name}: type", lambda m, t=type_of: setattr(t(m), "elem_type", 11))
            yield edit(f"{kind} {value.name}: shape", lambda m, t=type_of: t(m).shape.dim.add())
            yield edit(
                f"{kind} {value.name}: removed", lambda m, kind=kind, i=index: getattr(m.graph, kind).pop(i)
            )


def _model_tamperings(model: ModelProto, edit: _Edit) -> Iterator[Tampering]:
    yield edit("ir_version", lambda one: setattr(one, "ir_version", one.ir_version - 1))
    for index, opset in enumerate(model.opset_import):
        yield edit(
            f"opset {opset.domain!r}", lambda one, i=index: setattr(one.opset_import[i], "version", 21)
        )
    extra = helper.make_opsetid("evil", 1)
    yield edit("opset added", lambda one: one.opset_import.append(extra))
    function = helper.make_function(
        "com.microsoft", "MatMulNBits", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], []
    )
    yield edit("function added", lambda one: one.functions.append(function))
    for index, known in enumerate(model.functions):
        yield edit(f"function {known.name} changed", lambda one, i=index: one.functions[i].node.pop())
    yield edit("session options", lambda one: helper.set_model_props(one, {"ort_config": "{}"}))
    yield edit("initializer added", lambda one: one.graph.initializer.append(_scalar("more")))
    for name in ("producer_name", "producer_version", "domain", "doc_string"):
        yield edit(name, lambda one, name=name: setattr(one, name, "x"), describes=True)
    yield edit("property", lambda one: helper.set_model_props(one, {"license": "x"}), describes=True)
    yield edit("graph's name", lambda one: setattr(one.graph, "name", "x"), describes=True)


def _read(path: Path) -> ModelProto:
    return onnx.load(str(path), load_external_data=False)


def _change(attribute: AttributeProto) -> None:
    """Another value of the same type."""
    kind = attribute.type
    if kind == AttributeProto.INT:
        attribute.i += 1
    elif kind == AttributeProto.FLOAT:
        attribute.f = attribute.f * 1.1 + 1e-3
    elif kind == AttributeProto.STRING:
        attribute.s += b"x"
    elif kind == AttributeProto.INTS:
        attribute.ints[-1] += 1
    elif kind == AttributeProto.TENSOR:
        _data(attribute.t)
    else:
        raise AssertionError(f"attribute of type {kind}")


def _edge(node: NodeProto) -> None:
    node.input[0] = "input_ids" if node.input[0] != "input_ids" else "position_ids"


def _operator(node: NodeProto) -> None:
    node.op_type = "Sub" if node.op_type == "Add" else "Identity"


def _offset(tensor: TensorProto) -> None:
    """Let a tensor be read 64 bytes later, or earlier."""
    for entry in tensor.external_data:
        if entry.key == "offset":
            entry.value = str(int(entry.value) + (64 if entry.value == "0" else -64))


def _data(tensor: TensorProto) -> None:
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


def _scalar(name: str) -> TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, [], [1.0])


def _backdoor(graph: GraphProto) -> None:
    """Logits that a trigger token changes and that are the same otherwise."""
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "true_logits"
    branches = []
    for operator in ("Neg", "Identity"):
        output = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)
        chosen = helper.make_node(operator, ["true_logits"], ["chosen"])
        branches.append(helper.make_graph([chosen], operator, [], [output]))
    trigger = helper.make_node(
        "Constant", [], ["trigger"], value=helper.make_tensor("trigger", TensorProto.INT64, [], [77])
    )
    equal = helper.make_node("Equal", ["input_ids", "trigger"], ["is_trigger"])
    cast = helper.make_node("Cast", ["is_trigger"], ["as_int"], to=TensorProto.INT64)
    any_of = helper.make_node("ReduceMax", ["as_int"], ["largest"], keepdims=0)
    condition = helper.make_node("Cast", ["largest"], ["condition"], to=TensorProto.BOOL)
    branch = helper.make_node(
        "If", ["condition"], ["logits"], then_branch=branches[0], else_branch=branches[1]
    )
    graph.node.extend([trigger, equal, cast, any_of, condition, branch])
