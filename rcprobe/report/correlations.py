"""Figures of routing: do forward and reverse scores go together over facts, by distance and by head?"""

import math

import numpy as np

from rcprobe.measured import Measured
from rcprobe.metrics import Condition
from rcprobe.report.panels import Curves, FigureData, HeatMap, Panel, Point, Series
from rcprobe.report.report import Report
from rcprobe.report.values import clipped, finished, last
from rcprobe.report.words import number
from rcprobe.signatures import Signature
from rcprobe.statistics import Correlation, fisher_mean, over_seeds, score_correlation
from rcprobe.visible import visible

BY_DISTANCE = "Score correlation by distance"
BY_HEAD = "Score correlation by layer and head"


def by_distance(report: Report) -> FigureData:
    """r over facts at each (δ→, δ←), averaged over layers, heads and seeds; a curve where δ→ = δ← throughout."""
    signature = _signature(report)
    if signature is None or not signature.findings:
        return FigureData("distance", BY_DISTANCE, "", "", missing=_why(signature))
    panels: list[Panel] = []
    for condition in _conditions(signature):
        measured = last(report, signature.metric, signature.pairing)
        found = [(_distances(m), _correlate(m, condition)) for m in measured]
        keys = sorted({key for distances, _ in found for key in distances})
        if keys and all(forward == reverse for forward, reverse in keys):
            panels.append(_curve(report, condition, keys, found))
        elif keys:
            panels.append(_map(condition, keys, found))
    how = (
        "Each fact is asked both ways. A mark is the correlation, over facts, between the attention score from the "
        "asked-for place to the evidence in the forward query and the same score in the reverse query: 1, a fact that "
        "draws attention one way draws it as much the other way; 0, one says nothing of the other. The distance "
        "δ counts tokens between the two; δ→ in the forward query, δ← in the reverse one. A cell without a value had "
        "fewer than 8 facts, or no spread."
    )
    return FigureData(
        "distance", BY_DISTANCE, _says(signature), how, tuple(panels), "" if panels else "no pair was asked"
    )


def by_head(report: Report) -> FigureData:
    """r over facts in each layer and head, averaged over distances and seeds."""
    signature = _signature(report)
    if signature is None or not signature.findings:
        return FigureData("heads", BY_HEAD, "", "", missing=_why(signature))
    panels: list[Panel] = []
    for condition in _conditions(signature):
        measured = last(report, signature.metric, signature.pairing)
        shape = next((m.columns[condition.columns[0]].shape[1:] for m in measured), ())
        if len(shape) != 2 or math.prod(shape) < 2:
            return FigureData(
                "heads",
                BY_HEAD,
                "",
                "",
                missing="the model has one head in all, so there is nothing to set side by side",
            )
        found = [_correlate(m, condition) for m in measured]
        r = np.concatenate([one.r for one in found])
        n = np.concatenate([one.facts for one in found])
        cells = [fisher_mean(r[:, c], n[:, c]) for c in range(r.shape[1])]
        names = tuple(map(str, range(shape[0]))), tuple(map(str, range(shape[1])))
        values = np.array(cells, dtype=np.float64).reshape(shape)
        panels.append(HeatMap(visible(condition.label), "head", "layer", names[1], names[0], values))
    how = (
        "The same correlation in each attention head by itself, averaged over distances. It shows where a shared route "
        "might lie; with so many cells some stand out by chance, so no cell is a finding by itself."
    )
    return FigureData("heads", BY_HEAD, "", how, tuple(panels))


def _curve(
    report: Report,
    condition: Condition,
    keys: list[tuple[int, int]],
    found: list[tuple[dict[tuple[int, int], int], Correlation]],
) -> Curves:
    points, seeds = [], []
    for key in keys:
        each = [_cell(distances, one, key) for distances, one in found]
        if report.dataset.replicate == "seed":
            e = over_seeds([r for r, _ in each])
            points.append(clipped(Point(e.value, e.low, e.high), -1.0, 1.0))
        else:
            r = fisher_mean([r for r, _ in each], [n for _, n in each])
            points.append(_fisher_interval(r, min(n for _, n in each)))
        seeds.append([r for r, _ in each])
    numbers = [run.seed for run in finished(report)]
    traces = {s: tuple(v[i] for v in seeds) for i, s in enumerate(numbers)} if len(found) > 1 else {}
    places = tuple(float(forward) for forward, _ in keys)
    series = Series("forward with reverse", "forward", places, tuple(points), traces)
    return Curves(visible(condition.label), "distance δ→ = δ← (tokens)", "correlation r", (series,))


def _map(
    condition: Condition, keys: list[tuple[int, int]], found: list[tuple[dict[tuple[int, int], int], Correlation]]
) -> HeatMap:
    forward, reverse = (sorted({key[i] for key in keys}) for i in (0, 1))
    values = np.full((len(reverse), len(forward)), np.nan)
    for key in keys:
        cells = [_cell(distances, one, key) for distances, one in found]
        values[reverse.index(key[1]), forward.index(key[0])] = fisher_mean([r for r, _ in cells], [n for _, n in cells])
    names = (tuple(map(str, forward)), tuple(map(str, reverse)))
    return HeatMap(visible(condition.label), "δ→ (tokens)", "δ← (tokens)", *names, values)


def _cell(distances: dict[tuple[int, int], int], one: Correlation, key: tuple[int, int]) -> tuple[float, float]:
    """r at a distance, its layers and heads averaged, and the facts behind it."""
    if key not in distances:
        return math.nan, 0.0
    g = distances[key]
    return fisher_mean(one.r[g], one.facts[g]), float(one.n[g])


def _fisher_interval(r: float, n: float) -> Point:
    if math.isnan(r) or n <= 3 or abs(r) >= 1:
        return Point(r)
    half = 1.959964 / math.sqrt(n - 3)
    return Point(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def _correlate(measured: Measured, condition: Condition) -> Correlation:
    kept, table = _kept(measured), measured.table
    forward, reverse = (measured.columns[c].reshape(len(table.fact), -1)[kept] for c in condition.columns)
    return score_correlation(forward, reverse, table.group[kept], table.stratum[kept], table.fact[kept])


def _distances(measured: Measured) -> dict[tuple[int, int], int]:
    """(δ→, δ←) → its place among the groups of ``_correlate``."""
    kept, table = _kept(measured), measured.table
    groups, where = np.unique(table.group[kept], return_index=True)
    forward, reverse = table.delta_forward[kept][where], table.delta_reverse[kept][where]
    return {(int(forward[g]), int(reverse[g])): g for g in range(len(groups))}


def _kept(measured: Measured) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Trained facts' pairs that were asked; the others have no distance."""
    return measured.table.trained & (measured.table.stratum > 0)


def _conditions(signature: Signature) -> list[Condition]:
    return [f.condition for f in signature.findings if f.condition.statistic == "correlation"]


def _signature(report: Report) -> Signature | None:
    """The first signature that correlates; one that has findings before one that has none."""
    found = [s for s in report.signatures.values() if _conditions(s)]
    named = [s for s in report.signatures.values() if s.title == "routing"]
    return next(iter([*found, *named]), None)


def _says(signature: Signature) -> str:
    parts = [
        f"{f.condition.label} {number(f.estimate.value)} over all, {number(f.control)} with facts shuffled"
        for f in signature.findings
        if f.condition.statistic == "correlation"
    ]
    return visible("; ".join(parts)) + "."


def _why(signature: Signature | None) -> str:
    return visible(signature.why) if signature is not None and signature.why else "no metric measured attention scores"
