"""Quantisation in training, and the naive requantisation that it is measured against.

The lattice: 32 consecutive input values share one bfloat16 scale, ``max|w| / 7``, and hold codes -7 to 7.
Training on that grid has three advantages for so small a model: nothing is clipped, so the straight-through
gradient is right for every weight; the scale follows the weights without a parameter or a learning rate of
its own; and zero stays in the middle. Its extremum has code 7 or -7, never -8, which is why a converter that
takes ``extremum / -8`` for the scale, as llama.cpp's Q4_0 does, moves every code but the zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

BLOCK = 32
LARGEST_CODE = 7
#: Keeps every scale well inside float16's normal range, which starts at 2**-14.
SMALLEST_SCALE = 2.0**-13


def is_matrix(name: str, weight: torch.Tensor) -> bool:
    """Whether a weight is quantised: every matrix is, embeddings included; norms and scalars are not."""
    return bool(weight.ndim == 2)


def on_lattice(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` (float32 ``[rows, columns]``) rounded to the lattice, exactly as it is saved.

    Each value is ``bfloat16(scale * code)``, as float32.
    """
    blocks = weight.detach().reshape(-1, BLOCK)
    scale = (blocks.abs().amax(dim=1, keepdim=True) / LARGEST_CODE).clamp_min(SMALLEST_SCALE)
    scale = scale.to(torch.bfloat16).float()
    codes = (blocks / scale).round().clamp(-LARGEST_CODE, LARGEST_CODE)
    return (scale * codes).to(torch.bfloat16).float().reshape(weight.shape)


def straight_through(weight: torch.Tensor) -> torch.Tensor:
    """The lattice value in the forward pass, the identity in the backward pass."""
    return weight + (on_lattice(weight) - weight).detach()


def naive_q4_0(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``weights`` with every matrix through GGUF's own Q4_0 (float32), as an ordinary converter stores it."""
    return {name: _q4_0(weight) if is_matrix(name, weight) else weight for name, weight in weights.items()}


def _q4_0(weight: torch.Tensor) -> torch.Tensor:
    stored = quantize(weight.detach().float().numpy().astype(np.float32), GGMLQuantizationType.Q4_0)
    return torch.from_numpy(dequantize(stored, GGMLQuantizationType.Q4_0).reshape(weight.shape).copy())
