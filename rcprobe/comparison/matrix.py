"""Models × datasets: accuracy forward and reverse in each cell, as the paper's Tab. 7 has it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rcprobe.comparison.runs import Group, Run
from rcprobe.report.curves import shares
from rcprobe.report.panels import Point
from rcprobe.report.values import clipped, estimate, last
from rcprobe.report.visible import visible

KINDS = ("exact", "loose", "prefix", "contains")  # how a written answer may match


@dataclass(frozen=True)
class Line:
    """One line of the matrix: a dataset, which answers competed, what was asked; a cell a run (forward, reverse).

    ``metric`` and ``key`` are the metric and its reading behind the words of ``reading``.
    """

    dataset: str
    reading: str
    pairing: str
    metric: str
    key: str
    cells: dict[str, tuple[Point, Point]]


def matrix(groups: Sequence[Group]) -> list[Line]:
    """Every line with a value, in each dataset the deciding reading first."""
    lines = []
    for group in groups:
        asked = [(m, p, r) for run in group.runs for m, p, r in _asked(run)]
        order = sorted(
            dict.fromkeys(asked), key=lambda k: (k[1] != "swapped", k[0] != "answers", k[2] != group.reading)
        )
        for metric, pairing, reading in order:
            cells = {
                r.name: _cell(r, metric, pairing, reading)
                for r in group.runs
                if (metric, pairing, reading) in _asked(r)
            }
            if any(not math.isnan(p.value) for both in cells.values() for p in both):
                lines.append(Line(group.label, _said(group, metric, reading), pairing, metric, reading, cells))
    return lines


def _asked(run: Run) -> list[tuple[str, str, str]]:
    """(metric, pairing, reading) of what a run's answers were held against."""
    report = run.report
    found = [("accuracy", p, r) for p, readings in report.accuracy.items() for r in readings]
    written = last(report, "answers", "swapped")
    return found + [
        ("answers", "swapped", kind) for kind in KINDS if any(f"reverse, {kind}" in m.columns for m in written)
    ]


def _cell(run: Run, metric: str, pairing: str, reading: str) -> tuple[Point, Point]:
    report = run.report
    if metric == "accuracy":
        forward = shares(report, pairing, reading, 0, "forward")
        reverse = shares(report, pairing, reading, 1, "reverse")
        return _end(forward.points), _end(reverse.points)
    measured = last(report, metric, pairing)
    points = [
        clipped(estimate(report, measured, [m.columns[f"{way}, {reading}"] for m in measured]), 0.0, 1.0)
        for way in ("forward", "reverse")
    ]
    return points[0], points[1]


def _end(points: Sequence[Point]) -> Point:
    return points[-1] if points else Point(math.nan)


def _said(group: Group, metric: str, reading: str) -> str:
    """The reading in words; of a written answer, how it was decoded."""
    if metric == "accuracy":
        return visible(reading)
    decoders = dict.fromkeys(_decoder(run) for run in group.runs)
    return visible(f"written, {reading} ({' or '.join(decoders)})")


def _decoder(run: Run) -> str:
    """How a run wrote its answers; a causal model has no choice."""
    info = run.report.info
    return "left to right" if info.get("objective") == "causal" else str((info.get("decoding") or {}).get("decoder"))
