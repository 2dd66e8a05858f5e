"""A survey names the scheme that a weight's scales were trained by, and counts what is exact."""

from __future__ import annotations

import numpy as np
import pytest

from converter.checkpoint.lattice import bf16_bits, bf16_floats, recover
from converter.checkpoint.scheme import survey
from converter.checkpoint.weight import EXACT, Lattice, LatticeRows, Weight


def lattice_weight(scale_of, bf16_scale=True, off=0) -> Weight:
    rng = np.random.default_rng(11)
    latent = (rng.standard_normal((64 * 8, 32)) * 0.02).astype(np.float32)
    scale = scale_of(latent).astype(np.float32)
    if bf16_scale:
        scale = bf16_floats(bf16_bits(scale))
    bits = bf16_bits((scale * np.clip(np.rint(latent / scale), -8, 7)).astype(np.float32))
    bits[:off] = bf16_bits(latent[:off])
    bits = bits.reshape(64, 256)
    return Weight(
        "w", "model.w", (64, 256), "BF16", lambda a, b: bf16_floats(bits[a:b]), Lattice(4, 32),
        lambda a, b: recover(bits[a:b]),
    )  # fmt: skip


def peak(latent: np.ndarray) -> np.ndarray:
    return np.abs(latent).max(axis=1, keepdims=True)


def extremum(latent: np.ndarray) -> np.ndarray:
    return np.take_along_axis(latent, np.abs(latent).argmax(axis=1, keepdims=True), axis=1)


@pytest.mark.parametrize(
    ("scheme", "scale_of"),
    [
        ("max/7", lambda latent: peak(latent) / 7),
        ("max/8", lambda latent: peak(latent) / 8),
        ("extremum/-8", lambda latent: extremum(latent) / -8),
        ("learned", lambda latent: peak(latent) / np.linspace(4, 8.4, len(latent))[:, None]),
        ("zero", lambda latent: np.full((len(latent), 1), 4.0)),
    ],
)
def test_the_scheme_is_found(scheme, scale_of):
    found = survey(lattice_weight(scale_of))
    assert found.scheme == scheme
    assert (found.blocks, found.exact, found.exact_fraction) == (512, 512, 1.0)
    assert (found.negative_scales > 0) == (scheme == "extremum/-8")


def coded_weight(bits: int, block: int, scheme: str) -> Weight:
    """A weight that is stored as codes and scales, its scales trained by a scheme."""
    lowest = 1 << (bits - 1)
    latent = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32).reshape(-1, block or 256)
    scale = {
        "max": lambda: peak(latent) / (lowest - 1),
        "max, one lower": lambda: peak(latent) / lowest,
        "extremum": lambda: extremum(latent) / -lowest,
        "learned": lambda: peak(latent) / np.linspace(lowest / 2, lowest, len(latent))[:, None],
    }[scheme]()
    codes = np.clip(np.rint(latent / scale), -lowest, lowest - 1).astype(np.int8).reshape(64, 256)
    scales = scale.astype(np.float32).reshape(64, -1)

    def rows(start: int, stop: int) -> LatticeRows:
        status = np.full(scales[start:stop].shape, EXACT, np.uint8)
        return LatticeRows(codes[start:stop], scales[start:stop], status)

    def floats(start: int, stop: int) -> np.ndarray:
        blocks = codes[start:stop].reshape(stop - start, scales.shape[1], -1)
        return (blocks * scales[start:stop, :, None]).reshape(stop - start, -1)

    return Weight("w", "w", (64, 256), f"I{bits}", floats, Lattice(bits, block), rows)


@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize(
    ("bits", "scheme", "name"),
    [
        (2, "max", "max/1"),
        (2, "max, one lower", "max/2"),
        (2, "extremum", "extremum/-2"),
        (4, "max", "max/7"),
        (4, "max, one lower", "max/8"),
        (4, "extremum", "extremum/-8"),
        (4, "learned", "learned"),
        (8, "max", "max/127"),
        (8, "max, one lower", "max/128"),
        (8, "extremum", "extremum/-128"),
        (8, "learned", "learned"),
    ],
)
def test_the_scheme_of_codes_of_any_bits_is_named_by_their_largest(bits, scheme, name, block):
    assert survey(coded_weight(bits, block, scheme)).scheme == name


def test_scales_that_float16_cannot_hold_are_counted():
    found = survey(lattice_weight(lambda latent: peak(latent) / 7, bf16_scale=False))
    assert found.scheme == "max/7, f32 scales"
    assert found.needs_f32_scale > 0
    assert found.exact + found.needs_f32_scale == 512


def test_blocks_off_the_lattice_are_counted():
    found = survey(lattice_weight(lambda latent: peak(latent) / 7, off=5))
    assert found.off_lattice == 5
    assert found.exact_fraction == 507 / 512


def test_a_float_weight_has_no_survey():
    weight = Weight("w", "w", (1, 32), "F32", lambda a, b: np.zeros((b - a, 32), np.float32))
    with pytest.raises(ValueError, match="w lies on no lattice"):
        survey(weight)
