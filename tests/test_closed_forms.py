"""The paper's closed-form tables beside ours, and the file that keeps its figures."""

import numpy as np
import pytest

from rcprobe.errors import UnknownNameError, UsageError
from rcprobe.theory import expected_worst_case, rope_bound, sampled_worst_case
from rcprobe_plugins.studies.closed_forms import tab3, tab4, tab5
from rcprobe_plugins.studies.published import published


@pytest.mark.parametrize(
    ("table", "rows"), [("tab1", 4), ("tab2", 6), ("tab3", 3), ("tab4", 30), ("tab5", 3), ("tab7", 25)]
)
def test_each_published_table_is_whole_and_names_its_source(table, rows):
    frame = published(table)
    assert len(frame) == rows
    assert not frame.isna().any().any()
    assert not frame.duplicated().any()
    assert frame.attrs["what"]
    assert "2602.02133" in frame.attrs["source"]["url"]


def test_percentages_and_probabilities_are_possible():
    for table, most in [("tab1", 100), ("tab2", 100), ("tab4", 1), ("tab5", 1), ("tab7", 100)]:
        figures = published(table).select_dtypes("float")
        assert ((figures >= 0) & (figures <= most)).all().all()
        assert figures.max().max() > most / 3


def test_a_table_that_is_not_kept_is_told_with_those_that_are():
    with pytest.raises(UnknownNameError, match=r"published table.*'tab9'.*tab"):
        published("tab9")
    with pytest.raises(UnknownNameError):
        published("source")


def test_table_3_matches_the_printed_digits():
    frame = tab3()
    assert list(frame.columns) == ["width", "paper", "ours", "difference", "distance"]
    assert (frame["ours"].round(3) == frame["paper"]).all()
    np.testing.assert_allclose(frame["difference"], frame["ours"] - frame["paper"])
    for row in frame.itertuples():
        assert row.ours == float(rope_bound(row.distance, row.width))


def test_table_4_matches_the_printed_digits():
    frame = tab4()
    assert list(frame.columns) == ["width", "distance", "threshold", "paper", "ours", "difference"]
    assert (frame["ours"].round(3) == frame["paper"]).all()


def test_table_5_is_of_the_grid_that_was_asked():
    grid = [1, 8, 21, 50]
    frame = tab5(grid, grid, draws=500, seed=3)
    assert list(frame.columns) == [
        "width",
        "paper",
        "ours",
        "difference",
        "forward",
        "reverse",
        "negative",
        "certified",
    ]
    assert frame.attrs["grid"] == {"forward": grid, "reverse": grid}
    assert (frame.attrs["draws"], frame.attrs["seed"]) == (500, 3)
    for row in frame.itertuples():
        exact = expected_worst_case(grid, grid, row.width)
        assert row.ours == exact.min() == exact[grid.index(row.forward), grid.index(row.reverse)]
        sampled = sampled_worst_case(grid, grid, row.width, draws=500, seed=3)
        assert row.certified == sampled.certified.min()
        assert row.negative == sampled.negative[grid.index(row.forward), grid.index(row.reverse)]


def test_table_5_on_equal_distances_is_table_3():
    single = tab5([48], [48], draws=2)
    assert single["ours"][0] == pytest.approx(tab3()["ours"][0], abs=1e-9)


def test_table_5_over_1_to_50_lies_below_what_was_printed():
    """The printed ranges are lost; over the whole square the minima are lower."""
    grid = np.arange(1, 51)
    least = [expected_worst_case(grid, grid, width).min() for width in published("tab5")["width"]]
    np.testing.assert_allclose(least, [0.186, 0.273, 0.327], atol=5e-4)


def test_an_impossible_grid_is_refused():
    with pytest.raises(UsageError, match="grid"):
        tab5(3, 4)
