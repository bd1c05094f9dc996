"""How sure a measured number is: intervals, effect sizes, correlations, permutation tests and verdicts.

All numbers are float64. NaN means *undefined*: it is counted and never read as zero. An infinite number is
never a measurement and raises ``ValueError``, as do shapes that don't fit together.

Shapes: R rows (one pair of queries each), C cells (layer × head), G groups (δ→, δ←), S strata (template pair,
T, E, δ→, δ←), P mismatched pairs.

Weights are row counts: a row of weight 2 counts as two equal rows, one of weight 0 as none. A bootstrap
replicate is the same statistic under other weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csc_array
from scipy.special import gammaln, ndtri, stdtr, stdtrit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Verdict = Literal["present", "absent", "inconclusive", "undefined", "identity", "not trained"]

ZERO_VARIANCE = 1e-24  # a variance at or below this share of the mean square is float64 rounding, not spread
UNDEFINED_RESAMPLES = 0.2  # a bootstrap that loses more than this share of its resamples gives no interval
_LARGEST_R = 1 - 1e-15  # atanh(1) is infinite
_TIE = 1e-12  # permuted values this close below the observed one count as equal to it
_FISHER = 3  # Fisher's z has variance 1 / (n - 3)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and the one-sided test of 'the number exceeds ``margin``'.

    ``n`` replicates (of ``unit``: 'seeds' or 'clusters') gave a value and ``undefined`` gave none;
    ``undefined_rows`` is the share of rows (pairs) without a value, where rows are known. ``value``, ``low``,
    ``high`` and ``p`` are NaN where undefined. ``method`` says in words how the interval was made.
    """

    value: float
    low: float
    high: float
    p: float
    margin: float
    n: int
    undefined: int
    unit: str
    method: str
    undefined_rows: float = 0.0


@dataclass(frozen=True)
class Correlation:
    """Correlations of forward with reverse scores, per group and cell, and pooled.

    ``r`` float64 [G, C], groups in the order of ``np.unique(groups)``; ``n`` int64 [G] distinct facts in the
    strata that are large enough; ``facts`` int64 [G, C] those of them with a value in the cell, which weigh
    the pooling (minus 3). ``pooled`` is ``fisher_mean(r, facts)``. ``undefined`` counts the NaN among ``r``
    in groups with ``n`` > 0; groups without a large enough stratum are descriptive, all NaN, and not counted.
    """

    r: Floats
    n: Ints
    facts: Ints
    pooled: float
    undefined: int


def over_seeds(values: ArrayLike, margin: float = 0.0) -> Estimate:
    """Mean over seeds with Student's t interval, one value per seed [n]; p tests mean > ``margin``.

    NaN seeds are counted in ``undefined`` and left out. Under 2 values the interval and p are NaN; without
    any spread the interval is the value itself and p is 0 or 1. Raises ``ValueError`` for infinite values.
    """
    given = _vector(values, "values")
    x = given[~np.isnan(given)]
    n = int(x.size)
    value = float(x.mean()) if n else math.nan
    low, high, p = math.nan, math.nan, math.nan
    if n >= 2 and np.ptp(x) == 0:
        value = low = high = float(x[0])
        p = 0.0 if value > margin else 1.0
    elif n >= 2:
        error = float(x.std(ddof=1)) / math.sqrt(n)
        half = float(stdtrit(n - 1, 0.975)) * error
        low, high = value - half, value + half
        p = float(stdtr(n - 1, (margin - value) / error))
    return Estimate(value, low, high, p, margin, n, int(given.size) - n, "seeds", "Student t over seeds")


