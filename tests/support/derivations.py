"""Wrong derivations: mistakes that a converter could make, seeded into this one.

Each makes one target write an artifact of which something is not what the checkpoint means: what its
architecture, tokenizer or template ask of the runtime, or a float tensor. The proof, which is given the
right checkpoint, has to notice.

A mistake is seeded in one of three places: in the copies of the files that a target reads (``edit``), in the
architecture that was made of them (``change``), or in the step that uses it (``patch``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.checkpoint.architecture import SLIDING, Architecture, Layer
from converter.checkpoint.opened import Checkpoint, open_checkpoint
from targets.target import find_target

#: What catches a mistake where the artifact is not compared with what the converter would write.
GRAPH, VALUES = "graph_kld", "exact_values"
TOKENS, PROMPTS, ENDS = "engine_same_tokens", "engine_same_prompts", "engine_same_ends"
#: What only the comparison itself catches: it costs less than float arithmetic does.
BUILT = "same_as_built"
_TARGETS = ("gguf", "onnx", "litert")

Json = dict[str, Any]


@dataclass(frozen=True)
class Derivation:
    """One mistake.

    ``gates`` maps each target in which it can be made to what catches it with ``same_as_built`` off:
    ``graph_kld``, ``exact_values`` (a float tensor that is not the checkpoint's), or what compares tokens,
    prompts or the tokens that end an answer; ``same_as_built`` if nothing else does. ``model`` is the
    checkpoint in which it shows: ``demo``, or a variant of ``checkpoints.generate``.
    """

    name: str
    gates: Mapping[str, str]
    model: str = "demo"
    edit: Callable[[Path], None] = lambda directory: None
    change: Callable[[Architecture], Architecture] = lambda architecture: architecture
    patch: Callable[[pytest.MonkeyPatch], None] = field(default=lambda patch: None)

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets in which the mistake can be made."""
        return tuple(self.gates)

    def write(self, target: str, checkpoint: Checkpoint, directory: Path, **options: object) -> Path:
        """Convert ``checkpoint`` with the mistake; the artifact's main file, below ``directory``."""
        read = open_checkpoint(self._copy(checkpoint.source.directory(), directory / "read"))
        wrong = replace(read, architecture=self.change(read.architecture))
        format = find_target(target)
        with self.seeded():
            plan = format.plan(wrong, "model", options)
            format.write(wrong, plan, directory)
        return directory / plan.artifacts[0]

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """The mistake in the steps of the converter, for as long as the context lasts."""
        with pytest.MonkeyPatch.context() as patch:
            self.patch(patch)
            yield

    def _copy(self, source: Path, destination: Path) -> Path:
        """The checkpoint's files as the converter gets them; weights are links."""
        destination.mkdir(parents=True)
        for file in source.iterdir():
            if file.suffix == ".safetensors":
                (destination / file.name).symlink_to(file.resolve())
            elif file.is_file():
                shutil.copyfile(file, destination / file.name)
        self.edit(destination)
        return destination


def _in_json(name: str, change: Callable[[Json], None], directory: Path) -> None:
    document = json.loads((directory / name).read_text("utf-8"))
    change(document)
    (directory / name).write_text(json.dumps(document, ensure_ascii=False), "utf-8")


def _in_config(change: Callable[[Json], None]) -> Callable[[Path], None]:
    """An edit of the text part of ``config.json``."""
    return partial(_in_json, "config.json", lambda config: change(config.get("text_config", config)))


def _with(**values: object) -> Callable[[Path], None]:
    """Other values of keys of the text part of ``config.json``."""
    return _in_config(lambda text: text.update(values))


def _with_rope(kind: str, **values: float) -> Callable[[Path], None]:
    return _in_config(lambda text: text["rope_parameters"][f"{kind}_attention"].update(values))


def _everywhere(gate: str, *targets: str) -> dict[str, str]:
    return dict.fromkeys(targets or _TARGETS, gate)


def _other_source(architecture: Architecture) -> Architecture:
    """Sliding layers that share read the keys and values of an earlier layer of their kind."""
    own = [one.index for one in architecture.layers if one.kv_source is None and one.attention == SLIDING]

    def moved(layer: Layer) -> Layer:
        shares = layer.kv_source is not None and layer.attention == SLIDING
        return replace(layer, kv_source=own[-2]) if shares else layer

    return replace(architecture, layers=tuple(map(moved, architecture.layers)))


def _factor(table: str, factor: float, patch: pytest.MonkeyPatch) -> None:
    """Another factor behind an embedding in ONNX."""
    from targets.onnx import graph

    original = graph._Leaves.embedding

    def embedding(leaves: Any, name: str, right: float) -> Any:
        return original(leaves, name, right * factor if name == table else right)

    patch.setattr(graph._Leaves, "embedding", embedding)


def _raw_values(patch: pytest.MonkeyPatch) -> None:
    """Values that no norm precedes, in ONNX."""
    patch.setattr("targets.onnx.attention.Attention._unit_norm", lambda attention, op, x: x)


def _in_graph(change: Callable[[Any], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """A mistake in the built ONNX graph (``onnx_ir.Graph``)."""

    def patch(patch: pytest.MonkeyPatch) -> None:
        from targets.onnx import graph

        original = graph.build_graph

        def build(*arguments: Any) -> Any:
            model = original(*arguments)
            change(model.graph)
            return model

        patch.setattr(graph, "build_graph", build)

    return patch


def _inputs(graph: Any, name: str) -> list[tuple[Any, int]]:
    """Nodes that read an initialiser whose name ends with ``name``, and the index among their inputs."""
    return [
        (node, index)
        for node in graph.all_nodes()
        for index, value in enumerate(node.inputs)
        if value is not None and value.name and value.name.endswith(name)
    ]


def _exchange(first: str, second: str, graph: Any) -> None:
    """Two norms of a graph in each other's place."""
    places = [_inputs(graph, name) for name in (first, second)]
    values = [nodes[0][0].inputs[nodes[0][1]] for nodes in places]
    for nodes, value in zip(places, reversed(values), strict=True):
        for node, index in nodes:
            node.replace_input_with(index, value)


def _ones_for(ending: str, graph: Any) -> None:
    """Ones where a graph reads scales, which stay in the file and have a use."""
    from onnxscript import GraphBuilder

    places = _inputs(graph, ending)
    assert places, ending
    op = GraphBuilder(graph).op
    for node, index in places:
        ones = op.Add(op.Mul(node.inputs[index], 0.0), 1.0)
        node.replace_input_with(index, ones)
    graph.sort()


def _stored(ending: str, change: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Other numbers in a float tensor of a GGUF."""

    def patch(patch: pytest.MonkeyPatch) -> None:
        from targets.gguf import writing

        original = writing.encode

        def encode(weight: Any, format: str, start: int, stop: int, add: float) -> Any:
            if weight.name.endswith(ending):
                floats = weight.floats
                weight = replace(weight, floats=lambda first, last: change(floats(first, last)))
            return original(weight, format, start, stop, add)

        patch.setattr(writing, "encode", encode)

    return patch


def _both(*patches: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Mistakes in several targets, of which each meets its own."""

    def patch(patch: pytest.MonkeyPatch) -> None:
        for one in patches:
            one(patch)

    return patch


def _exchanged_names(first: str, second: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Two tensors of a GGUF under each other's name."""

    def patch(patch: pytest.MonkeyPatch) -> None:
        from targets.gguf import artifact

        original = artifact.tensor_names

        def names(*arguments: Any) -> dict[str, str]:
            found = original(*arguments)
            found[first], found[second] = found[second], found[first]
            return found

        patch.setattr(artifact, "tensor_names", names)

    return patch


def _rounded(values: Any) -> Any:
    """Numbers of three bits behind the first, as of an 8-bit float."""
    mantissas, exponents = np.frexp(values)
    return np.ldexp(np.round(mantissas * 16) / 16, exponents).astype(np.float32)


def _token_type(content: str, type: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Another type of one token in a GGUF."""

    def patch(patch: pytest.MonkeyPatch) -> None:
        import gguf

        from targets.gguf import vocabulary

        original = vocabulary.token_types

        def types(tokenizer: Any, visible: Any) -> list[int]:
            found = original(tokenizer, visible)
            found[tokenizer.tokens.index(content)] = gguf.TokenType[type]
            return found

        patch.setattr(vocabulary, "token_types", types)

    return patch


def _swapped_merges(tokenizer: Json) -> None:
    merges = tokenizer["model"]["merges"]
    place = next(index for index, pair in enumerate(merges) if list(pair) == ["h", "e"])
    merges[place], merges[-1] = merges[-1], merges[place]


def _edited_template(directory: Path) -> None:
    path = directory / "chat_template.jinja"
    text = path.read_text("utf-8")
    changed = text.replace("<turn|>", "<turn|> ")
    assert changed != text
    path.write_text(changed, "utf-8")


def _other_end(directory: Path) -> None:
    """``<unk>`` ends an answer instead of ``<eos>``."""
    ids: Json = {"eos_token_id": [3, 16]}
    _in_json("generation_config.json", lambda document: document.update(ids), directory)
    _in_json("tokenizer_config.json", lambda document: document.update(eos_token="<unk>"), directory)
    _in_json("config.json", lambda document: document.update(ids), directory)


def _one_sliding_more(text: Json) -> None:
    kinds: list[str] = text["layer_types"]
    kinds[kinds.index("full_attention")] = "sliding_attention"


_NORMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
_FIRST = tuple(f"layers.0.{name}" for name in _NORMS)
_TABLE, _PER_LAYER = "embed_tokens.weight", "embed_tokens_per_layer.weight"

DERIVATIONS: Sequence[Derivation] = (
    Derivation("epsilon-times-10", _everywhere(BUILT), edit=_with(rms_norm_eps=1e-5)),
    Derivation("epsilon-1e-3", _everywhere(GRAPH), edit=_with(rms_norm_eps=1e-3)),
    Derivation("rope-base-full", _everywhere(GRAPH), edit=_with_rope("full", rope_theta=1.1e6)),
    Derivation("rope-base-sliding", _everywhere(GRAPH), edit=_with_rope("sliding", rope_theta=1.1e4)),
    Derivation("rope-factor", _everywhere(GRAPH), edit=_with_rope("full", factor=1.1)),
    Derivation("rotated-pairs", _everywhere(GRAPH), edit=_with_rope("full", partial_rotary_factor=0.5)),
    Derivation("window-65", _everywhere(GRAPH), edit=_with(sliding_window=65)),
    Derivation("window-32", _everywhere(GRAPH), edit=_with(sliding_window=32)),
    Derivation("softcap-33", _everywhere(GRAPH), edit=_with(final_logit_softcapping=33.0)),
    Derivation("softcap-none", _everywhere(GRAPH), edit=_with(final_logit_softcapping=None)),
    Derivation(
        "query-scale", _everywhere(GRAPH, "onnx", "litert"), "gemma3-text", _with(query_pre_attn_scalar=30)
    ),
    Derivation("attention-pattern", _everywhere(GRAPH), "gemma3-text", _in_config(_one_sliding_more)),
    Derivation("kv-source", _everywhere(GRAPH, "onnx"), change=_other_source),
    Derivation(
        "attention-scale",
        _everywhere(GRAPH, "onnx"),
        change=lambda architecture: replace(architecture, attention_scale=1.05),
    ),
    Derivation(
        "norm-offset",
        {"gguf": VALUES, "onnx": GRAPH},
        "gemma3-text",
        change=lambda architecture: replace(architecture, norm_offset=0.0),
    ),
    Derivation(
        "norms-exchanged",
        {"gguf": VALUES, "onnx": GRAPH},
        patch=_both(_exchanged_names(*_FIRST), _in_graph(partial(_exchange, *_FIRST))),
    ),
    Derivation("embedding-factor", _everywhere(GRAPH, "onnx"), patch=partial(_factor, _TABLE, 1.01)),
    Derivation("per-layer-input-factor", _everywhere(GRAPH, "onnx"), patch=partial(_factor, _PER_LAYER, 1.1)),
    Derivation("value-norm", _everywhere(GRAPH, "onnx"), patch=_raw_values),
    Derivation(
        "layer-scalar",
        {"gguf": VALUES, "onnx": GRAPH},
        patch=_both(
            _stored("layers.0.layer_scalar", np.ones_like),
            _in_graph(partial(_ones_for, "layers.0.layer_scalar")),
        ),
    ),
    Derivation(
        "router-scale-dropped",
        {"gguf": VALUES, "onnx": GRAPH},
        "26b-a4b",
        patch=_both(_stored("router.scale", np.ones_like), _in_graph(partial(_ones_for, "router.scale"))),
    ),
    Derivation("router-scale-rounded", {"gguf": VALUES}, "26b-a4b", patch=_stored("router.scale", _rounded)),
    Derivation(
        "expert-scale-dropped",
        {"gguf": VALUES, "onnx": GRAPH},
        "26b-a4b",
        patch=_both(
            _stored("router.per_expert_scale", np.ones_like),
            _in_graph(partial(_ones_for, "router.per_expert_scale")),
        ),
    ),
    Derivation(
        "merges-exchanged", _everywhere(TOKENS), edit=partial(_in_json, "tokenizer.json", _swapped_merges)
    ),
    Derivation("token-hidden", {"gguf": TOKENS}, patch=_token_type("<|channel>", "CONTROL")),
    Derivation("token-shown", {"gguf": TOKENS}, patch=_token_type("<|turn>", "USER_DEFINED")),
    Derivation("token-cut-out", {"gguf": TOKENS}, patch=_token_type("he", "USER_DEFINED")),
    Derivation("template-edited", _everywhere(PROMPTS), edit=_edited_template),
    Derivation("end-token", _everywhere(ENDS), edit=_other_end),
)
