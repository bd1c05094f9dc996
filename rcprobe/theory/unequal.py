"""Routing at unequal distances: the surrogate of the correlation, and its worst case over κ (App. B.3, Tab. 5).

With s = (δ→ + δ←)θ_m and t = (δ→ − δ←)θ_m, plane m of the keys adds w_m(cos s + κ_m cos t) to the covariance of the
two scores, and w_m(1 + κ_m cos 2δ→θ_m), w_m(1 + κ_m cos 2δ←θ_m) to their variances. The surrogate S puts the mean of
the two variances, w_m(1 + κ_m cos s cos t), into the place of their geometric mean, so that |S| ≤ |corr|: where S > 0
it is a lower bound on the correlation, where S < 0 an upper one. M = d/2 planes; F and R distances, in positions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import quad_vec

from rcprobe.errors import UsageError
from rcprobe.theory.rotary import BASE, Floats, frequencies


@dataclass(frozen=True)
class WorstCase:
    """The least surrogate over κ ∈ [0, 1]^M, over draws of q ~ N(0, I): for each pair of distances, [F, R].

    ``mean`` is E[S]; ``certified`` is E[S⁺] − P(S ≤ 0), the lower bound on E[corr] that holds although S bounds the
    correlation from above where it is negative; ``negative`` is P(S ≤ 0); ``error`` the standard error of ``mean``.
    """

    mean: Floats
    certified: Floats
    negative: Floats
    error: Floats


def surrogate(
    forward: float, reverse: float, weights: ArrayLike, kappa: ArrayLike, width: int, base: float = BASE
) -> Floats:
    """S = Σ w_m(cos s + κ_m cos t) / Σ w_m(1 + κ_m cos s cos t) (App. B.3), from −1 to 1.

    ``weights`` and ``kappa`` [..., M] broadcast, and the result has their leading shape. The scale of the weights
    doesn't matter. Raises ``UsageError`` where their last axis isn't M.
    """
    w, k = np.asarray(weights, dtype=np.float64), np.asarray(kappa, dtype=np.float64)
    theta = frequencies(width, base)
    if not w.shape[-1:] == k.shape[-1:] == theta.shape:
        raise UsageError(f"a head of width {width} has {theta.size} planes; got weights {w.shape}, kappa {k.shape}")
    s, t = np.cos((forward + reverse) * theta), np.cos((forward - reverse) * theta)
    return np.asarray((w * (s + k * t)).sum(axis=-1) / (w * (1 + k * s * t)).sum(axis=-1))


def worst_kappa(forward: float, reverse: float, width: int, base: float = BASE) -> Floats:
    """The κ [M] at which the surrogate is least, for any weights: 1 where cos t < 0, else 0 (App. B.3).

    S ≤ τ says that Σ w_m(cos s − τ) + Σ w_m κ_m cos t (1 − τ cos s) ≤ 0, and for |τ| < 1 the sign of κ_m's factor is
    that of cos t.
    """
    return np.asarray(np.cos((forward - reverse) * frequencies(width, base)) < 0, dtype=np.float64)


def expected_worst_case(forward: ArrayLike, reverse: ArrayLike, width: int, base: float = BASE) -> Floats:
    """E[min over κ of S] over q ~ N(0, I), to about 1e-9, without sampling: [F, R] (App. B.3, Tab. 5).

    ``forward`` [F] and ``reverse`` [R] are the grid. The weights are exponential variables X_m over their sum, and
    E[ΣaX/ΣbX] = ∫₀^∞ E[ΣaX e^(−uΣbX)] du = ∫₀^∞ Σ_m a_m/(1 + u b_m) Π_l 1/(1 + u b_l) du. Raises ``UsageError`` for
    a grid that isn't two lists of distances.
    """
    rows, columns = _grid(forward, reverse)
    return np.stack([_expected_row(row, columns, width, base) for row in rows])


def sampled_worst_case(
    forward: ArrayLike, reverse: ArrayLike, width: int, base: float = BASE, draws: int = 10_000, seed: int = 0
) -> WorstCase:
    """Monte Carlo of the worst case over ``draws`` queries, the same at every pair of distances (App. B.3, Tab. 5).

    ``forward`` [F] and ``reverse`` [R] are the grid; the minimum over κ is exact. The least of many sampled means is
    biased downwards: ``expected_worst_case`` isn't. Raises ``UsageError`` for fewer than 2 draws, or a grid that
    isn't two lists of distances.
    """
    rows, columns = _grid(forward, reverse)
    if draws < 2:
        raise UsageError(f"a Monte Carlo of {draws} draws has no error; use 2 or more")
    drawn = np.random.default_rng(seed).standard_exponential((draws, frequencies(width, base).size))
    values = []
    for row in rows:
        numerator, denominator = _terms(row, columns, width, base)
        s = (drawn @ numerator.T) / (drawn @ denominator.T)
        below = (s <= 0).mean(axis=0)
        error = s.std(axis=0, ddof=1) / np.sqrt(draws)
        values.append((s.mean(axis=0), s.clip(min=0).mean(axis=0) - below, below, error))
    return WorstCase(*(np.stack(column) for column in zip(*values, strict=True)))


def _grid(forward: ArrayLike, reverse: ArrayLike) -> tuple[Floats, Floats]:
    rows, columns = np.asarray(forward, dtype=np.float64), np.asarray(reverse, dtype=np.float64)
    if rows.ndim != 1 or columns.ndim != 1 or not rows.size or not columns.size:
        raise UsageError(f"the grid is a list of δ→ and a list of δ←; they have shapes {rows.shape}, {columns.shape}")
    return rows, columns


def _terms(forward: float, reverse: Floats, width: int, base: float) -> tuple[Floats, Floats]:
    """What each plane adds to numerator and denominator at the worst κ: [R, M] both."""
    theta = frequencies(width, base)
    s, t = np.cos((forward + reverse)[:, None] * theta), np.cos((forward - reverse)[:, None] * theta)
    kappa = np.asarray(t < 0, dtype=np.float64)
    return s + kappa * t, 1 + kappa * s * t


def _expected_row(forward: float, reverse: Floats, width: int, base: float) -> Floats:
    numerator, denominator = _terms(forward, reverse, width, base)
    planes = numerator.shape[-1]

    def integrand(u: float) -> Floats:
        # u in units of 1/M: the integrand falls off like (1 + u/M)^(−M)
        factor = 1 + u / planes * denominator
        return np.asarray((numerator / factor).mean(axis=-1) * np.exp(-np.log(factor).sum(axis=-1)))

    value, _ = quad_vec(integrand, 0, np.inf, epsabs=1e-10, epsrel=1e-10, norm="max")
    return np.asarray(value)
