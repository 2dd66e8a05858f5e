"""What a text model consists of: layers, shapes, and the tensors that a checkpoint must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from converter.checkpoint.parts import Part
from converter.system.untrusted import Settings

SLIDING, FULL = "sliding", "full"
#: Activations of an MLP: GELU by its tanh approximation, and SiLU.
GELU_TANH, SILU = "gelu_tanh", "silu"


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    index: int
    #: ``"sliding"`` or ``"full"``.
    attention: str
    heads: int
    kv_heads: int
    head_dim: int
    #: Width of the dense MLP.
    feed_forward: int
    #: Index of the layer whose keys and values are reused; ``None`` for a layer with its own.
    kv_source: int | None = None
    #: The K projection's output serves as V too.
    key_is_value: bool = False
    rope_theta: float = 10_000.0
    #: Share of the head's pairs that rotate: the first ones. Frequencies are spread over the whole head.
    rotary_fraction: float = 1.0
    #: Divides the frequencies.
    rope_scaling_factor: float = 1.0

    @property
    def rotated_pairs(self) -> int:
        """How many of the head's ``head_dim // 2`` pairs rotate."""
        return int(self.rotary_fraction * self.head_dim // 2)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts beside every layer's dense MLP."""

    count: int
    #: So many of the ``count`` are used per token.
    active: int
    feed_forward: int


@dataclass(frozen=True, slots=True)
class PerLayerInput:
    """Per-layer embeddings, looked up in a table."""

    #: Values per layer and token.
    size: int
    #: Rows of the table.
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """A text model as its configuration describes it: all that is true of it, whatever its family is.

    Canonical names are those of transformers' text model without the ``model.`` in front.
    """

    #: Name of who describes it, by which a target finds what it knows of such models.
    family: str
    model_type: str
    #: The ``model_type`` of the text model's own configuration.
    text_type: str
    vocabulary: int
    hidden: int
    layers: tuple[Layer, ...]
    norm_eps: float
    context: int
    #: In tokens; 0 if no layer has one.
    sliding_window: int
    #: Of every MLP: ``GELU_TANH`` or ``SILU``.
    activation: str
    #: Multiplies what is looked up in the embedding.
    embedding_scale: float
    #: Multiplies the scores of attention.
    attention_scale: float
    #: Added to every norm's stored weight before it multiplies: 1 in Gemma 3, 0 in Gemma 4.
    norm_offset: float
    tied_head: bool
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    #: Texts of tokens that end an answer even where the checkpoint does not say so.
    end_of_turn: tuple[str, ...]
    #: The ``temperature``, ``top_p`` and ``top_k`` that are recommended where the checkpoint says nothing.
    sampling: Mapping[str, float]
    #: Values go through an RMS norm without weights, over ``head_dim``.
    values_normed: bool = False
    final_softcap: float | None = None
    query_pre_attn_scalar: float | None = None
    experts: Experts | None = None
    per_layer_input: PerLayerInput | None = None
    #: Shape of every text tensor that the checkpoint must hold, by canonical name, in model order.
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: Canonical names of the norms' weights, to which ``norm_offset`` is added. A family without an offset
    #: may leave them out.
    norms: tuple[str, ...] = ()
    #: Canonical names of the routers' matrices, which decide which experts a token reaches. They stay
    #: float32.
    routers: tuple[str, ...] = ()
    #: Text tensors that the checkpoint may hold beside them, by canonical name, and why they are not
    #: converted.
    unused: Mapping[str, str] = field(default_factory=dict)
    #: What a source name may begin with before the canonical name, longest first.
    prefixes: tuple[str, ...] = ("",)
    #: What a checkpoint may hold beside the text model.
    parts: tuple[Part, ...] = ()

    def offset_of(self, name: str) -> float:
        """What the model adds to a weight before it multiplies: ``norm_offset`` to a norm, 0 to others."""
        return self.norm_offset if name in self.norms else 0.0

    @property
    def query_key_norms(self) -> bool:
        """Whether queries and keys of every head go through RMS norms with weights."""
        return "layers.0.self_attn.q_norm.weight" in self.tensors

    @property
    def post_norms(self) -> bool:
        """Whether outputs of attention and MLP are normed before they are added."""
        return "layers.0.post_feedforward_layernorm.weight" in self.tensors


@dataclass(frozen=True, slots=True)
class Family:
    """Architectures read by one function. They are registered in the entry-point group
    ``qatconvert.families`` under the name that they have as ``Architecture.family``."""

    #: The ``model_type`` of the configurations that ``read`` takes.
    model_types: tuple[str, ...]
    #: ``read(config, model_type)``; it raises ``CheckpointError``.
    read: Callable[[Settings, str], Architecture]
    #: The ``model_type`` of drafters that have a repository of their own. They are no models by themselves.
    drafters: tuple[str, ...] = ()
