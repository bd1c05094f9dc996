"""The figure of signatures along training: what each contrasts, or correlates, at every probed step."""

import math
from collections.abc import Mapping, Sequence

from rcprobe.measured import Measured
from rcprobe.metrics import Condition
from rcprobe.report.curves import PAIRINGS, STEP, complete
from rcprobe.report.panels import Curves, FigureData, Point, Series, Style
from rcprobe.report.report import Report
from rcprobe.report.values import by_step, clipped, estimate, seed_means
from rcprobe.report.words import number
from rcprobe.signatures import RANGES, Signature, score_rows
from rcprobe.statistics import over_seeds, score_correlation, weighted_mean
from rcprobe.visible import visible

TITLE = "Signatures along training"
ANY = (-math.inf, math.inf)
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
    """The judged conditions, without those that show a part of what another shows."""
    judged = [finding.condition for finding in signature.findings if finding.condition.judged]
    whole = {condition.columns: condition for condition in judged}
    return [one for one in whole.values() if not any(set(one.columns) < set(other) for other in whole)]


def _panel(report: Report, signature: Signature, condition: Condition) -> Curves:
    steps = by_step(report, signature.metric, signature.pairing)
    title, asked = visible(signature.title), PAIRINGS.get(signature.pairing, signature.pairing)
    if condition.statistic == "correlation":
        correlated = _correlation(report, steps, condition)
        return Curves(f"{title}: {visible(condition.label)}\n{asked}", STEP, "correlation r", (correlated,))
    unit = "" if condition.statistic == "effect_size" else f", {visible(condition.unit)}"  # the columns' own is unknown
    series = tuple(_means(report, steps, condition, column) for column in condition.columns)
    return Curves(f"{title}\n{asked}", STEP, f"mean over facts{unit}", series)


def _means(report: Report, steps: Mapping[int, list[Measured]], condition: Condition, column: str) -> Series:
    low, high = RANGES.get(condition.unit, ANY)
    points, seeds = [], []
    for measured in steps.values():
        values = [m.columns[column] for m in measured]
        points.append(clipped(estimate(report, measured, values), low, high))
        seeds.append(seed_means(measured, values, len(report.dataset.facts)))
    said, is_control = visible(column).replace("_", " "), column != condition.columns[0]
    label, style = (f"{said} (control)", CONTROL) if is_control else (said, MATCHED)
    return Series(label, style, tuple(map(float, steps)), tuple(points), complete(seeds))


def _correlation(report: Report, steps: Mapping[int, list[Measured]], condition: Condition) -> Series:
    """The pooled correlation of each step; over facts an interval is a bootstrap's, and left to the last step."""
    points, seeds = [], []
    for measured in steps.values():
        found = {m.seed: score_correlation(*score_rows(condition, m)).pooled for m in measured}
        over = over_seeds(list(found.values())) if report.dataset.replicate == "seed" else None
        whole = Point(weighted_mean(list(found.values())))
        points.append(clipped(Point(over.value, over.low, over.high), *RANGES["r"]) if over else whole)
        seeds.append(found)
    return Series("r over facts", MATCHED, tuple(map(float, steps)), tuple(points), complete(seeds))


def _says(panels: Sequence[Curves]) -> str:
    """Where each panel's first series started and ended, and where its control ended."""
    said = []
    for panel in panels:
        first, *rest = panel.series
        held = "".join(f", {one.label} {number(one.points[-1].value)}" for one in rest)
        ends = f"{number(first.points[0].value)} → {number(first.points[-1].value)}"
        said.append(f"{', '.join(panel.title.splitlines())}: {first.label} {ends}{held}")
    return f"From the first step to the last. {'; '.join(said)}."
