"""The paper's tables that need no model: its figures, and ours beside them (Tab. 3, 4, 5)."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from rcprobe.theory import expected_worst_case, rope_bound, rope_tail, sampled_worst_case
from rcprobe_plugins.studies.published import published


def tab3() -> pd.DataFrame:
    """Tab. 3 (Thm 4.3): the least bound on the correlation over equal distances, a row for each width of the head.

    Columns ``width, paper, ours, difference, distance``: ``distance`` is where our minimum lies, in positions.
    """
    table = published("tab3").rename(columns={"bound": "paper"})
    distances = np.arange(table.attrs["distances"]["first"], table.attrs["distances"]["last"] + 1)
    bounds = np.stack([rope_bound(distances, width, table.attrs["base"]) for width in table["width"]])
    return _beside(table, bounds.min(axis=1)).assign(distance=distances[bounds.argmin(axis=1)])


def tab4() -> pd.DataFrame:
    """Tab. 4 (App. B.2): the probability that is certified, a row for each width, distance and threshold.

    Columns ``width, distance, threshold, paper, ours, difference``.
    """
    table = published("tab4").rename(columns={"probability": "paper"})
    places = zip(*(table[name].tolist() for name in ("distance", "threshold", "width")), strict=True)
    tails = [float(rope_tail(distance, tau, width, table.attrs["base"])) for distance, tau, width in places]
    return _beside(table, np.array(tails))


def tab5(forward: ArrayLike, reverse: ArrayLike, draws: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Tab. 5 (App. B.3): the least mean surrogate over a grid of δ→ × δ←, a row for each width of the head.

    ``forward`` [F] and ``reverse`` [R] are the grid: the paper's isn't known, so its figures and ours may be of
    different grids. Columns ``width, paper, ours, difference, forward, reverse, negative, certified``: ``ours`` is
    exact, ``forward`` and ``reverse`` where it lies, ``negative`` the share of queries with a negative surrogate
    there, ``certified`` the least bound over the grid that counts those as −1. The last two are from ``draws``
    queries. The grid, draws and seed are in the frame's ``attrs``. Raises ``UsageError`` for a grid that isn't two
    lists of distances, or fewer than 2 draws.
    """
    table = published("tab5").rename(columns={"surrogate": "paper"})
    ahead, behind = np.asarray(forward), np.asarray(reverse)
    found = []
    for width in table["width"]:
        sampled = sampled_worst_case(ahead, behind, width, table.attrs["base"], draws, seed)
        exact = expected_worst_case(ahead, behind, width, table.attrs["base"])
        i, j = np.unravel_index(exact.argmin(), exact.shape)
        found.append((exact[i, j], ahead[i], behind[j], sampled.negative[i, j], sampled.certified.min()))
    ours, at, and_at, negative, certified = (np.array(column) for column in zip(*found, strict=True))
    frame = _beside(table, ours).assign(forward=at, reverse=and_at, negative=negative, certified=certified)
    frame.attrs.update(grid={"forward": ahead.tolist(), "reverse": behind.tolist()}, draws=draws, seed=seed)
    return frame


def _beside(table: pd.DataFrame, ours: NDArray[np.float64]) -> pd.DataFrame:
    return table.assign(ours=ours, difference=ours - table["paper"])
