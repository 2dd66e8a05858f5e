"""What a stored format is: it recognises a checkpoint and makes weights of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from converter.checkpoint.safetensors import SourceTensor
from converter.checkpoint.weight import Weight

_SECTIONS = ("quantization_config", "compression_config")


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """One way in which checkpoints store weights.

    ``describes`` is a phrase for messages. ``recognises(config)`` looks at the parsed ``config.json``.
    ``weights(tensors, expected)`` makes a weight of every text tensor it can; ``tensors`` maps canonical
    names to what is stored, ``expected`` are the names of the architecture. It returns the weights by
    canonical name and the names of the tensors that went into none; it raises ``CheckpointError``.
    """

    name: str
    describes: str
    recognises: Callable[[Mapping[str, object]], bool]
    weights: Callable[
        [Mapping[str, SourceTensor], Mapping[str, tuple[int, ...]]],
        tuple[dict[str, Weight], tuple[str, ...]],
    ]


def quantization_of(config: Mapping[str, object]) -> tuple[str, object] | None:
    """Where ``config.json`` says that weights are packed, and what it says; ``None`` where it does not."""
    text = config.get("text_config")
    for where, values in (("", config), ("text_config.", text)):
        for section in _SECTIONS:
            if isinstance(values, Mapping) and values.get(section) is not None:
                return f"{where}{section}", values[section]
    return None
