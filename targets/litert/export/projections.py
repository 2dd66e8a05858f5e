"""Linear layers whose weights the converter leaves alone."""

from __future__ import annotations

from typing import Any, Final

import torch

from targets.litert.export.workarounds import barrier

#: Values beyond this many times the mean magnitude of their row go to a row of their own.
_THRESHOLD: Final = 4.0


def project(x: Any, weight: Any, sums: Any, two_rows: bool = False) -> Any:
    """``x`` float32 ``[..., columns]`` times ``weight`` ``[rows, columns]``: ``[..., rows]``.

    The barriers keep the converter from folding factors beside the product (the square root of the hidden
    size, the soft cap) into the weight, so that scales stay the checkpoint's. ``sums``, if not ``None``, is
    ``[rows, blocks]``. It is multiplied with the sum of every block of values of ``x``, and added. With it, a
    block of negative scale ``s`` and codes ``c`` is exactly ``|s| * (-c - 1) + |s|``.

    The runtime rounds a row of ``x`` to int8 by one scale, which its largest value decides. With ``two_rows``
    the large values go to a row of their own, zeros in their places, so that the small ones keep their
    precision. One product reads the weight once for both rows, which are added then.
    """
    x = barrier(x)
    y = _product_of_two(x, weight) if two_rows else torch.nn.functional.linear(x, weight)
    if sums is not None:
        count = sums.shape[1]
        blocks = x.reshape(*x.shape[:-1], count, x.shape[-1] // count).sum(-1)
        y = y + torch.nn.functional.linear(blocks, sums)
    return barrier(y)


def _product_of_two(x: Any, weight: Any) -> Any:
    magnitudes = x.abs()
    small = torch.where(magnitudes > _THRESHOLD * magnitudes.mean(-1, keepdim=True), torch.zeros_like(x), x)
    y = torch.nn.functional.linear(torch.cat((small, x - small)), weight)
    return y[: len(x)] + y[len(x) :]


class Projection(torch.nn.Module):
    """``project`` in place of a linear layer without bias; has the attributes that litert-torch asks for."""

    # stands in the names of tensors, so that bytes of a bundle do not depend on where this file lies
    __module__ = "targets.litert.projections"
    bias = None

    def __init__(
        self, weight: torch.nn.Parameter, sums: torch.nn.Parameter | None, two_rows: bool = False
    ) -> None:
        super().__init__()
        self.weight, self.sums, self.two_rows = weight, sums, two_rows
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Any) -> Any:
        """``x`` float32 ``[..., columns]`` to ``[..., rows]``."""
        return project(x, self.weight, self.sums, self.two_rows)
