"""From measured columns to signatures: estimate, interval, control, effect size, verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rcprobe.facts import Pairing
from rcprobe.measured import Measured
from rcprobe.metrics import Condition, Metric
from rcprobe.statistics import (
    Estimate,
    Verdict,
    hedges_dz,
    holm,
    judge,
    over_clusters,
    over_seeds,
    permutation_test,
    probability_superior,
    score_correlation,
    weighted_mean,
)

Floats = NDArray[np.float64]
MINIMUM = {"seed": 5, "fact": 20}  # replicates under which nothing is judged
UNDEFINED_SHARE = 0.2
RANGES = {"r": (-1.0, 1.0), "cosine": (-1.0, 1.0), "share": (0.0, 1.0)}  # unit → what a value of it can be
PERMUTATIONS = {
    "seed": 50,
    "fact": 400,
}  # with facts, p enters the verdict: 1/401 survives Holm over many signatures


@dataclass(frozen=True)
class Finding:
    """What one condition came to.

    ``matched`` and ``control`` are the means of what was contrasted, in the metric's own unit (for correlations,
    ``control`` is the mean after facts were shuffled between directions, with the permutation's p); ``superior`` is
    P(matched > control), ``d_z`` the standardised contrast, ``start`` the value at the first step. NaN where
    undefined.
    """

    condition: Condition
    estimate: Estimate
    control: float
    matched: float = math.nan
    superior: float = math.nan
    d_z: float = math.nan
    start: float = math.nan
    permutation_p: float = math.nan
    undefined_pairs: float = 0.0


@dataclass(frozen=True)
class Signature:
    """One measured ingredient, its findings, and what they amount to; ``why`` explains a verdict that needs it.

    A causal ``check`` is judged by itself and is none of the signatures that the theory names.
    """

    name: str
    metric: str
    title: str
    pairing: Pairing
    verdict: Verdict
    findings: tuple[Finding, ...]
    why: str = ""
    check: bool = False


def find(metric: Metric, last: Sequence[Measured], first: Sequence[Measured], replicate: str) -> tuple[Finding, ...]:
    """Evaluate a metric's conditions on the last step of each seed, growth counted from the first."""
    same_step = all(a.step == b.step for a, b in zip(last, first, strict=True))
    found = []
    for condition in metric.conditions:
        if not condition.judged and any(set(condition.columns) - set(m.columns) for m in (*last, *first)):
            continue
        if condition.growth and same_step:
            found.append(_undefined(condition, replicate))
        elif condition.statistic == "correlation":
            found.append(_correlation(condition, last, first, replicate))
        else:
            found.append(_contrast(condition, last, first, replicate))
    return tuple(found)


def judge_all(
    found: Mapping[str, tuple[Metric, Pairing, tuple[Finding, ...]]],
    *,
    replicate: str,
    identities: Mapping[str, str],
    not_trained: Mapping[Pairing, str],
    skipped: Mapping[str, str],
) -> dict[str, Signature]:
    """Verdicts, Holm-adjusted over the signatures of the table; ``not_trained`` says why of a pairing, or is empty.

    A causal check keeps its own p, and doesn't count among the signatures.
    """
    adjusted = {name: _worst_p(findings) for name, (_, _, findings) in found.items()}
    adjusted |= holm({name: p for name, p in adjusted.items() if not found[name][0].check})
    signatures = {}
    for name, (metric, pairing, findings) in found.items():
        verdict: Verdict
        if name in skipped:
            verdict, why = "undefined", skipped[name]
        elif name in identities:
            verdict, why = "identity", identities[name]
        elif not_trained.get(pairing):
            verdict, why = "not trained", not_trained[pairing]
        else:
            verdict, why = _verdict(findings, adjusted[name], replicate)
        signatures[name] = Signature(name, metric.name, metric.title, pairing, verdict, findings, why, metric.check)
    return signatures


def _worst_p(findings: Sequence[Finding]) -> float:
    """All conditions must hold, so the largest p counts; NaN where one is undefined."""
    values = [finding.estimate.p for finding in findings if finding.condition.judged]
    return math.nan if not values or any(math.isnan(p) for p in values) else max(values)


