"""Linear layers whose weights the converter leaves alone."""

from __future__ import annotations

from typing import Any

import torch

from targets.litert.export.workarounds import barrier


def project(x: Any, weight: Any) -> Any:
    """``x`` float32 ``[..., columns]`` times ``weight`` ``[rows, columns]``: ``[..., rows]``.

    The barriers keep the converter from folding factors beside the product (the square root of the hidden
    size, the soft cap) into the weight, so that scales stay the checkpoint's.
    """
    return barrier(torch.nn.functional.linear(barrier(x), weight))


class Projection(torch.nn.Module):
    """``project`` in place of a linear layer without bias; has the attributes that litert-torch asks for."""

    # stands in the names of tensors, so that bytes of a bundle do not depend on where this file lies
    __module__ = "targets.litert.projections"
    bias = None

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Any) -> Any:
        """``x`` float32 ``[..., columns]`` to ``[..., rows]``."""
        return project(x, self.weight)
