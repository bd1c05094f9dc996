"""The figure of the causal check: how far answers fall when attention to the evidence is cut, by layer and by head."""

from collections.abc import Sequence

import numpy as np

from rcprobe.measured import Measured
from rcprobe.report.curves import PAIRINGS
from rcprobe.report.panels import Curves, Dots, FigureData, HeatMap, Panel, Series, Style
from rcprobe.report.report import Report
from rcprobe.report.values import Floats, estimate, last, mean_over, with_columns
from rcprobe.report.words import number

TITLE = "Does the answer hang on attention to the evidence?"
FALL = "fall of log p (nats)"
WAYS: tuple[tuple[str, Style], ...] = (("forward", "forward"), ("reverse", "reverse"))
SIDES: tuple[tuple[str, Style], ...] = (("evidence", "forward"), ("control", "control"))
NEEDED = {f"{way} {side}" for way, _ in WAYS for side, _ in SIDES}


def knockouts(report: Report) -> FigureData | None:
    """Falls of log p at the last step, the evidence beside its control; None where nothing was knocked out."""
    found = with_columns(report, NEEDED)
    if not found:
        return None
    measured = last(report, *found[0])
    asked = PAIRINGS.get(found[0][1], found[0][1])
    layers = sum(name.startswith("forward evidence layer ") for name in measured[0].columns)
    panels: list[Panel] = [_whole(report, measured, asked)]
    if layers > 1:
        panels += [_by_layer(report, measured, way, layers) for way, _ in WAYS]
    by_head = "forward evidence by head"
    if by_head in measured[0].columns and measured[0].columns[by_head][0].size > 1:
        panels += [_by_head(measured, way) for way, _ in WAYS]
    values = {name: estimate(report, measured, [m.columns[name] for m in measured]).value for name in sorted(NEEDED)}
    says = "With the evidence out of sight in all layers, log p of the right answer falls by " + " and ".join(
        f"{number(values[f'{way} evidence'])} nats {way} (control {number(values[f'{way} control'])})"
        for way, _ in WAYS
    )
    how = (
        "A causal check, not one of the signatures: the query rows are kept from attending to the evidence, and the "
        "answer's log-probability falls by so much. The control hides as many other tokens of the same prompt, as "
        "nearly as far away. Zero: the cells weren't needed. The maps show evidence less control in each head by "
        "itself; others may stand in for a head that is cut, and among many cells some are high by chance."
    )
    return FigureData("knockout", TITLE, f"{says}.", how, tuple(panels))


def _whole(report: Report, measured: Sequence[Measured], asked: str) -> Dots:
    series = []
    for side, style in SIDES:
        columns = [f"{way} {side}" for way, _ in WAYS]
        points = tuple(estimate(report, measured, [m.columns[name] for m in measured]) for name in columns)
        series.append(Series(side, style, tuple(way for way, _ in WAYS), points))
    return Dots(f"all layers at once\n{asked}", FALL, tuple(series))


def _by_layer(report: Report, measured: Sequence[Measured], way: str, layers: int) -> Curves:
    series = []
    for side, style in SIDES:
        columns = [f"{way} {side} layer {k}" for k in range(layers)]
        points = tuple(estimate(report, measured, [m.columns[name] for m in measured]) for name in columns)
        series.append(Series(side, style, tuple(float(k) for k in range(layers)), points))
    return Curves(f"{way}, one layer at a time", "layer", FALL, tuple(series))


def _by_head(measured: Sequence[Measured], way: str) -> HeatMap:
    """Evidence less control, averaged over trained facts' pairs and over seeds."""
    means: list[Floats] = []
    for m in measured:
        contrast = m.columns[f"{way} evidence by head"] - m.columns[f"{way} control by head"]
        means.append(mean_over(list(contrast[m.table.trained])))
    values = mean_over(means)
    layers, heads = (tuple(map(str, range(size))) for size in values.shape)
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return HeatMap(f"{way}, one head at a time", "head", "layer", heads, layers, values, FALL, limit)
