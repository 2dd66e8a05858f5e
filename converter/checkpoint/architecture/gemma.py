"""What Gemma 3 and 4 have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from converter.checkpoint.architecture.layers import GELU_TANH
from converter.checkpoint.special_tokens import GEMMA3_TURN_END, TURN_END
from converter.system.untrusted import Settings

#: Tokens that end a turn, by text: Gemma 4's and Gemma 3's.
END_OF_TURN: Final = (TURN_END, GEMMA3_TURN_END)
#: Google's recommendation for both, where a checkpoint has no ``generation_config.json``.
SAMPLING: Final = {"temperature": 1.0, "top_p": 0.95, "top_k": 64}
#: The four norms around attention and MLP.
LAYER_NORMS: Final = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)

_NORM: Final = re.compile(r".*norm(_\d+)?\.weight")


def norms(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the canonical ``names`` that are weights of norms, in order."""
    return tuple(name for name in names if _NORM.fullmatch(name))


def mlp_activation(text: Settings) -> str:
    """The activation of the MLP; raises ``CheckpointError`` for another one than every Gemma has."""
    text.require("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    return GELU_TANH
