"""What two runs can be compared in: accuracy both ways and the conditions of signatures, as values by seed or fact."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rcprobe.comparison.runs import Group, Run
from rcprobe.differences import RESAMPLES, resamples
from rcprobe.facts import Dataset, Pairing
from rcprobe.facts import clusters as clusters_of
from rcprobe.measured import Measured, per_fact
from rcprobe.metrics import Condition
from rcprobe.report import words
from rcprobe.report.report import FULL, Report
from rcprobe.report.values import finished, last, mean_over
from rcprobe.signatures import Finding, Signature, fact_values, score_rows
from rcprobe.statistics import hedges_dz, score_correlation, weighted_mean
from rcprobe.visible import visible

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = tuple[Floats, Floats, Ints, Ints, Ints]
CORRELATION_RESAMPLES = 500
ASKED: Pairing = "swapped"  # what every kind of model can be asked
WAYS = ("reverse", "forward")
ANSWERED = {"accuracy": "accuracy", "answers": "written accuracy"}  # metrics that say right or wrong, both ways


@dataclass(frozen=True)
class Values:
    """A measure of one run, by what repeats it.

    ``seeds`` has one value a seed. Where facts are the replicate, a mean has ``facts``, one value for each trained fact
    of the dataset (NaN without one), and their ``clusters``; of an effect size or a correlation ``draw`` gives the
    values in the resamples that all runs share, and ``clusters`` are those with a value.
    """

    value: float
    seeds: Floats
    facts: Floats | None = None
    draw: Callable[[], Floats] | None = None
    clusters: Ints | None = None

    @cached_property
    def draws(self) -> Floats:
        """What ``draw`` gives, drawn once: it takes seconds."""
        assert self.draw is not None
        return self.draw()


@dataclass(frozen=True)
class Measure:
    """One thing to compare: ``condition`` of the signature ``name``, or a column of a metric that judges answers.

    ``title`` names the signature, of which ``label`` is one condition.
    """

    title: str
    label: str
    unit: str
    name: str
    pairing: Pairing
    condition: Condition | None = None
    column: str = ""


def measures(group: Group) -> list[Measure]:
    """Everything that a run of the group measured and that may be compared, accuracy in reverse first."""
    found: dict[Measure, None] = {}
    for metric, title in ANSWERED.items():
        readings = dict.fromkeys([group.reading, FULL]) if metric == "accuracy" else {"exact": None}
        for reading in readings:
            for way in WAYS:
                column = f"{way}, {reading}"
                if any(_has(run.report, metric, column) for run in group.runs):
                    label = f"{title}, {visible(column)}"
                    found[Measure(label, label, "share", metric, ASKED, None, column)] = None
    for run in group.runs:
        for name, signature in run.report.signatures.items():
            for finding in signature.findings:
                if finding.condition.judged:
                    found[_of(name, signature, finding.condition)] = None
    return list(found)


def values(run: Run, measure: Measure) -> Values | None:
    """The run's values, None where it has none."""
    if measure.condition is None:
        return _answers(run.report, measure)
    signature = run.report.signatures.get(measure.name)
    if signature is None or finding_of(signature, measure) is None:
        return None
    ends = [_at(seed.steps[-1].measured, signature) for seed in finished(run.report)]
    starts = [_at(seed.steps[0].measured, signature) for seed in finished(run.report)]
    both = [(a, b) for a, b in zip(ends, starts, strict=True) if a is not None and b is not None]
    if not both:
        return None
    if measure.condition.statistic == "correlation":
        return _correlation(run.report, measure.condition, [a for a, _ in both])
    return _contrast(run.report, measure.condition, both)


def finding_of(signature: Signature, measure: Measure) -> Finding | None:
    """The signature's finding of a measure's very condition."""
    return next((f for f in signature.findings if f.condition == measure.condition), None)


def _of(name: str, signature: Signature, condition: Condition) -> Measure:
    title, asked = visible(words.titled(signature)), signature.pairing.replace("_", " ")
    label = f"{title}: {visible(condition.label)} ({asked})"
    return Measure(f"{title} ({asked})", label, visible(condition.unit), name, signature.pairing, condition)


def _has(report: Report, metric: str, column: str) -> bool:
    if metric == "accuracy" and column.partition(", ")[2] in report.accuracy.get(ASKED, {}):
        return True
    return any(column in m.columns for m in last(report, metric, ASKED))