def _verdict(findings: Sequence[Finding], adjusted_p: float, replicate: str) -> tuple[Verdict, str]:
    minimum = MINIMUM[replicate]
    findings = [finding for finding in findings if finding.condition.judged]
    if any(f.condition.growth and f.estimate.n == 0 for f in findings):
        return "undefined", "it is judged by its growth over training, and nothing was trained here"
    few = min(f.estimate.n for f in findings)
    if any(f.undefined_pairs > UNDEFINED_SHARE for f in findings):
        return "undefined", f"over {UNDEFINED_SHARE:.0%} of the pairs have no value"
    if few < minimum:
        one, many = ("seed", "seeds") if replicate == "seed" else ("cluster of facts", "clusters of facts")
        who = f"no {one} has a value" if few == 0 else f"{few} {one if few == 1 else many}"
        return "undefined", f"{who}; a verdict needs {minimum}"
    blank = next((f for f in findings if math.isnan(f.estimate.low) or math.isnan(f.estimate.high)), None)
    if blank is not None:
        alike = "too few facts are asked alike (wording, distances, tokens), or all score alike"
        reason = alike if blank.condition.statistic == "correlation" else blank.estimate.method
        return "undefined", f"{blank.condition.label}: no interval, {reason}"
    verdict = judge([f.estimate for f in findings], adjusted_p, minimum=minimum)
    if verdict == "undefined":
        return verdict, f"over {UNDEFINED_SHARE:.0%} of the {'seeds' if replicate == 'seed' else 'facts'} have no value"
    return verdict, _undecided(findings, adjusted_p) if verdict == "inconclusive" else ""


def _undecided(findings: Sequence[Finding], adjusted_p: float) -> str:
    """Which conditions left a verdict open: those whose interval holds the margin, or else the p that is too large."""
    open_ones = [f for f in findings if f.estimate.low <= f.estimate.margin]
    said = [f"{f.condition.label}: {_interval(f.estimate)} holds the margin {f.estimate.margin:g}" for f in open_ones]
    return "; ".join(said) or f"p is {adjusted_p:.2g}"


def _interval(e: Estimate) -> str:
    low, high = (round(value, 2) + 0.0 for value in (e.low, e.high))  # never −0.00
    return f"[{low:.2f}, {high:.2f}]".replace("-", "−")


def _undefined(condition: Condition, replicate: str) -> Finding:
    unit = "seeds" if replicate == "seed" else "clusters"
    nan = math.nan
    return Finding(condition, Estimate(nan, nan, nan, nan, condition.margin, 0, 0, unit, "growth needs two steps"), nan)


def _contrast(condition: Condition, last: Sequence[Measured], first: Sequence[Measured], replicate: str) -> Finding:
    """A mean, or effect size, of one value a fact: its template pairs, layers and heads averaged."""
    per_seed = [fact_values(condition, a, b if condition.growth else None) for a, b in zip(last, first, strict=True)]
    contrasts = [value - control if control is not None else value for value, control in per_seed]
    statistic = hedges_dz if condition.statistic == "effect_size" else weighted_mean
    if replicate == "seed":
        estimate = _over_seeds(condition, [statistic(x) for x in contrasts])
    else:
        clusters = fact_clusters(last[0])
        defined = ~np.isnan(np.stack(contrasts)).all(axis=0)
        estimate = over_clusters(
            lambda w: _mean([statistic(x, w) for x in contrasts]), clusters, condition.margin, defined=defined
        )
    paired = [(value, control) for value, control in per_seed if control is not None]
    start = [fact_values(condition, b, None) for b in first]
    return Finding(
        condition,
        estimate,
        control=_mean([weighted_mean(control) for _, control in paired]),
        matched=_mean([weighted_mean(value) for value, _ in per_seed]),
        superior=_mean([probability_superior(value, control) for value, control in paired]),
        d_z=_mean([hedges_dz(x) for x in contrasts]),
        start=_mean([statistic(v - c if c is not None else v) for v, c in start]) if not condition.growth else math.nan,
        undefined_pairs=_undefined_share(condition, last),
    )


def _correlation(condition: Condition, last: Sequence[Measured], first: Sequence[Measured], replicate: str) -> Finding:
    """The pooled correlation over facts inside (layer, head, δ→, δ←), freed of stratum means."""
    rows = [score_rows(condition, measured) for measured in last]
    if replicate == "seed":
        estimate = _over_seeds(condition, [score_correlation(*row).pooled for row in rows])
    else:
        estimate = over_clusters(
            lambda w: _mean([score_correlation(*row, weights=w).pooled for row in rows]),
            row_clusters(last[0]),
            condition.margin,
            resamples=500,
            defined=~np.isnan(rows[0][0]).all(axis=1),
        )
    tests = [permutation_test(*row, permutations=PERMUTATIONS[replicate], seed=seed) for seed, row in enumerate(rows)]
    start = [score_correlation(*score_rows(condition, measured)).pooled for measured in first]
    if replicate == "fact":  # the weakest test counts, and a missing one is no pass
        estimate = replace(estimate, p=float(np.max([estimate.p, *(p for p, _, _ in tests)])))
    return Finding(
        condition,
        estimate,
        control=_mean([mean for _, mean, _ in tests]),
        start=_mean(start),
        permutation_p=_mean([p for p, _, _ in tests]),
        undefined_pairs=_undefined_share(condition, last),
    )


