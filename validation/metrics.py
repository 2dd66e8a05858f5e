"""How far one model's next-token distributions are from another's.

Names and definitions follow llama.cpp's KL-divergence tool (``llama-perplexity --kl-divergence``), with
three differences:

* Every position counts. The tool skips the first half of each window.
* Probabilities are computed in float64 from unrounded float32 logits. The tool stores the reference in 16
  bits.
* Shares are fractions, not percent.

With ``p`` the reference's softmax at a position, ``q`` the candidate's, and ``t`` the token that follows:

================== ========================================================================================
``mean_kld``       mean over positions of ``KL(p || q) = sum p ln(p / q)``, in nats
``p999_kld``       99.9th percentile of the same, linearly interpolated between positions
``max_kld``        largest of the same
``same_top_p``     share of positions where ``argmax p == argmax q``
``rms_delta_p``    root mean square of ``q[t] - p[t]`` over positions that have a ``t``
``mean_abs_log_p`` mean of ``|ln q[t] - ln p[t]|`` over the same positions (not one of the tool's)
``max_abs``        largest difference between two logits, over positions and vocabulary (as little)
``ppl``            ``exp(mean of -ln q[t])``; ``ppl_reference`` the same of ``p``
================== ========================================================================================

The divergence is summed as ``sum p (exp(d) - 1 - d)``, ``d = ln q - ln p``. That is the same number, since
``p`` and ``q`` both sum to one. But no term is negative, and nothing cancels where the two nearly agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.errors import ValidationError
from converter.system.processors import processors
from converter.system.progress import StageProgress, no_progress
from validation.parallel import in_flight

#: Metrics that gates may name, with the side on which a value is good.
LOWER_IS_BETTER = ("mean_kld", "p999_kld", "max_kld", "rms_delta_p", "max_abs", "ppl")
HIGHER_IS_BETTER = ("same_top_p",)

# Above it exp(d) is better taken as q / p, which cannot overflow.
_LARGE = 30.0


@dataclass(frozen=True, slots=True)
class LogitMetrics:
    """Metrics of the module's table over ``positions`` positions.

    The arrays hold one value per position.
    """

    positions: int
    mean_kld: float
    p999_kld: float
    max_kld: float
    same_top_p: float
    rms_delta_p: float
    max_abs: float
    ppl: float
    ppl_reference: float
    mean_abs_log_p: float
    #: Positions with a NaN or an infinite logit in the candidate. Their ``kld`` is NaN, and so is every
    #: metric of the whole.
    faulty: int
    #: The same of the reference.
    faulty_reference: int
    kld: NDArray[np.float64]
    #: NaN where no token follows.
    delta_p: NDArray[np.float64]
    #: What ``mean_abs_log_p`` is the mean of; NaN where no token follows.
    abs_log_p: NDArray[np.float64]
    same_top: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Position:
    """One position."""

    #: The divergence.
    kld: float
    #: Change of the next token's probability.
    delta_p: float = math.nan
    #: Negative logarithm of the candidate's probability of the next token.
    surprise: float = math.nan
    #: The same of the reference's.
    surprise_reference: float = math.nan
    #: Whether both have the same top token.
    same_top: bool = False
    #: The largest difference of two logits.
    max_abs: float = math.nan


def compare(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    next_tokens: NDArray[np.int64],
    progress: StageProgress = no_progress,
) -> LogitMetrics:
    """Compare logits ``[positions, vocabulary]`` (any float dtype, maps welcome), one position at a time in
    each thread.

    ``next_tokens``: int64 ``[positions]``, -1 where no token follows. Raises ``ValidationError`` when the
    shapes differ, there is no position, or a token is outside the vocabulary.
    """
    _check_shapes(reference, candidate, next_tokens)
    total = reference.shape[0]

    def position(index: int) -> tuple[_Position, bool, bool]:
        p, q = reference[index].astype(np.float64), candidate[index].astype(np.float64)
        good_p, good_q = bool(np.isfinite(p).all()), bool(np.isfinite(q).all())
        row = _compare_row(p, q, int(next_tokens[index])) if good_p and good_q else _Position(math.nan)
        return row, good_p, good_q

    rows: list[_Position] = []
    faulty = faulty_reference = 0
    for row, good_p, good_q in in_flight(position, range(total), processors()):
        faulty_reference += not good_p
        faulty += not good_q
        rows.append(row)
        progress(len(rows), total)
    return _summarise(rows, faulty, faulty_reference)


def _check_shapes(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], next_tokens: NDArray[np.int64]
) -> None:
    if reference.shape != candidate.shape or reference.ndim != 2:
        raise ValidationError(
            f"logits of the artifact have shape {candidate.shape}, those of the reference {reference.shape};"
            " the artifact belongs to another model"
        )
    positions, vocabulary = reference.shape
    if next_tokens.shape != (positions,) or positions == 0:
        raise ValidationError(f"{next_tokens.shape[0]} tokens for {positions} positions of logits")
    if next_tokens.max() >= vocabulary or next_tokens.min() < -1:
        raise ValidationError(f"token {int(next_tokens.max())} is outside the vocabulary of {vocabulary}")


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """``ln softmax`` of one row of finite logits, shifted by the maximum so that nothing overflows."""
    shifted = logits - logits.max()
    result: NDArray[np.float64] = shifted - math.log(float(np.exp(shifted).sum()))
    return result


def _compare_row(reference: NDArray[np.float64], candidate: NDArray[np.float64], token: int) -> _Position:
    log_p, log_q = log_softmax(reference), log_softmax(candidate)
    follows = token >= 0
    return _Position(
        kld=_divergence(log_p, log_q),
        delta_p=math.exp(log_q[token]) - math.exp(log_p[token]) if follows else math.nan,
        surprise=-float(log_q[token]) if follows else math.nan,
        surprise_reference=-float(log_p[token]) if follows else math.nan,
        same_top=int(reference.argmax()) == int(candidate.argmax()),
        max_abs=float(np.abs(candidate - reference).max()),
    )


def divergence(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """``KL(p || q)`` in nats of two rows of finite logits ``[vocabulary]``."""
    return _divergence(log_softmax(reference), log_softmax(candidate))


def _divergence(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> float:
    p = np.exp(log_p)
    d = log_q - log_p
    near = np.minimum(d, _LARGE)
    terms = p * (np.expm1(near) - near)
    if (far := d > _LARGE).any():
        terms[far] = np.exp(log_q[far]) - p[far] * (1.0 + d[far])
    return max(0.0, float(terms.sum()))


def _summarise(rows: list[_Position], faulty: int, faulty_reference: int) -> LogitMetrics:
    kld = np.array([row.kld for row in rows])
    delta_p = np.array([row.delta_p for row in rows])
    same_top = np.array([row.same_top for row in rows])
    whole = faulty == 0 and faulty_reference == 0
    follows = ~np.isnan(delta_p)
    tokens = whole and bool(follows.any())
    surprise = np.array([row.surprise for row in rows])
    surprise_reference = np.array([row.surprise_reference for row in rows])
    abs_log_p = np.abs(surprise - surprise_reference)
    return LogitMetrics(
        positions=len(rows),
        mean_kld=float(kld.mean()) if whole else math.nan,
        p999_kld=float(np.quantile(kld, 0.999)) if whole else math.nan,
        max_kld=float(kld.max()) if whole else math.nan,
        same_top_p=float(same_top.mean()) if whole else math.nan,
        rms_delta_p=float(np.sqrt(np.mean(delta_p[follows] ** 2))) if tokens else math.nan,
        max_abs=max(row.max_abs for row in rows) if whole else math.nan,
        ppl=_exp(float(surprise[follows].mean())) if tokens else math.nan,
        ppl_reference=_exp(float(surprise_reference[follows].mean())) if tokens else math.nan,
        mean_abs_log_p=float(abs_log_p[follows].mean()) if tokens else math.nan,
        faulty=faulty,
        faulty_reference=faulty_reference,
        kld=kld,
        delta_p=delta_p,
        abs_log_p=abs_log_p,
        same_top=same_top,
    )


def _exp(value: float) -> float:
    """``exp`` that ends at infinity instead of raising."""
    return math.exp(value) if value < 709.0 else math.inf
