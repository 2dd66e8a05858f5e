"""Static scales of activations and caches, which a GGUF records and llama.cpp does not apply.

llama.cpp rounds activations by scales of its own, which it takes from their values as it runs. What training
settled on stands in the file for programs that want it: for each kind an array ``qatconvert.KIND.modules`` of
names as in the checkpoint, and one ``qatconvert.KIND.values`` of float32, of the same length. A module with a
scale for each channel has its name there as often. Codes have 8 bits; a value is rounded to ``scale * code``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from converter.checkpoint.opened import Checkpoint
from targets.gguf.header import Header, Items

#: What begins the keys.
PREFIX: Final = "qatconvert."
#: Kinds by the fields of ``Scales``.
_KINDS: Final = {
    "input": "input_scales",
    "output": "output_scales",
    "key": "key_cache_scales",
    "value": "value_cache_scales",
}


def add_activation_scales(header: Header, checkpoint: Checkpoint) -> None:
    """Record the scales of the model's modules; nothing where there are none."""
    for field, kind in _KINDS.items():
        found = [(module, float(one)) for module, values in _scales(checkpoint, field) for one in values]
        if found:
            modules, values = zip(*found, strict=True)
            header.add_array(f"{PREFIX}{kind}.modules", Items(modules))
            header.add_array(f"{PREFIX}{kind}.values", Items(values))


def activation_warnings(checkpoint: Checkpoint) -> list[str]:
    """A line about scales that are recorded and not applied; none where there are none."""
    modules, caches = (
        len({module for field in fields for module, _ in _scales(checkpoint, field)})
        for fields in (("input", "output"), ("key", "value"))
    )
    told = [
        f"{count} {what}" for count, what in ((modules, "modules"), (caches, "caches of attentions")) if count
    ]
    if not told:
        return []
    return [
        f"gguf: {' and '.join(told)} have static scales of activations, which the file records "
        f"({PREFIX}*) and llama.cpp does not apply"
    ]


def _scales(checkpoint: Checkpoint, field: str) -> Iterator[tuple[str, list[float]]]:
    """The scales of one kind by module, of those modules that the model has: a checkpoint may hold others."""
    within = {f"{name.rpartition('.')[0]}." for name in checkpoint.weights}
    for module, scales in checkpoint.scales.items():
        values = getattr(scales, field)
        if values is not None and any(name.startswith(f"{module}.") for name in within):
            yield module, values.tolist()
