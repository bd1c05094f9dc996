"""Measured columns by seed and fact, and their means with intervals: what figures and the table of facts draw on."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rcprobe.measured import Measured, per_fact
from rcprobe.report.panels import Point
from rcprobe.report.report import Report, SeedRun
from rcprobe.statistics import over_clusters, over_seeds, weighted_mean

Floats = NDArray[np.float64]
RESAMPLES = 200  # of a figure's intervals; verdicts take theirs from the signatures


def finished(report: Report) -> list[SeedRun]:
    """The seeds that signatures speak of: those that didn't fail and were probed."""
    return [run for run in report.runs if run.failure is None and run.steps]


def with_columns(report: Report, columns: set[str]) -> list[tuple[str, str]]:
    """Each (metric, pairing) that gave these columns, the pairing that a signature is judged by first."""
    found = dict.fromkeys(
        (measured.metric, measured.pairing)
        for run in finished(report)
        for measured in run.steps[-1].measured
        if columns <= set(measured.columns)
    )
    first = {(s.metric, s.pairing) for name, s in report.signatures.items() if name == s.metric}
    return sorted(found, key=lambda both: both not in first)


def by_step(report: Report, metric: str, pairing: str) -> dict[int, list[Measured]]:
    """Step → what each finished seed measured there, steps in order."""
    found: dict[int, list[Measured]] = {}
    for run in finished(report):
        for step in run.steps:
            for measured in step.measured:
                if (measured.metric, measured.pairing) == (metric, pairing):
                    found.setdefault(step.step, []).append(measured)
    return dict(sorted(found.items()))


def last(report: Report, metric: str, pairing: str) -> list[Measured]:
    """What each finished seed measured at its last step."""
    steps = [run.steps[-1].measured for run in finished(report)]
    return [m for measured in steps for m in measured if (m.metric, m.pairing) == (metric, pairing)]


def mean_over(arrays: Sequence[Floats]) -> Floats:
    """The element-wise mean of defined values over seeds; NaN where there is none."""
    stacked = np.stack(arrays)
    defined = ~np.isnan(stacked)
    count = defined.sum(axis=0)
    return np.where(count > 0, np.where(defined, stacked, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def estimate(report: Report, measured: Sequence[Measured], values: Sequence[Floats]) -> Point:
    """The mean of ``values`` (one array [B] or [B, N, H] a measurement) over trained facts, with its interval.

    The interval is Student's t over seeds, or a bootstrap over clusters of facts, as the dataset's replicate says.
    """
    size = len(report.dataset.facts)
    kept = [m.table.trained for m in measured]
    facts = [per_fact(v[k], m.table.fact[k], size) for m, v, k in zip(measured, values, kept, strict=True)]
    if not facts:
        return Point(math.nan)
    if report.dataset.replicate == "seed":
        found = over_seeds([weighted_mean(f) for f in facts])
    else:
        mean = mean_over(facts)
        present = np.flatnonzero(~np.isnan(mean))
        cluster = np.arange(size)
        cluster[measured[0].table.fact] = measured[0].table.cluster
        found = over_clusters(lambda w: weighted_mean(mean[present], w), cluster[present], resamples=RESAMPLES)
    return Point(found.value, found.low, found.high)


def seed_means(measured: Sequence[Measured], values: Sequence[Floats], size: int) -> dict[int, float]:
    """Each seed's mean over trained facts."""
    means = {}
    for m, v in zip(measured, values, strict=True):
        kept = m.table.trained
        means[m.seed] = weighted_mean(per_fact(v[kept], m.table.fact[kept], size))
    return means


def transformed(point: Point, seeds: Mapping[int, float]) -> tuple[Point, dict[int, float]]:
    """Log-probabilities in nats → probabilities: the geometric mean, its interval and each seed's."""
    return (
        Point(*(math.exp(x) for x in (point.value, point.low, point.high))),
        {k: math.exp(v) for k, v in seeds.items()},
    )


def clipped(point: Point, low: float, high: float) -> Point:
    """The point with its interval cut to what is possible; a t interval of shares may leave 0 to 1."""
    return Point(point.value, float(np.clip(point.low, low, high)), float(np.clip(point.high, low, high)))
