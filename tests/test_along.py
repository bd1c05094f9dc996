"""Signatures along training: the figure's numbers against what was measured, whatever metric measured it."""

from dataclasses import replace

import numpy as np
import pytest
import synthetic

from rcprobe.metrics import Condition, Metric
from rcprobe.report import build
from rcprobe.report.along import along
from rcprobe.report.values import finished
from rcprobe.statistics import over_seeds


@pytest.fixture(scope="module")
def report():
    return synthetic.report(count=12, seeds=3, replicate="seed", steps=(0, 100))


def columns(report, metric, step, name):
    """One value a seed: the mean over facts of each fact's mean over pairs, layers and heads."""
    means = []
    for run in finished(report):
        found = next(m for s in run.steps if s.step == step for m in s.measured if m.metric == metric)
        rows = np.array([np.mean(row) for row in found.columns[name]])
        means.append(np.mean([rows[found.table.fact == fact].mean() for fact in np.unique(found.table.fact)]))
    return means


def test_a_panel_for_what_every_verdict_rests_on(report):
    figure = along(report)
    assert [panel.title.splitlines()[0] for panel in figure.panels] == [
        "storage: growth of W̃[a, b]",
        "routing: r of scores",
        "dynamics: cos matched − same target, other evidence",
        "outcome: gain of log p(a | reverse)",
    ]
    assert [[series.label for series in panel.series] for panel in figure.panels] == [
        ["stored", "mismatched (control)"],
        ["r over facts"],
        ["matched", "same target (control)"],
        ["reverse", "alternatives (control)"],
    ]
    assert "storage: growth of W̃[a, b], forward asks for b, reverse for a: stored " in figure.says


@pytest.mark.parametrize(
    ("panel", "metric", "names"),
    [
        (0, "storage", ("stored", "mismatched")),
        (2, "gradient_alignment", ("matched", "same_target")),
        (3, "reverse_probability", ("reverse", "alternatives")),
    ],
)
def test_both_sides_of_a_contrast_at_every_step(report, panel, metric, names):
    for series, name in zip(along(report).panels[panel].series, names, strict=True):
        assert series.places == (0.0, 100.0)
        for i, step in enumerate((0, 100)):
            seeds = columns(report, metric, step, name)
            expected = over_seeds(seeds)
            point = series.points[i]
            assert (point.value, point.low, point.high) == pytest.approx((expected.value, expected.low, expected.high))
            assert [series.seeds[seed][i] for seed in range(3)] == pytest.approx(seeds)


def test_a_correlation_ends_where_the_signature_has_it(report):
    (series,) = along(report).panels[1].series
    estimate = report.signatures["attention_correlation"].findings[0].estimate
    assert series.points[-1].value == pytest.approx(estimate.value)
    assert (series.points[-1].low, series.points[-1].high) == pytest.approx((estimate.low, estimate.high))
    assert np.mean([series.seeds[seed][-1] for seed in range(3)]) == pytest.approx(estimate.value)
    by_fact = along(synthetic.report(count=12, seeds=1, steps=(0, 100))).panels[1].series[0]
    assert np.isnan(by_fact.points[-1].low)
    assert by_fact.seeds == {}


def test_a_metric_of_ones_own_is_drawn_and_what_says_a_part_is_not(report):
    conditions = (
        Condition("gap", "mean", ["matched", "other_fact"], 0.0, "cosine"),  # a list serves as a tuple does
        Condition("level", "mean", ("matched",), 0.0, "cosine"),
        Condition("aside", "mean", ("cos query",), 0.0, "cosine", judged=False),
    )
    own = Metric("gradient_alignment", frozenset(), ("same_target",), lambda seen: {}, conditions, "mine")
    mine = build(report.dataset, (own,), report.runs, chance=0.01, identities={}, info=synthetic.INFO)
    (panel,) = along(mine).panels
    assert panel.title.splitlines()[0] == "mine: gap"
    assert [series.label for series in panel.series] == ["matched", "other fact (control)"]
    assert panel.y_label == "mean over facts, cosine"


def test_every_judged_condition_is_drawn_unless_another_shows_its_columns(report):
    conditions = (
        Condition("r", "correlation", ("matched", "same_target"), 0.1, "r"),
        Condition("gap", "mean", ("matched", "same_target"), 0.0, "cosine"),
        Condition("size", "effect_size", ("matched", "same_target"), 0.2, "d_z"),
        Condition("other gap", "mean", ("matched", "other_fact"), 0.0, "cosine"),
        Condition("level", "mean", ("cos query",), 0.0, "cosine"),
    )
    own = Metric("gradient_alignment", frozenset(), ("same_target",), lambda seen: {}, conditions, "mine")
    mine = build(report.dataset, (own,), report.runs, chance=0.01, identities={}, info=synthetic.INFO)
    titles = [panel.title.splitlines()[0] for panel in along(mine).panels]
    assert titles == ["mine: r", "mine: size", "mine: other gap", "mine: level"]


def test_a_pair_without_a_control_has_no_part_in_either_side(report):
    """As in the signature, whose matched and control the last step must be."""
    holes = np.arange(len(report.runs[0].steps[0].measured[2].table.fact)) % 3 == 0

    def holed(measured):
        if measured.metric != "gradient_alignment":
            return measured
        return replace(
            measured,
            columns={**measured.columns, "same_target": np.where(holes, np.nan, measured.columns["same_target"])},
        )

    runs = tuple(
        replace(run, steps=tuple(replace(s, measured=tuple(map(holed, s.measured))) for s in run.steps))
        for run in report.runs
    )
    found = build(report.dataset, synthetic.METRICS, runs, chance=0.01, identities={}, info=synthetic.INFO)
    finding = found.signatures["gradient_alignment"].findings[0]
    matched, control = along(found).panels[2].series
    assert matched.points[-1].value == pytest.approx(finding.matched)
    assert control.points[-1].value == pytest.approx(finding.control)
    assert matched.points[-1].value != along(report).panels[2].series[0].points[-1].value


def test_intervals_stay_where_values_can_be(report):
    wild = {0: 1.0, 1: -1.0, 2: 1.0}
    runs = tuple(
        replace(
            run, steps=tuple(replace(s, measured=tuple(_set(m, wild[run.seed]) for m in s.measured)) for s in run.steps)
        )
        for run in report.runs
    )
    found = build(report.dataset, synthetic.METRICS, runs, chance=0.01, identities={}, info=synthetic.INFO)
    point = along(found).panels[2].series[0].points[-1]
    assert (point.low, point.high) == (-1.0, 1.0)
    estimate = found.signatures["gradient_alignment"].findings[0].estimate
    assert (estimate.low, estimate.high) == (-2.0, 2.0)  # of a difference of two cosines
    assert estimate.value == pytest.approx(2 / 3)


def _set(measured, value):
    if measured.metric != "gradient_alignment":
        return measured
    alike = {"matched": value, "same_target": -value}
    return replace(
        measured, columns={**measured.columns, **{k: np.full(len(measured.table.fact), v) for k, v in alike.items()}}
    )


def test_one_step_alone_has_no_course():
    figure = along(synthetic.report(count=12, seeds=2, replicate="seed", steps=(0,)))
    assert figure.panels == ()
    assert figure.missing == "fewer than two steps were probed"
