"""Models × datasets: accuracy forward and reverse in each cell, as the paper's Tab. 7 has it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rcprobe.comparison.runs import Group, Run
from rcprobe.report.panels import Point
from rcprobe.report.shares import Share, of_pairs, shares
from rcprobe.report.values import clipped
from rcprobe.statistics import over_seeds
from rcprobe.visible import visible

WRITTEN = "written, "  # begins the readings of what was written out

Cell = tuple[Point, Point]


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
    cells: dict[str, Cell]


def matrix(groups: Sequence[Group]) -> list[Line]:
    """Every line with a value, in each dataset what was written first, then the deciding reading."""
    lines = []
    for group in groups:
        held = {run.name: _cells(run) for run in group.runs}
        asked = dict.fromkeys(key for cells in held.values() for key in cells)
        order = sorted(asked, key=lambda k: (k[0] != "swapped", not k[1].startswith(WRITTEN), k[1] != group.reading))
        for pairing, reading in order:
            cells = {name: own[pairing, reading] for name, own in held.items() if (pairing, reading) in own}
            if any(not math.isnan(point.value) for both in cells.values() for point in both):
                metric = "answers" if reading.startswith(WRITTEN) else "accuracy"
                key = reading.removeprefix(WRITTEN)
                lines.append(Line(group.label, _said(group, metric, reading), pairing, metric, key, cells))
    return lines


def _cells(run: Run) -> dict[tuple[str, str], Cell]:
    """(pairing, reading) → shares forward and reverse, as the run's own report has them."""
    return {(f.pairing, f.reading): (_point(f), _point(r)) for f, r in of_pairs(shares(run.report))}


def _point(share: Share) -> Point:
    """A share with its interval: over facts as its report has it, over seeds Student's t."""
    if share.facts:
        return Point(share.value, share.low, share.high)
    found = over_seeds(share.seeds)
    return clipped(Point(share.value, found.low, found.high), 0.0, 1.0)


def _said(group: Group, metric: str, reading: str) -> str:
    """The reading in words; of a written answer, how it was decoded."""
    if metric == "accuracy":
        return visible(reading)
    decoders = dict.fromkeys(_decoder(run) for run in group.runs)
    return visible(f"{reading} ({' or '.join(decoders)})")


def _decoder(run: Run) -> str:
    """How a run wrote its answers; a causal model has no choice."""
    info = run.report.info
    return "left to right" if info.get("objective") == "causal" else str((info.get("decoding") or {}).get("decoder"))
