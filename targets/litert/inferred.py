"""The options with which a bundle was converted, as far as it shows them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from converter.checkpoint.canonical_names import HEAD
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError
from converter.system.untrusted import shown
from targets.litert.activations import STATIC, found_activations, projection
from targets.litert.bundle import read_sections
from targets.litert.functions import Content, read_content
from targets.litert.reading import open_models
from targets.litert.schema import BITS, GRAPH_BYTES, OPERATORS, TYPES, Model, Subgraph
from targets.litert.sections import EMBEDDER, MODEL, PREFILL_DECODE
from targets.litert.storage import OFF_LATTICE, holdings
from targets.litert.type_names import INT8
from targets.off_lattice import inferred_off_lattice

_PREFILL: Final = "prefill_"


def infer_options(artifact: Path, weights: Mapping[str, Weight]) -> dict[str, object]:
    """Prefill lengths, context and ``activations`` from the decoder's signatures, ``externalize_embedder``
    from the models, and ``off_lattice`` from the types of the ``weights`` on no lattice. Raises
    ``CheckpointError``."""
    models = open_models(artifact)
    kinds = [PREFILL_DECODE]
    if artifact.suffix == ".litertlm":
        kinds = [one.model_type or "" for one in read_sections(artifact) if one.kind == MODEL]
    if PREFILL_DECODE not in kinds:
        raise CheckpointError(f"{artifact}: holds no model {PREFILL_DECODE}")
    model = models[kinds.index(PREFILL_DECODE)]
    data = model.shard.read(model.start, min(model.size, GRAPH_BYTES), "the graph")
    content = read_content(data, model.size, artifact)
    options: dict[str, object] = {
        "prefill_lengths": _lengths(content, artifact),
        "context_length": _context(content, artifact),
        "externalize_embedder": EMBEDDER in kinds or _takes(content, "embeddings"),
        "activations": _activations(content, model, {*weights, HEAD}),
    }
    types = {
        tensor.name: TYPES[tensor.type]
        for one in models
        for subgraph in one.subgraphs
        for tensor in subgraph.tensors
        if tensor.type in TYPES
    }
    held = {option: holdings(type_name) for option, type_name in OFF_LATTICE.items()}
    return {**options, "off_lattice": inferred_off_lattice(weights.values(), types, held)}


def _lengths(content: Content, artifact: Path) -> list[int]:
    """The numbers of tokens that the prefills take, by their names."""
    names = [key.removeprefix(_PREFILL) for key in content.signatures if key.startswith(_PREFILL)]
    lengths = sorted(int(name) for name in names if name.isdecimal() and len(name) < 10)
    if not lengths:
        raise CheckpointError(f"{artifact}: has no signature {_PREFILL}N")
    return lengths


def _activations(content: Content, model: Model, weights: Collection[str]) -> str:
    """From the rows that products with codes of ``weights`` take in the function that decodes one token."""
    decode = content.signatures.get("decode")
    function = decode["function"] if isinstance(decode, dict) else 0
    graph = model.subgraphs[function] if function < len(model.subgraphs) else Subgraph((), ())
    rows: dict[int, set[str]] = {1: set(), 2: set()}
    static = False
    for operator in graph.operators:
        read = [graph.tensors[index] for index in operator.inputs[:2] if 0 <= index < len(graph.tensors)]
        if OPERATORS.get(operator.code) != "FULLY_CONNECTED" or len(read) != 2:
            continue
        values, weight = read
        count = math.prod(values.shape[:-1])
        if TYPES.get(weight.type) in BITS and weight.name in weights and count in rows:
            rows[count].add(projection(weight.name))
            static |= TYPES.get(values.type) == INT8
    return STATIC if static else found_activations(rows[1], rows[2])


def _takes(content: Content, name: str) -> bool:
    decode = content.signatures.get("decode")
    return isinstance(decode, dict) and f"input {name}" in decode


def _context(content: Content, artifact: Path) -> int:
    """The length of the mask, the last dimension of the decoder's input ``mask``."""
    decode = content.signatures.get("decode")
    if isinstance(decode, dict) and isinstance(index := decode.get("input mask"), int):
        function = decode["function"]
        if function < len(content.functions) and index < len(content.functions[function].tensors):
            shape = content.functions[function].tensors[index].fields["shape"]
            if isinstance(shape, tuple) and len(shape) == 4 and shape[-1] > 0:
                return int(shape[-1])
    raise CheckpointError(f"{artifact}: {shown('decode')} has no input mask [1, 1, 1, context]")
