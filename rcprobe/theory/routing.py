"""Routing at equal distances: how forward and reverse attention scores correlate (Thm 4.3, App. B.2, Prop. 4.5).

The scores of the mask's query q with the evidence's key k are s→ = qᵀR_{δ→}k and s← = qᵀR_{−δ←}k; q stays and k
varies over facts. Thm 4.3 assumes that the keys' covariance given q has independent planes of equal trace, and
within plane m the form (σ²/2)[(1 − κ_m)I + 2κ_m q̂_m q̂_mᵀ] with κ_m from 0 to 1. Here d is the head's width, M = d/2
the number of planes, and distances are in positions.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rcprobe.errors import UsageError
from rcprobe.theory.rotary import BASE, Floats, frequencies, planes, rotation


def rope_bound(distance: ArrayLike, width: int, base: float = BASE) -> Floats:
    """The lower bound (2/d) Σ_m cos(2δθ_m) = tr(R_{2δ})/d on E[corr(s→, s← | q)] for q ~ N(0, I) (Thm 4.3, Tab. 3).

    ``distance`` [...] is δ = δ→ = δ←; the result has its shape. It needs κ ≥ 0 and equal traces; it is attained at
    κ = 0. Raises ``UsageError`` as ``frequencies`` does.
    """
    return np.asarray(_cosines(distance, width, base).mean(axis=-1))


def rope_bound_given(weights: ArrayLike, distance: ArrayLike, width: int, base: float = BASE) -> Floats:
    """The lower bound Σ_m w_m cos(2δθ_m) on corr(s→, s← | q), given q (Thm 4.3 before its average over q; App. B.2).

    ``weights`` [M] are w_m ∝ |q_m|² tr Cov(k_m | q), scaled here to the sum 1 (``key_planes`` measures them); with
    them the traces need not be equal. ``distance`` [...]; the result has its shape. Raises ``UsageError`` for
    weights that aren't M numbers ≥ 0 with a positive sum.
    """
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (frequencies(width, base).size,) or not (given >= 0).all() or not given.sum() > 0:
        raise UsageError(f"a head of width {width} takes {width // 2} weights ≥ 0, one a plane, that aren't all 0")
    return np.asarray(_cosines(distance, width, base) @ (given / given.sum()))


def rope_tail(distance: ArrayLike, threshold: ArrayLike, width: int, base: float = BASE) -> Floats:
    """Cantelli's lower bound on P(corr(s→, s← | q) ≥ τ) over q ~ N(0, I): (μ − τ)²/(ν + (μ − τ)²) (App. B.2, Tab. 4).

    The weights of ``rope_bound_given`` are Dirichlet(1, …, 1) over M planes, so that the bound given q has the mean
    μ = mean cos(2δθ_m) and the variance ν = (mean cos²(2δθ_m) − μ²)/(M + 1). ``distance`` and ``threshold``
    broadcast; the result has their shape. It is 0 where τ ≥ μ: nothing is certified there. Raises ``UsageError`` as
    ``frequencies`` does.
    """
    cosines = _cosines(distance, width, base)
    mean, variance = cosines.mean(axis=-1), cosines.var(axis=-1) / (cosines.shape[-1] + 1)
    above = np.maximum(mean - np.asarray(threshold, dtype=np.float64), 0.0)
    # without spread (δ = 0) the correlation is its mean
    return np.asarray(np.divide(above**2, variance + above**2, out=np.zeros_like(above), where=above > 0))


def score_correlation(
    query: ArrayLike, covariance: ArrayLike, forward: float, reverse: float, base: float = BASE
) -> float:
    """corr(s→, s← | q) from q [d] and the keys' covariance given q [d, d], whatever its form (§4.2).

    ``forward`` and ``reverse`` are δ→ and δ←. NaN where a score doesn't vary. Raises ``UsageError`` for shapes that
    don't fit.
    """
    q, sigma = _query_and_covariance(query, covariance)
    ahead = rotation(forward, q.size, base).T @ q
    behind = rotation(-reverse, q.size, base).T @ q
    variances = float(ahead @ sigma @ ahead) * float(behind @ sigma @ behind)
    return float(ahead @ sigma @ behind) / math.sqrt(variances) if variances > 0 else math.nan


@dataclass(frozen=True)
class KeyPlanes:
    """What a trained model has in place of Thm 4.3's assumption about the keys' covariance given q.

    ``weights`` [M] ∝ |q_m|² tr Cov(k_m), summing to 1; ``kappa`` [M] the measured κ̂_m, from −1 to 1 (assumed: 0 to
    1), and ``tilt`` [M] the covariance along q̂_m with that across it, over half the trace (assumed: 0), both NaN
    where the plane's weight is 0; ``cross`` the share of the covariance's squared entries that lie between planes
    (assumed: 0).
    """

    weights: Floats
    kappa: Floats
    tilt: Floats
    cross: float


def key_planes(query: ArrayLike, covariance: ArrayLike) -> KeyPlanes:
    """Measure Thm 4.3's assumption on q [d] and the keys' covariance given q [d, d].

    Raises ``UsageError`` for shapes that don't fit, or where no plane has both a query and a spread of keys.
    """
    q, sigma = _query_and_covariance(query, covariance)
    along = planes(q)
    across = np.stack((-along[:, 1], along[:, 0]), axis=-1)
    within = np.einsum("imjm->mij", sigma.reshape(2, q.size // 2, 2, q.size // 2))
    square, trace = (along**2).sum(axis=-1), np.trace(within, axis1=-2, axis2=-1)
    weights = square * trace
    if not weights.sum() > 0:
        raise UsageError("no plane has both a query and keys that vary; nothing can be weighed")
    read = weights > 0
    scale = np.divide(2.0, weights, out=np.full_like(weights, math.nan), where=read)
    kappa = np.einsum("mi,mij,mj->m", along, within, along) * scale - 1
    tilt = np.einsum("mi,mij,mj->m", along, within, across) * scale
    cross = 1 - float((within**2).sum() / (sigma**2).sum())
    return KeyPlanes(weights / weights.sum(), kappa, tilt, cross)


def alibi_gap(slope: float, forward: ArrayLike, reverse: ArrayLike) -> Floats:
    """s→ − s← = m(δ← − δ→) under ALiBi, in units of the score: a constant, so corr(s→, s←) = 1 (Prop. 4.5).

    ``slope`` is m, in score a position; ``forward`` and ``reverse`` are δ→ and δ← and broadcast. An identity of the
    encoding where query and key carry pure token content, trained or not: no evidence for anything learned.
    """
    return np.asarray(slope * (np.asarray(reverse, dtype=np.float64) - np.asarray(forward, dtype=np.float64)))


def _cosines(distance: ArrayLike, width: int, base: float) -> Floats:
    return np.cos(2 * np.asarray(distance, dtype=np.float64)[..., None] * frequencies(width, base))


def _query_and_covariance(query: ArrayLike, covariance: ArrayLike) -> tuple[Floats, Floats]:
    q, sigma = np.asarray(query, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if q.ndim != 1 or q.size % 2 or sigma.shape != (q.size, q.size):
        raise UsageError(
            f"a query [d] of even d needs a covariance of keys [d, d]; they are {q.shape} and {sigma.shape}"
        )
    return q, sigma
