"""The figure of signatures along training: what each contrasts, or correlates, at every probed step."""

from collections.abc import Mapping, Sequence

import numpy as np

from rcprobe.measured import Measured
from rcprobe.metrics import Condition
from rcprobe.report.curves import PAIRINGS, STEP, complete
from rcprobe.report.panels import Curves, FigureData, Point, Series, Style
from rcprobe.report.report import Report
from rcprobe.report.values import by_step, estimate, seed_means
from rcprobe.report.words import number
from rcprobe.signatures import Floats, Signature, possible, row_mean, score_rows
from rcprobe.statistics import over_seeds, score_correlation
from rcprobe.visible import visible

TITLE = "Signatures along training"
MATCHED: Style = "forward"
CONTROL: Style = "control"


def along(report: Report) -> FigureData:
    """A panel for everything that a verdict rests on, over the steps: both sides of a contrast, or the correlation."""
    how = (
        "What every signature is made of, whatever the metric: the matched value and its control, as means over facts, "
        "or the correlation. A signature that grows with training rises from its start, and leaves its control behind."
    )
    panels = [
        _panel(report, signature, condition)
        for signature in report.signatures.values()
        for condition in _conditions(signature)
        if len(by_step(report, signature.metric, signature.pairing)) > 1
    ]
    if not panels:
        return FigureData("signatures", TITLE, "", how, missing="fewer than two steps were probed")
    return FigureData("signatures", TITLE, _says(panels), how, tuple(panels))


def _conditions(signature: Signature) -> list[Condition]:
    """The judged conditions, without contrasts that show the columns of another, or a part of them."""
    judged = [finding.condition for finding in signature.findings if finding.condition.judged]
    contrasts = {one.columns: one for one in judged if one.statistic != "correlation"}
    return [
        one
        for one in judged
        if one.statistic == "correlation"
        or (contrasts[one.columns] is one and not any(set(one.columns) < set(other) for other in contrasts))
    ]


def _panel(report: Report, signature: Signature, condition: Condition) -> Curves:
    steps = by_step(report, signature.metric, signature.pairing)
    asked = PAIRINGS.get(signature.pairing, signature.pairing)
    title = f"{visible(signature.title)}: {visible(condition.label)}\n{asked}"
    if condition.statistic == "correlation":
        return Curves(title, STEP, "correlation r", (_correlation(report, steps, condition),))
    unit = "" if condition.statistic == "effect_size" else f", {visible(condition.unit)}"  # the columns' own is unknown
    series = tuple(_means(report, steps, condition, column) for column in condition.columns)
    return Curves(title, STEP, f"mean over facts{unit}", series)


def _means(report: Report, steps: Mapping[int, list[Measured]], condition: Condition, column: str) -> Series:
    points, seeds = [], []
    for measured in steps.values():
        values = [_of_both(m, condition, column) for m in measured]
        points.append(_inside(condition, estimate(report, measured, values)))
        seeds.append(seed_means(measured, values, len(report.dataset.facts)))
    said, is_control = visible(column).replace("_", " "), column != condition.columns[0]
    label, style = (f"{said} (control)", CONTROL) if is_control else (said, MATCHED)
    return Series(label, style, tuple(map(float, steps)), tuple(points), complete(seeds))


def _of_both(measured: Measured, condition: Condition, column: str) -> Floats:
    """One value a pair, where every column of the condition has one: as the verdict contrasts them."""
    rows = {name: row_mean(measured.columns[name]) for name in condition.columns}
    return np.where(np.isnan(np.stack(list(rows.values()))).any(axis=0), np.nan, rows[column])


def _correlation(report: Report, steps: Mapping[int, list[Measured]], condition: Condition) -> Series:
    """The pooled correlation of each step; over facts an interval is a bootstrap's, and isn't drawn."""
    points, seeds = [], []
    for measured in steps.values():
        found = {m.seed: score_correlation(*score_rows(condition, m)).pooled for m in measured}
        over = over_seeds(list(found.values()))
        spread = report.dataset.replicate == "seed"
        points.append(_inside(condition, Point(over.value, over.low, over.high)) if spread else Point(over.value))
        seeds.append(found)
    return Series("r over facts", MATCHED, tuple(map(float, steps)), tuple(points), complete(seeds))


def _inside(condition: Condition, point: Point) -> Point:
    return Point(point.value, *possible(condition, point.value, point.low, point.high))


def _says(panels: Sequence[Curves]) -> str:
    """Where each panel's first series started and ended, and where its control ended."""
    said = []
    for panel in panels:
        first, *rest = panel.series
        held = "".join(f", {one.label} {number(one.points[-1].value)}" for one in rest)
        ends = f"{number(first.points[0].value)} → {number(first.points[-1].value)}"
        said.append(f"{', '.join(panel.title.splitlines())}: {first.label} {ends}{held}")
    return f"From the first step to the last. {'; '.join(said)}."
