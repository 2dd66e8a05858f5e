"""What litert-torch 0.10.0 and transformers 5.23.0 need to export a graph; for the child alone. What
one family needs stands in its own module.

Each workaround says which version it is for. The tests show that each is still needed: when one of them
fails, the workaround goes.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from targets.litert.family import LitertFamily

#: Dimensions of a cache and of a mask.
_SAMPLE: Final = 4
_EXTENSIONS: Final = "litert_torch.generative.export_hf.model_ext"
#: Modules that are imported for one name, or for none that an export comes to use.
_UNUSED: Final[Mapping[str, Mapping[str, object]]] = {
    "litert_torch.quantize.translate_recipe": {},
    "transformers.loss.loss_utils": {"LOSS_MAPPING": {"ForCausalLM": None}},
}


@contextmanager
def left_out() -> Iterator[None]:
    """Have the first import of litert-torch and of transformers' models load 50 MiB less.

    litert-torch 0.10.0: whatever is exported, its converter imports ai-edge-quantizer, and its extensions are
    a package that imports those for other models. That package, which imports nothing here, lasts.
    transformers 5.23.0: every model imports the losses of object detection, and scipy for them.
    """
    for name, values in _UNUSED.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module
    specification = importlib.util.find_spec(_EXTENSIONS)
    assert specification is not None
    sys.modules[_EXTENSIONS] = importlib.util.module_from_spec(specification)
    try:
        yield
    finally:
        for name in _UNUSED:
            del sys.modules[name]


@contextmanager
def small_samples() -> Iterator[None]:
    """Make caches and masks, tensors of four dimensions full of zeros or ones, of a single number each.

    litert-torch 0.10.0 exports a signature with caches and masks of full size for sample inputs, for prefills
    and for decoding apart. That takes 14 GB for a model like 31B. All that the export needs is their shape.
    """
    originals = {name: getattr(torch, name) for name in ("zeros", "ones")}

    def of_one_number(make: Any, *size: Any, **options: Any) -> Any:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return make((), **options).expand(shape) if len(shape) == _SAMPLE else make(*size, **options)

    for name, make in originals.items():
        setattr(torch, name, partial(of_one_number, make))
    try:
        yield
    finally:
        for name, make in originals.items():
            setattr(torch, name, make)


def barrier(tensor: Any) -> Any:
    """``tensor`` behind a barrier that no constant is folded across; same shape and dtype.

    litert-torch 0.10.0: the lowering of ``optimization_barrier`` fails for one tensor, so it gets two.
    """
    from litert_torch.backend.optimization_barrier import optimization_barrier

    return optimization_barrier((tensor, tensor))[0]


def text_configuration(config: Any, family: LitertFamily) -> Any:
    """The text model's configuration, of a kind that litert-torch can export, from transformers' own.

    litert-torch 0.10.0 reads heads that differ between layers as if they did not, which transformers 5.23.0
    allows when it is told to.
    """
    text = family.configuration(config.get_text_config())
    if hasattr(text, "allow_global_per_layer_attribute_access"):
        text.allow_global_per_layer_attribute_access = True
    return text


class CappedHead(torch.nn.Module):
    """An output head with the final soft cap, ``cap * tanh(logits / cap)``.

    litert-torch 0.10.0: its decoder for externalised per-layer embeddings forgets the cap.
    """

    __module__ = "targets.litert.workarounds"  # as of projections.Projection

    def __init__(self, head: torch.nn.Module, cap: float | None) -> None:
        super().__init__()
        self.head, self.cap = head, cap

    def forward(self, x: Any) -> Any:
        """``x`` float32 ``[batch, length, hidden]`` to logits ``[batch, length, vocabulary]``."""
        logits = self.head(x)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