def over_clusters(
    statistic: Callable[[Floats], float],
    clusters: ArrayLike,
    margin: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
    *,
    defined: ArrayLike | None = None,
) -> Estimate:
    """Percentile interval of ``statistic`` under resampling of whole clusters.

    ``clusters`` int [R] is each row's cluster; ``statistic`` takes row weights float64 [R], in a resample the
    number of times that the row's cluster was drawn, all 1 for the value itself, and returns a float.
    p = (1 + number of replicates ≤ ``margin``) / (1 + number of replicates), over replicates that aren't NaN.

    ``defined`` bool [R] says which rows hold a value (default: all). A cluster without one counts in
    ``undefined``, the others in ``n``. Interval and p are NaN if the value is, under 2 clusters with a value,
    or when more than a fifth of the resamples give none. Raises ``ValueError`` when the statistic is
    infinite.
    """
    index, count = _compact(clusters, "clusters")
    has_value = np.ones(index.size, dtype=bool) if defined is None else np.asarray(defined, dtype=bool)
    _same_rows(index.size, has_value, "defined")
    n = int(np.unique(index[has_value]).size)
    value = float(statistic(np.ones(index.size))) if n else math.nan
    replicates = np.empty(0)
    if n >= 2 and not math.isnan(value):
        rng = np.random.default_rng(seed)
        replicates = np.array([statistic(_draw(count, rng)[index]) for _ in range(resamples)], dtype=np.float64)
    if math.isinf(value) or np.isinf(replicates).any():
        raise ValueError("the statistic is infinite; return NaN where it is undefined")
    kept = replicates[~np.isnan(replicates)]
    low, high, p = math.nan, math.nan, math.nan
    if kept.size and kept.size >= (1 - UNDEFINED_RESAMPLES) * resamples:
        low, high = (float(q) for q in np.quantile(kept, [0.025, 0.975]))
        p = (1 + int((kept <= margin).sum())) / (1 + kept.size)
    method = f"percentile cluster bootstrap, {kept.size} of {resamples} resamples with a value"
    missing = float(1 - has_value.mean()) if index.size else 0.0
    return Estimate(value, low, high, p, margin, n, count - n, "clusters", method, missing)


def dyadic_weights(weights_i: ArrayLike, weights_j: ArrayLike, clusters_i: ArrayLike, clusters_j: ArrayLike) -> Floats:
    """Weights [P] of mismatched pairs (i, j): w_i · w_j, and 0 where i and j lie in one cluster.

    Each argument is [P]: the cluster weight of i and of j, the cluster number of i and of j. Without the
    zero, a cluster that was drawn twice would enter as a mismatch with itself.
    """
    product = np.asarray(weights_i, dtype=np.float64) * np.asarray(weights_j, dtype=np.float64)
    return np.where(np.asarray(clusters_i) == np.asarray(clusters_j), 0.0, product)


