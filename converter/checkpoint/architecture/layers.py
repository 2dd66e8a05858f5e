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
    """One decoder layer.

    ``attention`` is ``"sliding"`` or ``"full"``. ``feed_forward`` is the width of the dense MLP.
    ``kv_source`` is the index of the layer whose keys and values are reused, ``None`` for a layer with
    its own. ``key_is_value``: the K projection's output serves as V too. ``rotary_fraction`` is the
    share of the head's pairs that rotate (the first ones; frequencies are spread over the whole head), and
    ``rope_scaling_factor`` divides the frequencies.
    """

    index: int
    attention: str
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    kv_source: int | None = None
    key_is_value: bool = False
    rope_theta: float = 10_000.0
    rotary_fraction: float = 1.0
    rope_scaling_factor: float = 1.0

    @property
    def rotated_pairs(self) -> int:
        """How many of the head's ``head_dim // 2`` pairs rotate."""
        return int(self.rotary_fraction * self.head_dim // 2)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts beside every layer's dense MLP: ``active`` of ``count`` are used per token."""

    count: int
    active: int
    feed_forward: int


@dataclass(frozen=True, slots=True)
class PerLayerInput:
    """Per-layer embeddings: ``size`` values per layer and token of a table with ``vocabulary`` rows."""

    size: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """A text model as its configuration describes it: all that is true of it, whatever its family is.

    ``family`` is the name of who describes it, by which a target finds what it knows of such models, and
    ``text_type`` the ``model_type`` of the text model's own configuration. ``activation`` is that of every
    MLP, ``GELU_TANH`` or ``SILU``. What is looked up in the embedding is multiplied by ``embedding_scale``,
    the scores of attention by ``attention_scale``. ``norm_offset`` is added to every norm's stored weight
    before it multiplies (1 in Gemma 3, 0 in Gemma 4). ``values_normed``: values go through an RMS norm
    without weights, over ``head_dim``. ``sliding_window`` counts tokens, 0 if no layer has one.

    ``end_of_turn`` are the texts of tokens that end an answer even where the checkpoint does not say so, and
    ``sampling`` has the ``temperature``, ``top_p`` and ``top_k`` that are recommended where it says nothing.

    ``tensors`` maps the canonical name of every text tensor that the checkpoint must hold, in model order,
    to its shape; canonical names are those of transformers' text model without the ``model.`` in front.
    ``unused`` maps those that it may hold beside them to the reason why they are not converted. ``prefixes``
    are what a source name may begin with before the canonical name, longest first. ``parts`` are what a
    checkpoint may hold beside the text model.
    """

    family: str
    model_type: str
    text_type: str
    vocabulary: int
    hidden: int
    layers: tuple[Layer, ...]
    norm_eps: float
    context: int
    sliding_window: int
    activation: str
    embedding_scale: float
    attention_scale: float
    norm_offset: float
    tied_head: bool
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    end_of_turn: tuple[str, ...]
    sampling: Mapping[str, float]
    values_normed: bool = False
    final_softcap: float | None = None
    query_pre_attn_scalar: float | None = None
    experts: Experts | None = None
    per_layer_input: PerLayerInput | None = None
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ("",)
    parts: tuple[Part, ...] = ()

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
    """Architectures read by one function, registered in the entry-point group ``qatconvert.families`` under
    the name that they have as ``Architecture.family``.

    ``model_types`` are the ``model_type`` of the configurations that ``read(config, model_type)`` takes; it
    raises ``CheckpointError``.
    """

    model_types: tuple[str, ...]
    read: Callable[[Settings, str], Architecture]