def possible(condition: Condition, value: float, low: float, high: float, terms: int = 1) -> tuple[float, float]:
    """An interval cut to what the condition's unit allows: Student's t doesn't know that a correlation ends at 1.

    ``terms`` are the values that were added and subtracted. A value outside its unit's range cuts nothing.
    """
    if condition.unit not in RANGES or condition.statistic == "effect_size":
        return low, high
    least, most = RANGES[condition.unit]
    if terms > 1:
        most = (most - least) * terms / 2
        least = -most
    if not least <= value <= most:
        return low, high
    return float(np.clip(low, least, most)), float(np.clip(high, least, most))


def _over_seeds(condition: Condition, values: Sequence[float]) -> Estimate:
    found = over_seeds(values, condition.margin)
    terms = 1 if condition.statistic == "correlation" else len(condition.columns) * (1 + condition.growth)
    low, high = possible(condition, found.value, found.low, found.high, terms)
    return replace(found, low=low, high=high)


def score_rows(
    condition: Condition, measured: Measured
) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """What ``score_correlation`` takes of trained facts: both scores [R, C], and each row's group, stratum and fact."""
    kept, table = _kept(measured), measured.table
    forward, reverse = (_cells(measured.columns[name])[kept] for name in condition.columns)
    return forward, reverse, table.group[kept], table.stratum[kept], table.fact[kept]


def fact_values(condition: Condition, measured: Measured, start: Measured | None) -> tuple[Floats, Floats | None]:
    """Each trained fact's value and its control's, if there is one; with ``start``, their growth since then.

    A pair that lacks one of the two has no part in either: else they would be means over unlike pairs.
    """
    kept, fact = _kept(measured), measured.table.fact[_kept(measured)]
    rows = []
    for name in condition.columns:
        values = measured.columns[name]
        if start is not None:
            values = values - start.columns[name]
        rows.append(row_mean(values)[kept])
    both = ~np.isnan(np.stack(rows)).any(axis=0)
    columns = [_by_fact(np.where(both, row, np.nan), fact) for row in rows]
    return columns[0], columns[1] if len(columns) > 1 else None


def _undefined_share(condition: Condition, last: Sequence[Measured]) -> float:
    """The share of pairs that have no value in one of the condition's columns."""
    rows = [np.isnan(_cells(m.columns[name])[_kept(m)]).all(axis=1) for m in last for name in condition.columns]
    return max(float(np.mean(row)) if np.size(row) else math.nan for row in rows)


def _kept(measured: Measured) -> NDArray[np.bool_]:
    """Signatures speak of trained facts; held-out ones stay in the frame."""
    return measured.table.trained


def _cells(column: Floats) -> Floats:
    """[B] or [B, N, H] → [B, cells]."""
    return column.reshape(len(column), -1)


def row_mean(values: Floats) -> Floats:
    """One value a pair, [B] or [B, N, H] → [B]: the mean of its defined cells; NaN where it has none."""
    values = _cells(values)
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _by_fact(values: Floats, fact: NDArray[np.int64]) -> Floats:
    """The mean of each fact's defined values, facts in ascending order; NaN where a fact has none."""
    _, index = np.unique(fact, return_inverse=True)
    defined = ~np.isnan(values)
    facts = int(index.max(initial=-1)) + 1
    count = np.bincount(index[defined], minlength=facts)
    total = np.bincount(index[defined], weights=values[defined], minlength=facts)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def row_clusters(measured: Measured) -> NDArray[np.int64]:
    """The cluster of each row of ``score_rows``."""
    return measured.table.cluster[_kept(measured)]


def fact_clusters(measured: Measured) -> NDArray[np.int64]:
    """The cluster of each trained fact, facts in ascending order."""
    kept = _kept(measured)
    return measured.table.cluster[kept][np.unique(measured.table.fact[kept], return_index=True)[1]]


def _mean(values: Sequence[float]) -> float:
    """The mean of defined values; NaN where there are none."""
    return weighted_mean(values) if len(values) else math.nan
