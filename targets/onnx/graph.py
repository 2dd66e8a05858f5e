"""The ONNX graph: mobius's modules with this project's leaves in them."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

import onnx_ir as ir
from mobius import (
    OPSET_VERSION,
    ArchitectureConfig,
    EpCapabilities,
    ModelPackage,
    ModelTask,
    build_from_module,
    register_ep,
)
from onnxscript import GraphBuilder, OpBuilder, nn

from converter.checkpoint.architecture import Architecture, Layer
from converter.checkpoint.architecture import Experts as Sizes
from converter.checkpoint.canonical_names import EMBEDDING, HEAD, PER_LAYER_EMBEDDING
from converter.checkpoint.weight import Scales
from targets.onnx.attention import Attention, NoRotations, Positions
from targets.onnx.configuration import mobius_values
from targets.onnx.experts import Experts
from targets.onnx.external import name_data
from targets.onnx.family import onnx_family
from targets.onnx.layout import Layout
from targets.onnx.modules import (
    MICROSOFT,
    Embedding,
    FloatEmbedding,
    FloatProjection,
    Gridded,
    Head,
    Projection,
    Router,
    TiedProjection,
)
from targets.onnx.storage import Storage

#: The one set of capabilities that this project builds for: GroupQueryAttention in both float types, nothing
#: that packs or moves weights, and no ``MoE`` operator.
_PROVIDER = EpCapabilities(
    name="qatconvert",
    gqa_dtypes=frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16}),
    supports_fused_moe=False,
)


#: Of ONNX's file format; 11 came with opset 23, whose RotaryEmbedding and RMSNormalization are used.
_IR_VERSION: Final = 11
#: Domain of the node that holds the experts' place while mobius's passes run.
_STAND_IN: Final = "qatconvert.stand-in"


class _Leaves:
    """Makes the module of each weight from the type that the plan gives it."""

    def __init__(
        self,
        architecture: Architecture,
        types: Mapping[str, str],
        storage: Storage,
        grids: Mapping[str, Scales],
    ) -> None:
        self._architecture, self._types, self._storage = architecture, types, storage
        self._grids = grids
        self._held, self._level = storage.held, storage.accuracy_level or 0

    def projection(self, name: str) -> nn.Module:
        return self.gridded(self._made(self._architecture.tensors[name], self._types[name], None), name)

    def gridded(self, product: nn.Module, name: str) -> nn.Module:
        """The product with the weight ``name``, with the grids of its module if there are any."""
        scales = self._grids.get(name.rpartition(".")[0])
        return product if scales is None else Gridded(product, scales)

    def expert(self, prefix: str) -> Callable[[int, str], nn.Module]:
        def made(index: int, kind: str) -> nn.Module:
            name = f"{prefix}{kind}"
            shape = self._architecture.tensors[name][1:]
            return self._made(shape, self._types[name], f"{index}.{kind}")

        return made

    def _made(self, shape: tuple[int, ...], type_name: str, name: str | None) -> nn.Module:
        if coded := self._held.find(type_name):
            return Projection(shape, coded, self._storage.scales, self._level, name)
        return FloatProjection(shape, type_name, name)

    def embedding(self, name: str, factor: float) -> Embedding | FloatEmbedding:
        shape, type_name = self._architecture.tensors[name], self._types[name]
        if coded := self._held.find(type_name):
            return Embedding(shape, coded, self._storage.scales, factor, self._storage.dtype)
        return FloatEmbedding(shape, type_name, factor, self._storage.dtype)

    def head(self, embedding: Embedding | FloatEmbedding) -> Head:
        tied = self._architecture.tied_head
        projection = (
            self.gridded(TiedProjection(embedding, self._level), HEAD) if tied else self.projection(HEAD)
        )
        head = Head(projection, self._architecture.final_softcap)
        head._set_name("model.lm_head")
        return head


def serialized_graph(
    architecture: Architecture,
    layout: Layout,
    storage: Storage,
    options: Mapping[str, object],
    grids: Mapping[str, Scales],
) -> bytes:
    """``model.onnx``: the graph of a text model whose weights lie beside it as ``layout`` says.

    What modules take and give is rounded to their ``grids``. Of ``options``, ``license``, ``repo`` and
    ``revision`` become metadata. Equal arguments give equal bytes.
    """
    model = build_graph(
        architecture, {name: place.tensor.type for name, place in layout.places.items()}, storage, grids
    )
    name_data(model.graph, architecture, layout)
    model.producer_name, model.producer_version = "qatconvert", version("qatconvert")
    for key in ("license", "repo", "revision"):
        if options.get(key):
            model.metadata_props[key] = str(options[key])
    serialized: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return serialized


def build_graph(
    architecture: Architecture, types: Mapping[str, str], storage: Storage, grids: Mapping[str, Scales]
) -> ir.Model:
    """The graph of a text model whose weights are stored in ``types`` (canonical name to type), with the
    static ``grids`` of its modules.

    Its initializers are named as ``targets.onnx.storage`` says and carry no data.
    """
    register_ep(_PROVIDER, overwrite=True)
    values = mobius_values(architecture, storage.dtype)
    module, configuration = onnx_family(architecture).build(architecture, values)
    leaves = _Leaves(architecture, types, storage, grids)
    _replace_leaves(module, architecture, leaves)
    with _quiet():
        package = build_from_module(
            module, configuration, _TextTask(architecture), execution_provider=_PROVIDER.name
        )
    model = package["model"]
    _put_experts(model.graph, architecture, leaves)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # names of modules and classes, more bytes than all else
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of mobius's passes: they find no data and do not know onnxruntime's operators."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _replace_leaves(module: nn.Module, architecture: Architecture, leaves: _Leaves) -> None:
    text = module.model
    text.embed_tokens = leaves.embedding(EMBEDDING, architecture.embedding_scale)
    for name in ("rotary_emb", "rotary_emb_local", "rotary_emb_global"):
        if hasattr(text, name):
            setattr(text, name, NoRotations())
    if architecture.per_layer_input:
        factor = architecture.per_layer_input.size**0.5
        text.embed_tokens_per_layer = leaves.embedding(PER_LAYER_EMBEDDING, factor)
        text.per_layer_model_projection = leaves.projection("per_layer_model_projection.weight")
    positions = Positions()
    for layer in architecture.layers:
        _replace_layer(text.layers[layer.index], architecture, layer, positions, leaves)
    module.lm_head = leaves.head(text.embed_tokens)


def _replace_layer(
    decoder: nn.Module, architecture: Architecture, layer: Layer, positions: Positions, leaves: _Leaves
) -> None:
    prefix = f"layers.{layer.index}."
    decoder.self_attn = Attention(architecture, layer, positions, leaves.projection)
    for kind in ("gate_proj", "up_proj", "down_proj"):
        setattr(decoder.mlp, kind, leaves.projection(f"{prefix}mlp.{kind}.weight"))
    if architecture.per_layer_input:
        for kind in ("per_layer_input_gate", "per_layer_projection"):
            setattr(decoder, kind, leaves.projection(f"{prefix}{kind}.weight"))
    if architecture.experts:
        _replace_experts(decoder, architecture.experts, architecture, layer.index)
        for name in architecture.routers:
            if name.startswith(prefix):
                decoder.router.proj = leaves.gridded(decoder.router.proj, name)


def _replace_experts(decoder: nn.Module, experts: Sizes, architecture: Architecture, layer: int) -> None:
    """A router of this project, and a stand-in for the experts, in place of mobius's dispatch, which it calls
    where there is no ``MoE`` operator."""
    decoder.router = Router(experts.count, architecture.hidden, architecture.norm_eps)
    for name in ("fc1_experts_weights", "fc2_experts_weights"):
        del decoder._parameters[name]

    def dispatch(self: nn.Module, op: OpBuilder, x: ir.Value, probabilities: ir.Value) -> ir.Value:
        output = op.Experts(x, probabilities, self.router.per_expert_scale, layer=layer, _domain=_STAND_IN)
        output.dtype, output.shape = x.dtype, x.shape
        return output

    decoder._dispatch_moe_fallback = types.MethodType(dispatch, decoder)


def _put_experts(graph: ir.Graph, architecture: Architecture, leaves: _Leaves) -> None:
    """Experts in place of their stand-ins. They come after mobius's passes, whose symbolic inference of
    shapes takes a minute for the thousands of nodes of a large mixture and finds nothing that onnxruntime
    needs."""
    if architecture.experts is None:
        return
    builder = GraphBuilder(graph)
    for node in [node for node in graph if node.domain == _STAND_IN]:
        layer = node.attributes["layer"].as_int()
        experts = Experts(architecture.experts, leaves.expert(f"layers.{layer}.experts."))
        experts._set_name(f"model.layers.{layer}.experts")
        output = experts(builder.op, *node.inputs)
        ir.convenience.replace_all_uses_with(node.outputs, [output])
        graph.remove(node, safe=True)
    graph.opset_imports.pop(_STAND_IN, None)
    graph.sort()


class _TextTask(ModelTask):
    """Inputs and outputs of a text model whose layers each say what their KV cache looks like."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture

    def build(self, module: nn.Module, config: ArchitectureConfig) -> ModelPackage:
        imports = {"": OPSET_VERSION, MICROSOFT: 1}
        graph = ir.Graph([], [], nodes=[], name="decoder", opset_imports=imports)
        builder = GraphBuilder(graph)
        whole, ids = ir.DataType.INT64, ["batch", "sequence"]
        input_ids = builder.input("input_ids", dtype=whole, shape=ids)
        mask = builder.input("attention_mask", dtype=whole, shape=["batch", "total_sequence"])
        positions = builder.input("position_ids", dtype=whole, shape=ids)
        owners = [layer for layer in self._architecture.layers if layer.kv_source is None]
        past = [
            tuple(
                builder.input(
                    f"past_key_values.{index}.{kind}",
                    dtype=config.dtype,
                    shape=["batch", layer.kv_heads, "past_sequence", layer.head_dim],
                )
                for kind in ("key", "value")
            )
            for index, layer in enumerate(owners)
        ]
        logits, present = module(
            builder.op,
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
        )
        builder.add_output(logits, "logits")
        for index, pair in enumerate(present):
            for kind, value in zip(("key", "value"), pair, strict=True):
                builder.add_output(value, f"present.{index}.{kind}")
        return ModelPackage({"model": ir.Model(graph, ir_version=_IR_VERSION)}, config=config)