def _answers(report: Report, measure: Measure) -> Values | None:
    if not _has(report, measure.name, measure.column):
        return None
    way, _, reading = measure.column.partition(", ")
    kept = [m for m in last(report, measure.name, ASKED) if measure.column in m.columns]
    size = len(report.dataset.facts)
    asked = _asked(report.dataset)
    by_fact = [_trained(m, m.columns[measure.column], size)[asked] for m in kept]
    if measure.name == "accuracy" and reading in report.accuracy.get(ASKED, {}):
        seeds = [both[("forward", "reverse").index(way)] for both in report.accuracy[ASKED][reading]]
    else:
        seeds = [weighted_mean(facts) for facts in by_fact]
    shares = np.array(seeds, dtype=np.float64)
    if report.dataset.replicate == "seed":
        return Values(weighted_mean(shares), shares)
    if not by_fact:
        return Values(weighted_mean(shares), shares)
    facts = mean_over(by_fact)
    return Values(weighted_mean(facts), shares, facts, clusters=_clusters(report.dataset))


def _contrast(report: Report, condition: Condition, both: Sequence[tuple[Measured, Measured]]) -> Values:
    contrasts = [_by_fact(report.dataset, condition, end, start) for end, start in both]
    statistic: Callable[[Any], float] = hedges_dz if condition.statistic == "effect_size" else weighted_mean
    seeds = np.array([statistic(one) for one in contrasts], dtype=np.float64)
    if report.dataset.replicate == "seed":
        return Values(weighted_mean(seeds), seeds)
    clusters = _clusters(report.dataset)
    if condition.statistic == "mean":
        return Values(weighted_mean(seeds), seeds, mean_over(contrasts), clusters=clusters)
    statistics = [partial(hedges_dz, one) for one in contrasts]
    return _resampled(report.dataset, seeds, statistics, clusters, ~np.isnan(contrasts[0]), RESAMPLES)


def _correlation(report: Report, condition: Condition, ends: Sequence[Measured]) -> Values:
    rows = [score_rows(condition, measured) for measured in ends]
    statistics = [partial(_pooled, row) for row in rows]
    seeds = np.array([statistic(None) for statistic in statistics], dtype=np.float64)
    if report.dataset.replicate == "seed":
        return Values(weighted_mean(seeds), seeds)
    defined = np.asarray(~np.isnan(rows[0][0]).all(axis=1), dtype=np.bool_)
    of_fact = np.array(clusters_of(report.dataset.facts), dtype=np.int64)
    return _resampled(report.dataset, seeds, statistics, of_fact[rows[0][4]], defined, CORRELATION_RESAMPLES)


def _pooled(rows: Rows, weights: Floats | None) -> float:
    return score_correlation(*rows, weights=weights).pooled


def _resampled(
    dataset: Dataset,
    seeds: Floats,
    statistics: Sequence[Callable[[Floats], float]],
    clusters: Ints,
    defined: NDArray[np.bool_],
    count: int,
) -> Values:
    """A statistic that is no mean: of each seed a function of the rows' weights, the seeds averaged.

    All clusters of the dataset are drawn, the same for every run, whichever of them the run has rows of.
    """
    distinct = np.unique(_clusters(dataset))
    index = np.searchsorted(distinct, clusters)

    def draw() -> Floats:
        weights = resamples(len(distinct), count)
        means = [weighted_mean([statistic(w[index]) for statistic in statistics]) for w in weights]
        return np.array(means, dtype=np.float64)

    return Values(weighted_mean(seeds), seeds, draw=draw, clusters=np.unique(clusters[defined]))


def _trained(measured: Measured, column: Floats, size: int) -> Floats:
    kept = measured.table.trained
    return per_fact(column[kept], measured.table.fact[kept], size)


def _by_fact(dataset: Dataset, condition: Condition, end: Measured, start: Measured) -> Floats:
    """Each trained fact's value less its control's; NaN for one that the run doesn't have."""
    own, control = fact_values(condition, end, start if condition.growth else None)
    found = np.full(len(dataset.facts), np.nan)
    found[np.unique(end.table.fact[end.table.trained])] = own if control is None else own - control
    return found[_asked(dataset)]


def _asked(dataset: Dataset) -> Ints:
    """The facts that runs are compared in: the trained ones."""
    return np.flatnonzero([fact.trained for fact in dataset.facts])


def _clusters(dataset: Dataset) -> Ints:
    """The cluster of each of them."""
    return np.array(clusters_of(dataset.facts), dtype=np.int64)[_asked(dataset)]


def _at(measured: Sequence[Measured], signature: Signature) -> Measured | None:
    return next((m for m in measured if (m.metric, m.pairing) == (signature.metric, signature.pairing)), None)
