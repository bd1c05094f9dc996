"""Figures along training: probability and accuracy, both ways."""

from collections.abc import Sequence

import numpy as np

from rcprobe.measured import Measured, per_fact
from rcprobe.report.panels import Curves, FigureData, Point, Series, Style
from rcprobe.report.report import FULL, Report
from rcprobe.report.shares import interval
from rcprobe.report.values import (
    by_step,
    clipped,
    estimate,
    finished,
    mean_over,
    seed_means,
    transformed,
    with_columns,
)
from rcprobe.report.words import number
from rcprobe.statistics import over_seeds, weighted_mean
from rcprobe.visible import visible

STEP = "training step"
DIRECTIONS: tuple[tuple[int, Style], ...] = ((0, "forward"), (1, "reverse"))
PROBABILITY = {"forward", "reverse", "alternatives"}
PAIRINGS = {
    "same_target": "both queries ask for a",
    "swapped": "forward asks for b, reverse for a",
}


def probability(report: Report) -> FigureData:
    """The right answer's probability both ways, and other trained answers' on the reverse query: geometric means."""
    title = "Probability of the right answer, both ways"
    found = with_columns(report, PROBABILITY)
    if not found:
        return FigureData("probability", title, "", "", missing="no metric measured probabilities both ways")
    steps = by_step(report, *found[0])
    asked = PAIRINGS.get(found[0][1], found[0][1])
    readings = [FULL, *(r for r in report.dataset.readings if r != FULL)]
    panels = []
    for reading in readings:
        names: list[tuple[str, Style, str]] = [
            ("forward query", "forward", f"forward, {reading}"),
            ("reverse query", "reverse", f"reverse, {reading}"),
        ]
        if reading == FULL:
            names.append(("reverse query, other answers (control)", "control", "alternatives"))
        series = [
            _curve(report, steps, label, style, column)
            for label, style, column in names
            if all(column in m.columns for measured in steps.values() for m in measured)
        ]
        if series:
            panels.append(Curves(f"{visible(reading)}\n{asked}", STEP, "probability", tuple(series), "log"))
    says = ""
    if panels:
        ends = [
            f"{s.label} {_probability(s.points[0])}" + f" → {_probability(s.points[-1])}" * (len(s.points) > 1)
            for s in panels[0].series
        ]
        when = "From the first step to the last" if len(steps) > 1 else "At the only step"
        says = f"{when} ({visible(readings[0])}; {asked}): {'; '.join(ends)}."
    how = (
        "How much probability the model gives the right answer (geometric mean over facts, a logarithmic axis). "
        "Training shows forward statements only. If reverse rises with forward, and above the control, what was "
        "learned one way round serves the other; if it stays with the control, only the form of an answer was learned."
    )
    return FigureData("probability", title, says, how, tuple(panels))


def accuracy(report: Report) -> FigureData:
    """The share of right answers both ways along training, a panel for each pairing and reading."""
    runs = finished(report)
    panels = []
    kinds = dict.fromkeys((p, r) for run in runs for s in run.steps for p, found in s.accuracy.items() for r in found)
    first = next(iter(report.dataset.readings), FULL)  # the one that decides, and that the answer names
    for pairing, reading in sorted(kinds, key=lambda kind: (kind[0] != "swapped", kind[1] != first)):
        panels.append(accuracy_panel(report, pairing, reading))
    how = (
        "The share of questions whose right answer beats every rival (a tie is wrong). Titles say which answers "
        "compete, and what is asked: a is the entity that stands first in training, b the second."
    )
    title = "Accuracy, both ways"
    if not panels:
        return FigureData("accuracy", title, "", how, missing="no step of a finished seed measured accuracy")
    ends = [f"{s.label} {_share(s.points[-1])}" for s in panels[0].series]
    says = f"At the last step ({', '.join(panels[0].title.splitlines())}): {'; '.join(ends)}."
    return FigureData("accuracy", title, says, how, tuple(panels))


def accuracy_panel(report: Report, pairing: str, reading: str) -> Curves:
    """One panel of ``accuracy``."""
    series = tuple(shares(report, pairing, reading, way, style) for way, style in DIRECTIONS)
    title = f"{visible(reading)}\n{PAIRINGS.get(pairing, pairing)}"
    return Curves(title, STEP, "right answers", series, "share")


def _curve(
    report: Report,
    steps: dict[int, list[Measured]],
    label: str,
    style: Style,
    column: str,
) -> Series:
    points, seeds = [], []
    for measured in steps.values():
        values = [m.columns[column] for m in measured]
        point, each = transformed(
            estimate(report, measured, values), seed_means(measured, values, len(report.dataset.facts))
        )
        points.append(point)
        seeds.append(each)
    return Series(label, style, tuple(float(s) for s in steps), tuple(points), complete(seeds))


def shares(report: Report, pairing: str, reading: str, way: int, style: Style) -> Series:
    """The share of right answers one way round (0 forward, 1 reverse) at each step of the seeds that finished.

    From the accuracy metric's values where facts are the replicate, from each step's shares else.
    """
    by_seed = {
        run.seed: {
            s.step: s.accuracy[pairing][reading][way] for s in run.steps if reading in s.accuracy.get(pairing, {})
        }
        for run in finished(report)
    }
    steps = sorted({step for shares in by_seed.values() for step in shares})
    column = f"{style}, {reading}"
    judged = by_step(report, "accuracy", pairing) if report.dataset.replicate == "fact" else {}
    points = []
    for step in steps:
        measured = judged.get(step, [])
        shares = [found[step] for found in by_seed.values() if step in found]
        if measured and all(column in m.columns for m in measured):
            points.append(_over_facts(report, measured, column))
        else:
            points.append(_over_seeds(shares, report.dataset.replicate == "seed"))
    each = [{seed: found[step] for seed, found in by_seed.items() if step in found} for step in steps]
    return Series(f"{style} query", style, tuple(float(s) for s in steps), tuple(points), complete(each))


def _over_facts(report: Report, measured: Sequence[Measured], column: str) -> Point:
    """The share over trained facts, with Wilson's interval: a resampling of answers all alike would give none."""
    size = len(report.dataset.facts)
    facts = mean_over(
        [per_fact(m.columns[column][m.table.trained], m.table.fact[m.table.trained], size) for m in measured]
    )
    value = weighted_mean(facts)
    return Point(value, *interval(value, int((~np.isnan(facts)).sum())))


def _over_seeds(shares: Sequence[float], interval: bool) -> Point:
    found = over_seeds(shares)
    if not interval:
        return Point(found.value)
    return clipped(Point(found.value, found.low, found.high), 0.0, 1.0)


def complete(steps: Sequence[dict[int, float]]) -> dict[int, tuple[float, ...]]:
    """Each seed's values at every step, NaN where it has none; nothing for a single seed."""
    seeds = sorted({seed for step in steps for seed in step})
    if len(seeds) < 2:
        return {}
    return {seed: tuple(step.get(seed, float("nan")) for step in steps) for seed in seeds}


def _share(point: Point) -> str:
    return "undefined" if point.value != point.value else f"{point.value:.0%}"


def _probability(point: Point) -> str:
    value = point.value
    return number(value) if value != value or value >= 0.005 else f"{value:.1g}"
