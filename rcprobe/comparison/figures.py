"""Small multiples: a panel a run along training and by layer, and runs below each other where they are compared."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rcprobe.comparison.contrasts import Contrast
from rcprobe.comparison.matrix import Line
from rcprobe.comparison.runs import Group, Run
from rcprobe.metrics import Condition
from rcprobe.report import words
from rcprobe.report.correlations import by_head
from rcprobe.report.cosines import by_layer
from rcprobe.report.curves import PAIRINGS, accuracy_panel, probability
from rcprobe.report.panels import Curves, Dots, FigureData, HeatMap, Panel, Point, Series, has_values
from rcprobe.report.values import with_columns
from rcprobe.signatures import Finding
from rcprobe.visible import shortened, visible

NAME = 34  # characters of a run's name beside an axis
COMMON = "The panels of one dataset share one scale."


def signatures(groups: Sequence[Group]) -> FigureData:
    """A panel a condition: each run's estimate with its interval, and the control where it has the same unit."""
    panels: list[Panel] = []
    for group in groups:
        if len(group.runs) < 2:
            continue
        found: dict[tuple[str, Condition], dict[str, Finding]] = {}
        for run in group.runs:
            for signature in run.report.signatures.values():
                for f in signature.findings:
                    title = f"{visible(words.titled(signature))}: {visible(f.condition.label)}"
                    asked = f"{title}\n{group.label}, {signature.pairing.replace('_', ' ')}"
                    found.setdefault((asked, f.condition), {})[run.name] = f
        panels += [_estimates(title, condition, group, held) for (title, condition), held in found.items()]
    how = (
        "One line a run: the estimate with its 95 % interval; dashes are the margin to exceed, diamonds the control "
        "where it has the same unit, the thin line zero."
    )
    return _figure("signatures", "Signatures side by side", how, panels)


def differences(groups: Sequence[Group], contrasts: Sequence[Contrast]) -> FigureData:
    """A panel a measure: run less run with its interval."""
    panels: list[Panel] = []
    for group in groups:
        found: dict[str, list[Contrast]] = {}
        for contrast in contrasts:
            if contrast.dataset == group.label:
                found.setdefault(contrast.measure.label, []).append(contrast)
        for label, held in found.items():
            places = tuple(f"{shortened(c.a, NAME // 2)} − {shortened(c.b, NAME // 2)}" for c in held)
            share = held[0].measure.unit == "share"
            unit, factor = ("percentage points", 100) if share else (held[0].measure.unit, 1)
            ends = [(c.difference.value, c.difference.low, c.difference.high) for c in held]
            points = tuple(Point(*(factor * end for end in three)) for three in ends)
            series = Series("difference", "forward", _distinct(places), points)
            panels.append(Dots(f"{label}\n{group.label}", f"difference ({unit})" if unit else "difference", (series,)))
    how = (
        "The first run less the second, with the 95 % interval of that one difference. Holm’s correction is not in "
        "the bars: the table says which differences hold after it."
    )
    return _figure("differences", "Differences between runs", how, panels)


def accuracy(groups: Sequence[Group], lines: Sequence[Line]) -> FigureData:
    """Right answers both ways along training, a panel a run, in the reading that decides."""
    panels: list[Panel] = []
    for group in groups:
        read = {line.dataset for line in lines if line.pairing == "swapped"}
        for run in group.runs if group.label in read else ():
            panel = accuracy_panel(run.report, "swapped", group.reading)
            panels.append(_titled(panel, run, f"{group.label}, {visible(group.reading)}"))
    how = "The share of questions whose right answer beats every rival, forward and in reverse, for each run. " + COMMON
    return _figure("accuracy", "Accuracy along training", how, panels)


def probabilities(groups: Sequence[Group]) -> FigureData:
    """The right answer's probability both ways along training, a panel a run."""
    panels: list[Curves] = []
    for group in groups:
        own: list[Curves] = []
        for run in group.runs:
            drawn = probability(run.report).panels
            read = [p for p in drawn if p.title.splitlines()[0] == visible(group.reading)] or list(drawn[:1])
            own += [_titled(p, run, f"{group.label}, {p.title}") for p in read if isinstance(p, Curves)]
        panels += _shared(own)
    how = (
        "How much probability the right answer has (geometric mean over facts, a logarithmic axis). Where masked and "
        "causal models stand side by side, the probability of an answer of several tokens isn't of one kind. " + COMMON
    )
    return _figure("probability", "Probability of the right answer along training", how, panels)


