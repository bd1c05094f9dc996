"""Tab. 3, 4 and 5 as sheets, with the score correlation of trained models laid over the bound."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rcprobe.report import Report
from rcprobe.report.correlations import by_distance
from rcprobe.report.panels import Curves, FigureData, Point, Series
from rcprobe.report.sheet import Grid, Sheet, even
from rcprobe.statistics import over_seeds
from rcprobe.theory import expected_worst_case, rope_bound
from rcprobe_plugins.studies import closed_forms
from rcprobe_plugins.studies.one_layer import Setting, notes
from rcprobe_plugins.studies.one_layer_figures import Maps, heat_maps, maps
from rcprobe_plugins.studies.one_layer_tables import percent

GRID = np.arange(1, 51)
WIDTH = 64  # of the trained models' one head


@dataclass(frozen=True)
class Compared:
    """A trained model's score correlation at each pair of its distances [δ←, δ→], seed by seed."""

    setting: Setting
    maps: Maps

    @cached_property
    def bound(self) -> NDArray[np.float64]:
        """The least mean surrogate of each pair (App. B.3)."""
        return expected_worst_case(self.maps.distances, self.maps.distances, WIDTH).T

    @property
    def shares(self) -> list[float]:
        """For each seed, of the pairs that have a correlation, those where it reaches the bound, in percent."""
        maps = self.maps.by_seed.values()
        return [100 * float((of >= self.bound)[~np.isnan(of)].mean()) for of in maps]

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        means = [float(np.nanmean(of)) for of in self.maps.by_seed.values()]
        mean = over_seeds(means)
        between = "" if np.isnan(mean.low) else f" [{max(mean.low, -1.0):.3f}, {min(mean.high, 1.0):.3f}]"
        least = min(float(np.nanmin(of)) for of in self.maps.by_seed.values())
        size = str(self.maps.mean.size)
        return self.setting.label, size, f"{mean.value:.3f}{between}", f"{least:.3f}", *self._of_seeds()

    def _of_seeds(self) -> tuple[str, str]:
        each = (f"{seed}: {share:.0f}" for seed, share in zip(self.maps.by_seed, self.shares, strict=True))
        return percent(self.shares), ", ".join(each)

    def rows(self) -> Iterator[dict[str, object]]:
        """One row a pair of distances: the mean over seeds, and each of them."""
        for (r, f), value in np.ndenumerate(self.maps.mean):
            yield {
                "model": self.setting.label,
                "forward": int(self.maps.distances[f]),
                "reverse": int(self.maps.distances[r]),
                "measured": float(value),
                "bound": float(self.bound[r, f]),
                **{f"seed {seed}": float(of[r, f]) for seed, of in self.maps.by_seed.items()},
            }


def tab3() -> Sheet:
    """Tab. 3 (Thm 4.3)."""
    return _closed("tab3", "Tab. 3 (Thm 4.3): least bound on the correlation, δ = 1 … 50", closed_forms.tab3())


def tab4() -> Sheet:
    """Tab. 4 (App. B.2)."""
    return _closed("tab4", "Tab. 4 (App. B.2): certified probability", closed_forms.tab4())


def tab5(reports: Mapping[Setting, Report]) -> Sheet:
    """Tab. 5 (App. B.3) over our grid, and what models with RoPE were measured to do at each pair of distances."""
    frame = closed_forms.tab5(GRID, GRID)
    draws = f"{frame.attrs['draws']} draws, seed {frame.attrs['seed']}"
    compared = [Compared(s, found) for s, r in reports.items() if (found := maps(r)) is not None]
    grids = (
        _grid(f"Over δ→, δ← = 1 … 50; negative and certified from {draws}", frame),
        Grid(
            "Measured in trained models, beside the least mean surrogate of each pair of distances",
            ("model", "pairs of distances", "measured r: mean", "least", "pairs at or above the bound, %", "each seed"),
            tuple(one.cells() for one in compared),
        ),
    )
    answer = (
        "The paper's grid is lost, so its figures and ours may be of different grids; ours is the whole square.",
        *(
            f"{one.setting.label}: the measured correlation reaches the bound at {percent(one.shares)} % of the pairs "
            "of distances, mean [95 % interval over seeds]."
            for one in compared
        ),
        "The bound is on a mean over queries and assumes how keys spread (App. B.3): a trained model that falls under "
        "it doesn't keep those assumptions; one that lies above it isn't proof of them.",
    )
    figures = (heat_maps(reports), *(overlay(s, r) for s, r in reports.items()))
    title = "Tab. 5 (App. B.3): least mean surrogate at unequal distances"
    values = even([*_records("tab5", frame), *(row for one in compared for row in one.rows())])
    return Sheet("tab5", title, answer, grids, values, notes(reports), figures)


def overlay(setting: Setting, report: Report) -> FigureData:
    """Measured correlation at equal distances, over the bound of Thm 4.3."""
    measured = by_distance(report)
    panels = []
    for panel in measured.panels[:1]:
        assert isinstance(panel, Curves)
        places = panel.series[0].places
        bound = tuple(Point(float(b)) for b in rope_bound(np.array(places), WIDTH))
        series = (*panel.series, Series("bound on its mean (Thm 4.3)", "control", places, bound))
        panels.append(Curves(setting.label, panel.x_label, panel.y_label, series))
    how = "Measured over facts at each distance, with its interval over seeds; the bound for a head of width 64."
    title = f"Measured correlation and bound: {setting.label}"
    return FigureData(f"overlay-{setting.length}", title, "", how, tuple(panels), "" if panels else measured.missing)


def _closed(key: str, title: str, frame: pd.DataFrame) -> Sheet:
    worst = float(frame["difference"].abs().max())
    agree = bool((frame["ours"].round(3) == frame["paper"]).all())
    said = "Ours agree with the paper to the printed digit" if agree else "Ours differ from the paper's printed digits"
    return Sheet(
        key,
        title,
        (f"{said} (largest difference {worst:.5f}).",),
        (_grid("Beside the paper's figures", frame),),
        _records(key, frame),
    )


def _grid(title: str, frame: pd.DataFrame) -> Grid:
    cells = tuple(tuple(_cell(str(name), value) for name, value in row.items()) for row in frame.to_dict("records"))
    return Grid(title, tuple(map(str, frame.columns)), cells)


def _cell(column: str, value: object) -> str:
    """What the paper printed with its three digits; ours with two more, so that one sees how it rounds."""
    digits = 3 if column in ("paper", "threshold") else 5
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _records(key: str, frame: pd.DataFrame) -> tuple[dict[str, object], ...]:
    return tuple({"table": key, **{str(k): v for k, v in row.items()}} for row in frame.to_dict("records"))
