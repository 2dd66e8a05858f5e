"""The mixture of experts as two products: all gates and ups in one, all downs in another.

The runtime has no gather of 4-bit matrices that is fast, and an operator per expert would take an hour to
export. So every expert is computed, and the output of those that the router did not choose is multiplied by
zero before the second product. The weight of that product has the experts side by side: row ``h`` is row
``h`` of expert 0, of expert 1, and so on. Blocks of 32 stay blocks where an expert's width divides by 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from converter.checkpoint.architecture import Experts as Sizes
from targets.litert.export.projections import project


def fused_shape(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    """Shape of the one matrix that holds a tensor of experts: ``[experts * rows, columns]``, and for
    ``down_proj`` ``[rows, experts * columns]``."""
    experts, rows, columns = shape
    return (rows, experts * columns) if name.endswith(".down_proj") else (experts * rows, columns)


class FusedExperts(torch.nn.Module):
    """All experts of a layer; ``parameter`` gives the weight of ``gate_up_proj`` and of ``down_proj``."""

    __module__ = "targets.litert.experts"  # as of Projection

    def __init__(
        self,
        sizes: Sizes,
        activation: Callable[[Any], Any],
        parameter: Callable[[str], torch.nn.Parameter],
    ) -> None:
        super().__init__()
        self.sizes, self.activation = sizes, activation
        self.gate_up, self.down = parameter("gate_up_proj"), parameter("down_proj")

    def forward(self, x: Any, chosen: Any, weights: Any) -> Any:
        """``x`` float32 ``[tokens, hidden]``, ``chosen`` indices and ``weights`` ``[tokens, active]`` to
        ``[tokens, hidden]``."""
        count, width = self.sizes.count, self.sizes.feed_forward
        gate_up = project(x, self.gate_up)
        gate, up = gate_up.reshape(-1, count, 2 * width).chunk(2, dim=-1)
        every = torch.arange(count, dtype=torch.int32)
        hits = chosen.to(torch.int32).unsqueeze(-1) == every  # [tokens, active, experts]
        route = (hits.to(x.dtype) * weights.unsqueeze(-1)).sum(1)
        h = self.activation(gate) * up * route.unsqueeze(-1)
        h = h.reshape(-1, count * width)
        return project(h, self.down)