def cosines(groups: Sequence[Group]) -> list[FigureData]:
    """Gradient cosines by layer, a panel a run; a figure for each pairing, as they mustn't be set side by side."""
    made = []
    for pairing, asked in PAIRINGS.items():
        panels = [panel for group in groups for panel in _shared(_layers(group, pairing))]
        how = (
            "The cosine between the gradients of the forward and the reverse query inside each layer, at the last "
            "step; the control asks the same answer from another fact's evidence. Runs of one layer aren't drawn. "
        )
        title = f"Gradient cosine by layer, where {asked}"
        if panels:
            made.append(_figure(f"layers-{pairing.replace('_', '-')}", title, how + COMMON, panels))
    return made


def heads(groups: Sequence[Group]) -> FigureData:
    """The correlation of forward with reverse scores in each layer and head, a panel a run."""
    panels: list[Panel] = []
    for group in groups:
        for run in group.runs:
            found = by_head(run.report).panels[:1]
            panels += [
                replace(p, title=f"{run.name}\n{p.title}, {group.label}") for p in found if isinstance(p, HeatMap)
            ]
    how = (
        "The correlation over facts of the forward with the reverse attention score in each layer and head. Among so "
        "many cells some stand out by chance: no cell is a finding. Runs of one head in all aren't drawn."
    )
    return _figure("heads", "Score correlation by layer and head", how, panels)


def _layers(group: Group, pairing: str) -> list[Curves]:
    """Gradient cosines by layer of every run that has more than one."""
    found = [
        (run, by_layer(run.report, metric, own))
        for run in group.runs
        for metric, own in with_columns(run.report, {"matched", "same_target"})
        if own == pairing
    ]
    return [_titled(p, run, group.label) for run, p in found if p is not None and len(p.series[0].places) > 1]


def _estimates(title: str, condition: Condition, group: Group, held: Mapping[str, Finding]) -> Dots:
    places = _distinct([shortened(run.name, NAME) for run in group.runs])
    nothing = Point(math.nan)
    estimates = {name: Point(f.estimate.value, f.estimate.low, f.estimate.high) for name, f in held.items()}
    points = tuple(estimates.get(run.name, nothing) for run in group.runs)
    series = [Series("estimate", "forward", places, points)]
    if condition.statistic == "correlation":
        known = [i for i, run in enumerate(group.runs) if run.name in held]
        shuffled = tuple(Point(held[group.runs[i].name].control) for i in known)
        series.append(Series("facts shuffled (control)", "control", tuple(places[i] for i in known), shuffled))
    return Dots(title, visible(condition.unit), tuple(series), condition.margin)


def _distinct(places: Sequence[str]) -> tuple[str, ...]:
    """Places under names of their own, where shortening made two alike."""
    return tuple(f"{p} ({places[:i].count(p) + 1})" if places.count(p) > 1 else p for i, p in enumerate(places))


def _titled(panel: Curves, run: Run, under: str) -> Curves:
    return replace(panel, title=f"{run.name}\n{under}")


def _shared(panels: Sequence[Curves]) -> list[Curves]:
    """The panels under one scale of values, wide enough for all."""
    shown = [v for panel in panels for v in _values(panel) if math.isfinite(v)]
    if not shown:
        return list(panels)
    if panels[0].scale == "log":
        least = min((v for v in shown if v > 0), default=0.1)
        return [replace(p, limits=(10 ** math.floor(math.log10(min(least, 0.5)) - 0.02), 1.4)) for p in panels]
    low, high = min(*shown, -0.05), max(*shown, 0.05)
    edge = 0.05 * (high - low)
    return [replace(panel, limits=(low - edge, high + edge)) for panel in panels]


def _values(panel: Curves) -> Iterable[float]:
    for series in panel.series:
        for point in series.points:
            yield from (point.value, point.low, point.high)
        for values in series.seeds.values():
            yield from values


def _figure(key: str, title: str, how: str, panels: Sequence[Panel]) -> FigureData:
    kept = tuple(panel for panel in panels if has_values(panel))
    return FigureData(key, title, "", how, kept, "" if kept else "no run has a value for it")
