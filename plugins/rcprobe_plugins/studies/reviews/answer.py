"""An answer, and how it is worded: what is decided, and what isn't."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from rcprobe.report.panels import FigureData, Panel, Point, Series, Style
from rcprobe.statistics import Estimate, over_seeds

ENOUGH = 5  # seeds under which nothing is called decided
ACCURACY = "forward accuracy"
HOW = "Points are means over seeds with 95 % t intervals; small dots are seeds."
UNTRAINED = 0.9  # of it, under which a model hasn't learned its task: said, and never left out


ASKED: Mapping[str, str] = {
    "a": "Relative, absolute or no encoding?",
    "b": "Does coupling grow with depth?",
    "c": "Does the objective matter?",
    "d": "Does it matter which tokens may be masked?",
    "e": "How tight is the first order?",
    "f": "Which matrices carry the inner product?",
    "g": "In which layers do gradients align and routes correlate?",
    "h": "Which signatures tell who transfers?",
    "i": "Is ρ > −½ where the reverse query follows?",
}


@dataclass(frozen=True)
class Answer:
    """``question`` is its letter, ``says`` the finding in one sentence, ``rows`` every value behind it (none where the
    question wasn't answered), ``panels`` the figure and ``how`` to read it.
    """

    question: str
    says: str
    rows: pd.DataFrame
    panels: tuple[Panel, ...]
    how: str = HOW

    @property
    def asked(self) -> str:
        """The question."""
        return ASKED[self.question]

    def figure(self) -> FigureData:
        """The figure under the question's letter."""
        missing = "" if self.panels else "the question wasn't answered"
        return FigureData(f"reviews-{self.question}", self.asked, self.says, self.how, self.panels, missing)


def shown(values: Sequence[float]) -> str:
    """A mean over seeds with its 95 % interval."""
    return said(over_seeds(list(values)))


def said(estimate: Estimate) -> str:
    """An estimate with its 95 % interval, or that it has none."""
    if math.isnan(estimate.value):
        return "undefined"
    if math.isnan(estimate.low):
        found = f"{estimate.value:.2f} (no interval from {_counted(estimate.n, estimate.unit)})"
    else:
        found = f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
    left_out = f" ({_counted(estimate.undefined, estimate.unit)} undefined)" if estimate.undefined else ""
    return f"{found}{left_out}".replace("-", "−")


def _counted(count: int, units: str) -> str:
    return f"{count} {units if count != 1 else units.removesuffix('s')}"


def verdict(estimate: Estimate, above: str, below: str, question: str) -> str:
    """``above`` or ``below`` zero in words, if the interval excludes it; else that the data don't decide."""
    if estimate.n < ENOUGH:
        return undecided(estimate.n, question)
    if estimate.low > 0:
        return above
    if estimate.high < 0:
        return below
    return f"the data don't decide {question}"


def undecided(seeds: int, question: str) -> str:
    """That there are fewer seeds than a verdict needs."""
    return f"{_counted(seeds, 'seeds')} {'do' if seeds != 1 else 'does'}n't decide {question} ({ENOUGH} are needed)"


def by_label(rows: pd.DataFrame, column: str, label: str = "cell") -> Mapping[str, list[float]]:
    """A column's values over seeds, for each label in the order it came."""
    return {str(name): list(part[column]) for name, part in rows.groupby(label, sort=False)}


def series(
    rows: pd.DataFrame,
    column: str,
    label: str,
    style: Style,
    place: str = "cell",
    as_place: Callable[[object], float | str] = str,
) -> Series:
    """A column over places: means with intervals, each seed behind them."""
    places = list(dict.fromkeys(rows[place]))
    points, seeds = [], {}
    for name in places:
        e = over_seeds(list(rows[rows[place] == name][column]))
        points.append(Point(e.value, e.low, e.high))
    for seed, part in rows.groupby("seed", sort=True):
        of = part.set_index(place)[column]
        seeds[int(str(seed))] = tuple(float(of.get(name, math.nan)) for name in places)
    return Series(label, style, tuple(as_place(name) for name in places), tuple(points), seeds)


def paired(rows: pd.DataFrame, column: str, one: str, other: str, label: str = "cell") -> Estimate:
    """The difference one − other within seeds."""
    wide = rows.pivot(index="seed", columns=label, values=column)
    return over_seeds(list(wide[one] - wide[other]))


def not_trained(rows: pd.DataFrame) -> str:
    """Models that haven't learned the forward task, each row one (``cell``, ``seed``, ``ACCURACY``): named in a
    sentence, and kept in every number.
    """
    stuck = rows[~(rows[ACCURACY] >= UNTRAINED)]
    if stuck.empty:
        return ""
    named = ", ".join(f"{row.cell} seed {row.seed}" for row in stuck.itertuples())
    return (
        f" Not trained ({ACCURACY} over the full vocabulary under {UNTRAINED}), and counted all the same, so that "
        f"the numbers are also of how fast models learn: {named}."
    )
