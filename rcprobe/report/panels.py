"""What a figure shows, as plain numbers: the same for the page, the files and the CSV."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Style = Literal["forward", "reverse", "control", "extra", "other"]
Row = dict[str, str | float]


@dataclass(frozen=True)
class Point:
    """A value with its 95 % interval; NaN where undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Series:
    """One series: a point at each place (a number, or the name of a category); ``seeds`` has each seed's values."""

    label: str
    style: Style
    places: tuple[float | str, ...]
    points: tuple[Point, ...]
    seeds: Mapping[int, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """Series over a number, such as the step. ``scale``: plain, log, or share (0 to 1, said in per cent).

    ``limits`` are those of the values, where several panels share one scale.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    scale: Literal["plain", "log", "share"] = "plain"
    limits: tuple[float, float] | None = None

    def rows(self) -> Iterable[Row]:
        """One row a point, and one a seed's value."""
        return _series_rows(self.title, self.x_label, self.series)


@dataclass(frozen=True)
class Dots:
    """Series over named categories, one line each; ``margin`` is a value to exceed, drawn as dashes."""

    title: str
    x_label: str
    series: tuple[Series, ...]
    margin: float = math.nan

    def rows(self) -> Iterable[Row]:
        """One row a point, and one a seed's value."""
        return _series_rows(self.title, "category", self.series)


@dataclass(frozen=True)
class HeatMap:
    """Numbers at named rows and columns: ``values`` float64 [rows, columns], NaN where undefined.

    Colours run from −``limit`` to ``limit``; ``unit`` says what the numbers are.
    """

    title: str
    x_label: str
    y_label: str
    x: tuple[str, ...]
    y: tuple[str, ...]
    values: Floats
    unit: str = "correlation r"
    limit: float = 1.0

    def rows(self) -> Iterable[Row]:
        """One row a cell with a value."""
        for i, y in enumerate(self.y):
            for j, x in enumerate(self.x):
                if not math.isnan(self.values[i, j]):
                    yield {"panel": self.title, self.y_label: y, self.x_label: x, "value": float(self.values[i, j])}


Panel = Curves | Dots | HeatMap


@dataclass(frozen=True)
class FigureData:
    """A figure: ``key`` names its files, ``says`` is its finding in words, ``how`` how to read it.

    A figure without panels says in ``missing`` why it couldn't be drawn.
    """

    key: str
    title: str
    says: str
    how: str
    panels: tuple[Panel, ...] = ()
    missing: str = ""

    def rows(self) -> list[Row]:
        """The figure's numbers, one row a point or cell, under one set of columns."""
        rows = [row for panel in self.panels for row in panel.rows()]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return [{name: row.get(name, "") for name in columns} for row in rows]


def has_values(panel: Panel) -> bool:
    """Whether anything on the panel is defined."""
    if isinstance(panel, HeatMap):
        return not np.isnan(panel.values).all()
    return any(not math.isnan(point.value) for series in panel.series for point in series.points)


def _series_rows(title: str, x_label: str, series: Iterable[Series]) -> Iterable[Row]:
    for one in series:
        for i, (place, point) in enumerate(zip(one.places, one.points, strict=True)):
            start: Row = {"panel": title, "series": one.label, x_label: place}
            yield {**start, "seed": "all", "value": point.value, "low": point.low, "high": point.high}
            for seed, values in one.seeds.items():
                yield {**start, "seed": seed, "value": values[i], "low": math.nan, "high": math.nan}