def weighted_mean(x: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean of ``x`` [R] under row weights [R] (default: all 1); NaN rows are left out, NaN if none is
    left."""
    values, w = _defined_rows(x, weights)
    return float(w @ values / w.sum()) if values.size else math.nan


def hedges_dz(x: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean of contrasts ``x`` [R] in units of their sd (d_z), with Hedges' small-sample correction.

    d_z = J(df) · mean / sd, df = Σ weights − 1, J exact: Γ(df/2) / (√(df/2) Γ((df−1)/2)). NaN rows are left
    out. NaN under 2 rows, without spread, and at df ≤ 1, where J is 0 and no unbiased d_z exists.
    """
    values, w = _defined_rows(x, weights)
    df = float(w.sum()) - 1
    if values.size < 2 or df <= 1:
        return math.nan
    mean = float(w @ values) / (df + 1)
    variance = float(w @ (values - mean) ** 2) / df
    if variance <= ZERO_VARIANCE * float(w @ values**2) / (df + 1):
        return math.nan
    correction = math.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / math.sqrt(df / 2)
    return correction * mean / math.sqrt(variance)


def probability_superior(matched: ArrayLike, control: ArrayLike, weights: ArrayLike | None = None) -> float:
    """P(matched > control) + ½ P(matched = control) over paired rows [R].

    Rows with a NaN are left out; NaN if none is left.
    """
    a, b = _vector(matched, "matched"), _vector(control, "control")
    _same_rows(a.size, b, "control")
    wins = np.where(np.isnan(a) | np.isnan(b), math.nan, (a > b) + 0.5 * (a == b))
    return weighted_mean(wins, weights)


def fisher_mean(r: ArrayLike, n: ArrayLike) -> float:
    """Average of correlations: tanh of the mean of atanh(r), weighted by n − 3.

    ``r`` and ``n`` (facts behind each r) have shapes that broadcast. Entries with NaN r or n ≤ 3 are left
    out; NaN if none is left. |r| is cut to 1 − 1e-15, so that an identity stays 1 to float error. Raises
    ``ValueError`` where |r| exceeds 1.
    """
    values, sizes = np.broadcast_arrays(np.asarray(r, dtype=np.float64), np.asarray(n, dtype=np.float64))
    kept = ~np.isnan(values) & (sizes > _FISHER)
    if not kept.any():
        return math.nan
    if np.abs(values[kept]).max() > 1 + 1e-9:
        raise ValueError("a correlation lies outside −1 … 1")
    z = np.arctanh(np.clip(values[kept], -_LARGEST_R, _LARGEST_R))
    return math.tanh(float(np.average(z, weights=sizes[kept] - _FISHER)))


def score_correlation(
    forward: ArrayLike,
    reverse: ArrayLike,
    groups: ArrayLike,
    strata: ArrayLike,
    facts: ArrayLike,
    weights: ArrayLike | None = None,
    minimum: int = 8,
) -> Correlation:
    """Correlate forward with reverse scores over facts, inside each (group, cell), freed of stratum means.

    ``forward``, ``reverse`` float64 [R, C]; ``groups``, ``strata``, ``facts`` int [R]; ``weights`` float64
    [R]. A stratum is a group's part with one template pair, T and E: its weighted mean is subtracted, then
    Pearson's r is taken over the group's rows. Strata under ``minimum`` facts with a value in the cell don't
    enter; that count ignores the weights, so that bootstrap replicates keep the strata of the estimate. A NaN
    entry is left out of its cell. r is NaN without spread on either side, or with under 4 facts of positive
    weight. Raises ``ValueError`` for infinite scores or shapes that don't fit.
    """
    x, y = _scores(forward, reverse)
    design = _design(_index(groups, strata, facts, len(x)))
    return _correlate(x, y, design, _row_weights(weights, len(x)), minimum)


def permutation_test(
    forward: ArrayLike,
    reverse: ArrayLike,
    groups: ArrayLike,
    strata: ArrayLike,
    facts: ArrayLike,
    permutations: int = 200,
    seed: int = 0,
    minimum: int = 8,
) -> tuple[float, float, float]:
    """Test the pooled ``score_correlation`` by giving each fact's forward rows another fact's reverse rows.

    Takes the arguments of ``score_correlation``; gives (p, mean, sd) of the permuted values, p one-sided: (1
    + number ≥ observed) / (1 + number of permuted values that aren't NaN). One permutation of all facts
    serves every stratum and cell (a fact that a stratum lacks is skipped in its cycle): a fact's scores at
    its many placements are alike, and shuffling strata apart from each other would make the null too narrow.
    Rows without any value are dropped beforehand. All three are NaN when the pooled value is.
    """
    x, y = _scores(forward, reverse)
    index = _index(groups, strata, facts, len(x))
    kept = ~(np.isnan(x).all(axis=1) | np.isnan(y).all(axis=1))
    x, y = x[kept], y[kept]
    group, stratum, fact = index[:, kept]
    index = _index(group, stratum, fact, len(x))
    design, weights = _design(index), np.ones(len(x))
    observed = _correlate(x, y, design, weights, minimum).pooled
    if math.isnan(observed):
        return math.nan, math.nan, math.nan
    blocks = _blocks(index)
    rng = np.random.default_rng(seed)
    pooled = (
        _correlate(x, y[_permuted(blocks, index[2], rng)], design, weights, minimum).pooled for _ in range(permutations)
    )
    null = np.array([r for r in pooled if not math.isnan(r)])
    p = (1 + int((null >= observed - _TIE).sum())) / (1 + null.size)
    mean = float(null.mean()) if null.size else math.nan
    return p, mean, float(null.std(ddof=1)) if null.size > 1 else math.nan


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p values, by name; NaN stays NaN and doesn't count in the family.

    Raises ``ValueError`` for a p outside 0 … 1.
    """
    if any(p < 0 or p > 1 for p in p_values.values()):
        raise ValueError(f"p values must lie in 0 … 1; got {dict(p_values)}")
    family = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted = dict.fromkeys(p_values, math.nan)
    largest = 0.0
    for rank, (p, name) in enumerate(family):
        largest = max(largest, min(1.0, (len(family) - rank) * p))
        adjusted[name] = largest
    return adjusted


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion of independent trials; (NaN, NaN) if ``n`` is 0.

    A trial may succeed in part, and count for that. Raises ``ValueError`` unless 0 ≤ ``successes`` ≤ ``n``.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0 … n; got {successes} of {n}")
    if n == 0:
        return math.nan, math.nan
    z, share = float(ndtri(0.975)), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half if successes > 0 else 0.0), (centre + half if successes < n else 1.0)


def judge(
    estimates: Sequence[Estimate],
    adjusted_p: float,
    *,
    minimum: int,
    alpha: float = 0.05,
    undefined_share: float = 0.2,
) -> Verdict:
    """Verdict on one signature, whose conditions ``estimates`` must all hold.

    ``adjusted_p`` is the signature's Holm-adjusted p; the p to adjust is the largest among its conditions.
    'undefined': a condition has under ``minimum`` replicates, a NaN interval, or more than
    ``undefined_share`` of its replicates or of its rows without a value. 'present': every interval lies above
    its margin and ``adjusted_p`` < ``alpha``. 'absent': some interval lies below its margin. Else
    'inconclusive'. 'identity' and 'not trained' are the caller's to decide. Raises ``ValueError`` without
    estimates.
    """
    if not estimates:
        raise ValueError("a signature needs at least one estimate to be judged")
    if any(e.n < minimum or _share_undefined(e) > undefined_share for e in estimates):
        return "undefined"
    if any(math.isnan(e.low) or math.isnan(e.high) for e in estimates):
        return "undefined"
    if all(e.low > e.margin for e in estimates) and adjusted_p < alpha:
        return "present"
    return "absent" if any(e.high < e.margin for e in estimates) else "inconclusive"


def _share_undefined(estimate: Estimate) -> float:
    replicates = estimate.n + estimate.undefined
    return max(estimate.undefined / replicates if replicates else 1.0, estimate.undefined_rows)


def _vector(x: ArrayLike, name: str) -> Floats:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must have one dimension; got shape {values.shape}")
    if np.isinf(values).any():
        raise ValueError(f"{name} holds infinite values; mark what is undefined as NaN")
    return values


def _same_rows(rows: int, array: NDArray[np.generic], name: str) -> None:
    if array.shape != (rows,):
        raise ValueError(f"{name} must have one entry for each of {rows} rows; got shape {array.shape}")


def _row_weights(weights: ArrayLike | None, rows: int) -> Floats:
    if weights is None:
        return np.ones(rows)
    w = np.asarray(weights, dtype=np.float64)
    _same_rows(rows, w, "weights")
    if not np.isfinite(w).all() or (w < 0).any():
        raise ValueError("weights must be finite and not negative")
    return w


def _defined_rows(x: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    """Values and weights of the rows that have both."""
    values = _vector(x, "x")
    w = _row_weights(weights, values.size)
    kept = ~np.isnan(values) & (w > 0)
    return values[kept], w[kept]


def _compact(labels: ArrayLike, name: str) -> tuple[Ints, int]:
    """Integer labels [R] → their rank among the distinct labels [R], and how many are distinct."""
    given = np.asarray(labels)
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        raise ValueError(f"{name} must be a vector of integers; got {given.dtype} of shape {given.shape}")
    distinct, rank = np.unique(given, return_inverse=True)
    return rank.astype(np.int64), int(distinct.size)


def _draw(clusters: int, rng: np.random.Generator) -> Floats:
    """How often each cluster [clusters] turns up when as many are drawn with replacement."""
    return np.bincount(rng.integers(clusters, size=clusters), minlength=clusters).astype(np.float64)


def _scores(forward: ArrayLike, reverse: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(forward, dtype=np.float64), np.asarray(reverse, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"forward and reverse must both be [R, C]; got shapes {x.shape} and {y.shape}")
    if np.isinf(x).any() or np.isinf(y).any():
        raise ValueError("scores hold infinite values; mark what is undefined as NaN")
    return x, y


def _index(groups: ArrayLike, strata: ArrayLike, facts: ArrayLike, rows: int) -> Ints:
    """Compact numbers of group, stratum (within its group) and fact: int64 [3, R]."""
    group, _ = _compact(groups, "groups")
    stratum, count = _compact(strata, "strata")
    fact, _ = _compact(facts, "facts")
    for labels, name in ((group, "groups"), (stratum, "strata"), (fact, "facts")):
        _same_rows(rows, labels, name)
    return np.stack([group, _compact(group * count + stratum, "strata")[0], fact])


@dataclass(frozen=True)
class _Distinct:
    """Counts facts by label: rows → pairs (label, fact) [P, R], pairs → labels [labels, P]."""

    pairs: csc_array[np.float64]
    labels: csc_array[np.float64]

    def count(self, present: Bools) -> Ints:
        """How many facts have a present entry: [R, C] → [labels, C]."""
        seen = _sums(self.pairs, present.astype(np.float64)) > 0
        return _sums(self.labels, seen.astype(np.float64)).astype(np.int64)


@dataclass(frozen=True)
class _Design:
    """Which rows belong together: sums over strata [S, R] and groups [G, R], and facts in each."""

    stratum: Ints
    by_stratum: csc_array[np.float64]
    by_group: csc_array[np.float64]
    stratum_facts: _Distinct
    group_facts: _Distinct


def _summing(labels: Ints) -> csc_array[np.float64]:
    """Matrix [labels, R] that sums rows by label, numbered 0, 1, …"""
    rows = labels.size
    count = int(labels.max()) + 1 if rows else 0
    return csc_array((np.ones(rows), labels, np.arange(rows + 1)), shape=(count, rows))


def _sums(matrix: csc_array[np.float64], values: Floats) -> Floats:
    """Row sums by label: [labels, R] @ [R, C] → [labels, C], as a plain array for the type checker."""
    return np.asarray(matrix @ values)


def _distinct(labels: Ints, fact: Ints) -> _Distinct:
    facts = int(fact.max()) + 1 if fact.size else 1
    pairs, pair = np.unique(labels * facts + fact, return_inverse=True)
    return _Distinct(_summing(pair.astype(np.int64)), _summing(pairs // facts))


def _design(index: Ints) -> _Design:
    group, stratum, fact = index
    return _Design(stratum, _summing(stratum), _summing(group), _distinct(stratum, fact), _distinct(group, fact))


def _residual(x: Floats, weights: Floats, design: _Design) -> Floats:
    """Scores [R, C] minus their stratum's weighted mean."""
    total = _sums(design.by_stratum, weights)
    mean = _sums(design.by_stratum, weights * x) / np.where(total > 0, total, 1.0)
    return x - mean[design.stratum]


def _pearson(x: Floats, y: Floats, weights: Floats, design: _Design) -> Floats:
    """Weighted correlation within strata, by group: [R, C] → [G, C]; NaN without spread."""
    dx, dy = _residual(x, weights, design), _residual(y, weights, design)
    xx, yy, xy, square_x, square_y = (
        _sums(design.by_group, weights * a * b) for a, b in ((dx, dx), (dy, dy), (dx, dy), (x, x), (y, y))
    )
    spread = (xx > ZERO_VARIANCE * square_x) & (yy > ZERO_VARIANCE * square_y)
    scale = np.sqrt(np.where(spread, xx, 1.0)) * np.sqrt(np.where(spread, yy, 1.0))
    return np.where(spread, np.clip(xy / scale, -1.0, 1.0), math.nan)


def _correlate(x: Floats, y: Floats, design: _Design, weights: Floats, minimum: int) -> Correlation:
    everywhere = np.ones((len(x), 1), dtype=bool)
    defined = ~(np.isnan(x) | np.isnan(y))
    if defined.all():
        defined = everywhere  # one column stands for all
    else:
        x, y = np.where(defined, x, 0.0), np.where(defined, y, 0.0)
    enters = defined & (design.stratum_facts.count(defined) >= minimum)[design.stratum]
    w = weights[:, None] * enters
    r = _pearson(x, y, w, design)
    r[np.broadcast_to(design.group_facts.count(w > 0) <= _FISHER, r.shape)] = math.nan
    counted = np.broadcast_to(design.group_facts.count(enters), r.shape).copy()
    large = (design.stratum_facts.count(everywhere) >= minimum)[design.stratum]
    n = design.group_facts.count(large)[:, 0]
    return Correlation(r, n, counted, fisher_mean(r, counted), int(np.isnan(r[n > 0]).sum()))


def _blocks(index: Ints) -> Ints:
    """Rows among which reverse rows are exchanged [R]: one stratum, and each fact's k-th row in it."""
    _, stratum, fact = index
    order = np.lexsort((fact, stratum))
    places = np.arange(order.size)
    new = np.ones(order.size, dtype=bool)
    new[1:] = (np.diff(stratum[order]) != 0) | (np.diff(fact[order]) != 0)
    occurrence = np.empty_like(stratum)
    occurrence[order] = places - np.maximum.accumulate(np.where(new, places, 0))
    return _compact(stratum * (order.size + 1) + occurrence, "blocks")[0]


def _permuted(blocks: Ints, fact: Ints, rng: np.random.Generator) -> Ints:
    """The row [R] whose reverse scores each forward row gets under one random permutation of all facts.

    A random arrangement of the facts, cut before each new maximum, lists the cycles of a uniformly random
    permutation. In each block every fact gets the next one of its cycle that the block holds, the last gets
    the first: uniform in each block too, and the same permutation wherever blocks hold the same facts.
    """
    facts = int(fact.max()) + 1
    arrangement = rng.permutation(facts)
    place, cycle = np.empty(facts, dtype=np.int64), np.empty(facts, dtype=np.int64)
    place[arrangement] = np.arange(facts)
    cycle[arrangement] = np.cumsum(arrangement == np.maximum.accumulate(arrangement))
    order = np.lexsort((place[fact], blocks))
    runs = blocks[order] * (facts + 1) + cycle[fact[order]]
    first = np.flatnonzero(np.diff(runs, prepend=-1))
    following = np.arange(1, order.size + 1)
    following[np.append(first[1:], order.size) - 1] = first
    source = np.empty_like(order)
    source[order] = order[following]
    return source
