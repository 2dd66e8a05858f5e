"""An excerpt of a model: its first layers of every kind, for a model that is too large to be run whole.

It begins with the model's first layers that have keys and values of their own. They go up to where every kind
of them has occurred and the last ones stand as the model's last ones do. That is because layers that share
keys and values take those of the last layers with their own. Behind them come the first sharing layers of
every kind, which so read other keys and values than in the model. An excerpt is no model that anybody
trained. It is computed by the same rules, and two programs must agree on it as they must on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.architecture import Architecture, Layer
from converter.errors import CheckpointError

#: Rows of a tensor from ``start`` to ``stop``: an array ``[stop - start, columns]``.
Rows = Callable[[int, int], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Which layers of a model an excerpt keeps."""

    #: Indices of the kept layers, ascending.
    layers: tuple[int, ...]
    #: Number of the model's layers.
    of: int
    #: How many of these have keys and values of their own: the first ones.
    own: int
    #: ``"sliding"`` or ``"full"`` of each of the model's layers.
    attention: tuple[str, ...]

    @property
    def sharing(self) -> int:
        """How many of the kept layers share keys and values."""
        return sum(layer >= self.own for layer in self.layers)

    @property
    def is_prefix(self) -> bool:
        """Whether every kept layer keeps its index."""
        return self.layers == tuple(range(len(self.layers)))

    def stand_in(self, layer: int) -> int | None:
        """The layer from which the excerpt takes keys and values where the model takes those of ``layer``.
        For the last layer of a kind with its own keys and values, it is the last kept one of that kind, and
        so on backwards. ``None`` if there is none."""
        alike = [one for one in range(self.own) if self.attention[one] == self.attention[layer]]
        kept = [one for one in alike if one in self.layers]
        place = alike.index(layer) - len(alike)
        return kept[place] if -place <= len(kept) else None

    def __str__(self) -> str:
        """``layers 0-4, 15 and 19 of 35``."""
        *head, last = _stretches(self.layers)
        return f"layers {', '.join(head)}{' and ' if head else ''}{last} of {self.of}"

    def columns(self, read: Rows) -> Rows:
        """Rows of a tensor with columns for every layer, from those of the model's."""

        def rows(start: int, stop: int) -> NDArray[Any]:
            parts = read(start, stop).reshape(stop - start, self.of, -1)
            return np.ascontiguousarray(parts[:, list(self.layers)]).reshape(stop - start, -1)

        return rows

    def rows(self, read: Rows, each: int) -> Rows:
        """Rows of a tensor with ``each`` rows for every layer, from those of the model's."""

        def rows(start: int, stop: int) -> NDArray[Any]:
            parts = []
            while start < stop:
                place, offset = divmod(start, each)
                count = min(each - offset, stop - start)
                first = self.layers[place] * each + offset
                parts.append(read(first, first + count))
                start += count
            return np.concatenate(parts)

        return rows

    def config(self, config: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
        """``config.json`` of the excerpt, from that of the model and its architecture."""
        nested = config.get("text_config")
        text = dict(nested if isinstance(nested, Mapping) else config)
        text["num_hidden_layers"] = len(self.layers)
        text["layer_types"] = [f"{architecture.layers[layer].attention}_attention" for layer in self.layers]
        if text.get("num_kv_shared_layers"):
            text["num_kv_shared_layers"] = self.sharing
        if isinstance(every := text.get("per_layer_config"), Mapping):
            text["per_layer_config"] = {
                str(place): every[str(layer)]
                for place, layer in enumerate(self.layers)
                if str(layer) in every
            }
        return {**config, "text_config": text} if isinstance(nested, Mapping) else text


def find_excerpt(architecture: Architecture) -> Excerpt | None:
    """The excerpt of a model, ``None`` if it would be the whole."""
    layers = architecture.layers
    own = next((layer.index for layer in layers if layer.kv_source is not None), len(layers))
    kept = [*_first_own(layers[:own], 2 if own < len(layers) else 1), *_first_sharing(layers[own:])]
    if len(kept) == len(layers):
        return None
    attention = tuple(layer.attention for layer in layers)
    return Excerpt(tuple(layer.index for layer in kept), len(layers), own, attention)


def uncut(problem: str) -> CheckpointError:
    """The error for an artifact whose graph cannot be cut to an excerpt."""
    return CheckpointError(f"the graph cannot be cut to some of its layers: {problem}")


def _first_own(own: Sequence[Layer], ending: int) -> Sequence[Layer]:
    """The fewest first layers with every kind that end with the same attention in ``ending`` layers."""
    kinds = {_kind(layer) for layer in own}
    last = [layer.attention for layer in own[-ending:]]
    return next(
        own[:count]
        for count in range(1, len(own) + 1)
        if {_kind(layer) for layer in own[:count]} == kinds
        and [layer.attention for layer in own[:count][-ending:]] == last
    )


def _first_sharing(sharing: Sequence[Layer]) -> list[Layer]:
    """The first layer of every kind, and one more where they would not end as the model does. transformers
    makes the last layer of a Gemma 4 a full one, whatever it is said to be."""
    first: dict[Layer, Layer] = {}
    for layer in sharing:
        first.setdefault(_kind(layer), layer)
    kept = list(first.values())
    if kept and kept[-1].attention != sharing[-1].attention:
        behind = kept[-1].index
        kept.append(next(one for one in sharing if one.index > behind and _kind(one) == _kind(sharing[-1])))
    return kept


def _kind(layer: Layer) -> Layer:
    """What is equal for layers that are computed alike."""
    return replace(layer, index=0, kv_source=None)


def _stretches(indices: Sequence[int]) -> list[str]:
    """``["0-4", "15", "19"]``."""
    found: list[list[int]] = []
    for index in indices:
        if found and found[-1][-1] == index - 1:
            found[-1].append(index)
        else:
            found.append([index])
    return [str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in found]
