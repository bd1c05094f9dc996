"""The table of facts: each with its texts, how it was answered both ways, and whether it transfers."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rcprobe.facts import Direction, Fact
from rcprobe.measured import Measured, per_fact
from rcprobe.report.curves import PROBABILITY
from rcprobe.report.report import FULL, Report
from rcprobe.report.values import Floats, by_step, last, mean_over, with_columns
from rcprobe.visible import shortened, visible

TEXT, STATEMENT = 120, 240  # characters of an entity and of a statement that are shown
STATUSES = {
    "transfers": "right in reverse in at least half of its askings",
    "forward only": "right forward in at least half of its askings, in reverse in fewer",
    "not learned": "right in fewer than half of its askings, both ways",
    "no value": "it couldn't be asked, or its answers weren't judged",
}
Value = str | float | None


@dataclass(frozen=True)
class Column:
    """A column: ``kind`` is text, share, probability or number; ``unit`` is said in its heading."""

    key: str
    label: str
    kind: str
    unit: str = ""


COLUMNS = (
    Column("a", "a", "text"),
    Column("b", "b", "text"),
    Column("forward", "forward statement", "text"),
    Column("reverse", "reverse statement", "text"),
    Column("status", "outcome", "text"),
    Column("right_forward", "right, forward", "share", "of askings"),
    Column("right_reverse", "right, reverse", "share", "of askings"),
    Column("p_forward", "p, forward", "probability", "geometric mean"),
    Column("p_reverse", "p, reverse", "probability", "geometric mean"),
    Column("gain", "gain in reverse over other answers", "number", "nats"),
    Column("cosine", "gradient cosine over control", "number"),
)


@dataclass(frozen=True)
class FactTable:
    """Columns that hold anything, rows in the dataset's order, and how many facts have each outcome.

    ``reading`` names the answers that competed.
    """

    columns: tuple[Column, ...]
    rows: list[list[Value]]
    counts: dict[str, int]
    reading: str


def fact_table(report: Report) -> FactTable:
    """Every fact's values at the last step, averaged over seeds and template pairs; None where undefined."""
    facts = report.dataset.facts
    size = len(facts)
    reading = next(iter(report.dataset.readings), FULL)
    forward, reverse = (_of(report, "accuracy", "swapped", f"{way}, {reading}") for way in ("forward", "reverse"))
    if np.isnan(forward).all() and np.isnan(reverse).all():
        forward, reverse = (_of(report, "accuracy", "same_target", f"{w}, {reading}") for w in ("forward", "reverse"))
    status = _statuses(forward, reverse)
    found = next(iter(with_columns(report, PROBABILITY)), None)
    p = [_of(report, *found, f"{way}, {reading}") if found else np.full(size, np.nan) for way in ("forward", "reverse")]
    numbers = [forward, reverse, *(np.exp(x) for x in p), _gain(report, found), _cosine(report)]
    rows: list[list[Value]] = []
    for i, fact in enumerate(facts):
        texts: list[Value] = [shortened(fact.a, TEXT), shortened(fact.b, TEXT)]
        texts += [_statement(fact, "forward"), _statement(fact, "reverse")]
        texts.append(status[i] if fact.trained else f"{status[i]} (held out)")
        rows.append([*texts, *(_plain(column[i]) for column in numbers)])
    kept = [k for k, c in enumerate(COLUMNS) if c.kind == "text" or any(row[k] is not None for row in rows)]
    counts = {name: status.count(name) for name in STATUSES}
    return FactTable(tuple(COLUMNS[k] for k in kept), [[row[k] for k in kept] for row in rows], counts, reading)


def _statement(fact: Fact, direction: Direction) -> str:
    """The statement, each entity set apart so that one written right to left doesn't turn the others round."""
    text, *spans = fact.statement(direction)
    if len(text) > STATEMENT or text.isascii():
        return shortened(text, STATEMENT)
    (a0, a1), (b0, b1) = sorted(spans)
    pieces = (text[:a0], text[a0:a1], text[a1:b0], text[b0:b1], text[b1:])
    return "".join(f"\u2068{visible(p)}\u2069" if i % 2 else visible(p) for i, p in enumerate(pieces))


def _of(report: Report, metric: str, pairing: str, column: str) -> Floats:
    """A column's mean over each fact's pairs and over seeds, float64 [facts]."""
    size = len(report.dataset.facts)
    measured = [m for m in last(report, metric, pairing) if column in m.columns]
    if not measured:
        return np.full(size, np.nan)
    return mean_over([per_fact(m.columns[column], m.table.fact, size) for m in measured])


def _gain(report: Report, found: tuple[str, str] | None) -> Floats:
    """Growth of log p(a | reverse) since the first step, less that of other answers."""
    size = len(report.dataset.facts)
    steps = list(by_step(report, *found).values()) if found else []
    if len(steps) < 2:
        return np.full(size, np.nan)

    def lead(measured: list[Measured]) -> Floats:
        return mean_over(
            [per_fact(m.columns["reverse"] - m.columns["alternatives"], m.table.fact, size) for m in measured]
        )

    grown: Floats = lead(steps[-1]) - lead(steps[0])
    return grown


def _cosine(report: Report) -> Floats:
    found = next(iter(with_columns(report, {"matched", "same_target"})), None)
    size = len(report.dataset.facts)
    if found is None:
        return np.full(size, np.nan)
    return mean_over(
        [per_fact(m.columns["matched"] - m.columns["same_target"], m.table.fact, size) for m in last(report, *found)]
    )


def _statuses(forward: NDArray[np.float64], reverse: NDArray[np.float64]) -> list[str]:
    known = {True: "forward only", False: "not learned"}
    return [
        "no value" if math.isnan(r) else "transfers" if r >= 0.5 else known[bool(f >= 0.5)]
        for f, r in zip(forward, reverse, strict=True)
    ]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")
