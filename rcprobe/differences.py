"""How far two runs are apart: a difference with its interval, and the test of 'there is none'.

Two designs. Over seeds, each side has its own replicates and Welch's t is taken. Over facts, both sides answer the
same questions, so whole clusters of facts are resampled, or change sides, in both at once. NaN means undefined and is
never read as zero, as in ``statistics``.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from rcprobe.statistics import over_clusters, weighted_mean

Floats = NDArray[np.float64]
RESAMPLES = 1000
FLIPS, BLOCK = 9999, 101
_TIE = 1e-12  # sums of the same numbers in another order are equal to this share


@dataclass(frozen=True)
class Difference:
    """A − B with its 95 % interval; ``p`` is two-sided, against no difference.

    ``n`` replicates (of ``unit``: 'seeds' or 'clusters') gave a value, of seeds those of the side that has fewer;
    ``undefined`` is the share of replicates that gave none, of seeds on the side that lost more. ``method`` says how
    interval and p were made. Numbers are NaN where undefined.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    unit: str
    method: str
    undefined: float = 0.0


def welch(a: ArrayLike, b: ArrayLike) -> Difference:
    """Mean of ``a`` less mean of ``b``, one value a seed, with Welch's t interval and test; NaN seeds are left out.

    Under two seeds on a side, interval and p are NaN. Where neither side has any spread, the interval is the
    difference itself and p is 0, or 1 for equal sides.
    """
    given = [np.asarray(side, dtype=np.float64) for side in (a, b)]
    x, y = (side[~np.isnan(side)] for side in given)
    n, lost = min(x.size, y.size), max(float(np.isnan(side).mean()) if side.size else 0.0 for side in given)
    value = float(x.mean() - y.mean()) if n else math.nan
    low = high = p = math.nan
    if n >= 2 and np.ptp(x) == 0 and np.ptp(y) == 0:
        low, high, p = value, value, float(value == 0)
    elif n >= 2:
        variances = np.array([x.var(ddof=1) / x.size, y.var(ddof=1) / y.size])
        error = math.sqrt(variances.sum())
        freedom = variances.sum() ** 2 / (variances**2 / (np.array([x.size, y.size]) - 1)).sum()
        half = float(stdtrit(freedom, 0.975)) * error
        low, high, p = value - half, value + half, 2 * float(stdtr(freedom, -abs(value) / error))
    return Difference(value, low, high, p, n, "seeds", "Welch's t over seeds", lost)


def paired_means(a: ArrayLike, b: ArrayLike, clusters: ArrayLike) -> Difference:
    """Mean of ``a`` − ``b`` over facts that have both, [facts] each, with the cluster of each fact.

    The interval is a percentile bootstrap of clusters. p is that of a randomisation test: were the runs alike, each
    cluster's difference could as well have had the other sign.
    """
    apart = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    found = over_clusters(
        lambda w: weighted_mean(apart, w), clusters, resamples=RESAMPLES, defined=~np.isnan(apart)
    )  # fmt: skip
    p = _sign_flip(apart, np.asarray(clusters)) if found.n >= 2 else math.nan
    method = f"paired by fact: bootstrap of clusters; p by {FLIPS} random changes of sign"
    return Difference(found.value, found.low, found.high, p, found.n, "clusters", method, found.undefined_rows)


def paired_draws(a: float, b: float, draws_a: Floats, draws_b: Floats, n: int) -> Difference:
    """a − b of two statistics over the same ``n`` clusters, from their values [resamples] in the same resamples.

    The interval holds the middle 95 % of the differences; p is of Student's t on the difference over its standard
    deviation over resamples, n − 1 degrees of freedom. Both are NaN where a fifth of the resamples gave no value.
    """
    apart = draws_a - draws_b
    kept = apart[~np.isnan(apart)]
    value, low, high, p = a - b, math.nan, math.nan, math.nan
    if n >= 2 and not math.isnan(value) and kept.size >= 0.8 * apart.size:
        low, high = (float(q) for q in np.quantile(kept, [0.025, 0.975]))
        spread = float(kept.std(ddof=1))
        p = 2 * float(stdtr(n - 1, -abs(value) / spread)) if spread > 0 else float(value == 0)
    method = f"paired by fact: bootstrap of clusters, {kept.size} of {apart.size} resamples with a value"
    return Difference(value, low, high, p, n, "clusters", method)


def resamples(clusters: int, count: int = RESAMPLES, seed: int = 0) -> Floats:
    """How often each cluster is drawn in each resample, float64 [count, clusters]: the same for every caller."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(clusters, size=(count, clusters))
    return np.stack([np.bincount(row, minlength=clusters) for row in drawn]).astype(np.float64)


def _sign_flip(apart: Floats, clusters: NDArray[np.int64]) -> float:
    """(1 + how often random signs of the clusters give a sum as large) / (1 + how often they were drawn)."""
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, weights=np.nan_to_num(apart))
    rng = np.random.default_rng(0)
    seen = abs(sums.sum()) - _TIE * np.abs(sums).sum()
    large = 0
    for _ in range(FLIPS // BLOCK):  # all at once would not fit for many thousands of clusters
        signs = rng.integers(2, size=(BLOCK, sums.size)) * 2.0 - 1.0
        large += int((np.abs(signs @ sums) >= seen).sum())
    return (1 + large) / (1 + FLIPS)
