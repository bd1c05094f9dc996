"""Shares of right answers at the last step, both ways, with Wilson's interval where facts are what is counted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcprobe.facts import clusters
from rcprobe.measured import per_fact
from rcprobe.report.report import Report
from rcprobe.report.values import finished, last
from rcprobe.statistics import weighted_mean, wilson

WRITTEN = "answers"  # the metric of what was written, whose columns are right or wrong
COUNTS = "steps"  # and its one column that isn't
Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """The share of right answers one way. ``seeds`` has each seed's, ``value`` is their mean.

    ``low`` and ``high`` bound it with 95 % confidence, and ``facts`` says how many facts were judged; without an
    interval, where seeds repeat the experiment, they are NaN and 0.
    """

    pairing: str
    reading: str
    direction: str
    seeds: tuple[float, ...]
    value: float
    low: float
    high: float
    facts: int


def shares(report: Report) -> list[Share]:
    """Accuracy by pairing and reading, then what was written by how it was compared; forward, then reverse."""
    found = []
    steps = [run.steps[-1] for run in finished(report)]
    for pairing, readings in report.accuracy.items():
        for reading, seeds in readings.items():
            counts = [step.judged.get(pairing, {}).get(reading, (0, 0)) for step in steps]
            for way, direction in enumerate(("forward", "reverse")):
                facts = min((count[way] for count in counts), default=0)
                found.append(_share(report, (pairing, reading, direction), [seed[way] for seed in seeds], facts))
    return found + _written(report)


def of_pairs(found: Sequence[Share]) -> list[tuple[Share, Share]]:
    """Shares as rows: (forward, reverse)."""
    return list(zip(found[::2], found[1::2], strict=True))


def assumption(report: Report) -> str:
    """What the intervals take for granted; nothing where there are none."""
    if report.dataset.replicate != "fact":
        return ""
    facts, groups = len(report.dataset.facts), len(set(clusters(report.dataset.facts)))
    said = "Wilson's interval over facts, each of which counts once, as if no fact said anything of another"
    return said + (f"; {facts} facts make {groups} groups that share a name, so it is too narrow" * (groups < facts))


def to_dicts(report: Report) -> list[dict[str, Any]]:
    """Shares as plain rows."""
    return [vars(share) | {"seeds": list(share.seeds)} for share in shares(report)]


def interval(value: float, facts: int) -> Interval:
    """Wilson's 95 % interval of a share over so many facts; NaN where it is undefined.

    A fact that is asked in several ways counts as the share of them that were right.
    """
    return (math.nan, math.nan) if math.isnan(value) else wilson(value * facts, facts)


def _share(report: Report, named: tuple[str, str, str], seeds: Sequence[float], facts: int) -> Share:
    value = weighted_mean(seeds)
    counted = facts if report.dataset.replicate == "fact" and not math.isnan(value) else 0
    return Share(*named, tuple(seeds), value, *interval(value, counted), counted)


def _written(report: Report) -> list[Share]:
    found = []
    size = len(report.dataset.facts)
    for pairing in dict.fromkeys(m.pairing for run in finished(report) for m in run.steps[-1].measured):
        measured = last(report, WRITTEN, pairing)
        for column in measured[0].columns if measured else ():
            direction, _, kind = column.partition(", ")
            if direction != "forward" or kind == COUNTS:
                continue
            for way in ("forward", "reverse"):
                values = [m.columns[f"{way}, {kind}"] for m in measured]
                by_fact = [
                    per_fact(v[m.table.trained], m.table.fact[m.table.trained], size)
                    for v, m in zip(values, measured, strict=True)
                ]
                facts = min(int((~np.isnan(one)).sum()) for one in by_fact)
                means = [weighted_mean(one) for one in by_fact]
                found.append(_share(report, (pairing, f"written, {kind}", way), means, facts))
    return found
