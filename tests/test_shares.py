"""Shares of right answers with Wilson's interval, wherever they are shown."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import synthetic
import torch
from scipy import stats

import rcprobe
from rcprobe.measured import Measured, PairTable
from rcprobe.probe import _by_fact, _counts, _means
from rcprobe.report import plain, words
from rcprobe.report.curves import accuracy
from rcprobe.report.export import to_csv
from rcprobe.report.html import page
from rcprobe.report.shares import assumption, interval, shares
from rcprobe.report.terminal import print_report
from rcprobe.step_files import load_step, save_step

FULL = "full vocabulary"
INFO = {"dataset": "towns", "facts": 40}


def with_counts(report, pairs=None):
    """The synthetic report, its accuracy said to be over so many facts, one more answered in writing."""
    runs = []
    for run in report.runs:
        last = run.steps[-1]
        table = last.measured[0].table
        right = {f"{way}, {kind}": np.full(len(table.fact), np.nan) for way in WAYS for kind in ("exact", "steps")}
        for way, share in zip(WAYS, (1.0, 0.25), strict=True):
            asked = table.stratum > 0
            right[f"{way}, exact"][asked] = (table.fact[asked] % 4 < 4 * share).astype(float)
            right[f"{way}, steps"][asked] = 7.0
        written = Measured("answers", "swapped", run.seed, last.step, right, table)
        last = replace(last, measured=(*last.measured, written), judged={"swapped": {FULL: (40, 30)}})
        runs.append(replace(run, steps=(*run.steps[:-1], last)))
    return replace(report, runs=tuple(runs))


WAYS = ("forward", "reverse")


@pytest.fixture(scope="module")
def report():
    return with_counts(synthetic.report(seeds=1, steps=(0, 100), info=INFO))


def reference(right, of):
    found = stats.binomtest(right, of).proportion_ci(0.95, method="wilson")
    return pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize(("right", "of"), [(0, 1), (1, 1), (0, 12), (12, 12), (5, 12), (1, 400)])
def test_the_interval_is_that_of_scipy(right, of):
    assert interval(right / of, of) == reference(right, of)


def test_a_fact_right_in_half_of_its_askings_counts_half():
    z, p, n = stats.norm.ppf(0.975), 2.5 / 7, 7
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert interval(p, n) == pytest.approx((low, high), abs=1e-12)
    assert all(map(math.isnan, interval(math.nan, 7)))


def test_each_way_counts_its_own_facts(report):
    forward, reverse, written_forward, written_reverse = shares(report)
    assert (forward.value, forward.facts, reverse.value, reverse.facts) == (1.0, 40, 0.5, 30)
    assert (forward.low, forward.high) == reference(40, 40)
    assert (reverse.low, reverse.high) == reference(15, 30)
    assert (written_forward.reading, written_reverse.reading) == ("written, exact", "written, exact")
    assert (written_reverse.low, written_reverse.high) == reference(10, 40)
    assert written_forward.value == 1.0


def test_where_seeds_repeat_the_experiment_there_is_no_such_interval():
    found = shares(with_counts(synthetic.report(seeds=2, replicate="seed", steps=(0, 100))))
    assert [(math.isnan(share.low), share.facts) for share in found] == [(True, 0)] * 4
    assert found[0].seeds == (1.0, 1.0)


def test_facts_that_share_a_name_are_said_to_make_it_too_narrow(report):
    assert "too narrow" not in assumption(report)
    town = replace(report.dataset, facts=synthetic.facts(40, _0=("Person 0", "Town 1")))
    assert "40 facts make 39 groups that share a name, so it is too narrow" in assumption(replace(report, dataset=town))
    assert assumption(replace(report, dataset=replace(town, replicate="seed"))) == ""


def test_a_seed_without_a_share_leaves_a_dash_and_no_interval(report):
    share = replace(shares(report)[1], seeds=(0.5, math.nan))
    assert words.share(share) == "–"


def test_every_output_shows_it(report, capsys):
    print_report(report)
    said = " ".join(capsys.readouterr().out.split())
    for shown in ("100% [91%, 100%]", "50% [33%, 67%]", "25% [14%, 40%]", "Wilson's interval over facts"):
        assert shown in said
        assert shown.replace("'", "&#39;") in page(report)
        assert shown.replace("'", "&#x27;") in report._repr_html_()
    assert plain.answer(report)[0].startswith(
        "Asked forward, the model is right 100% [91%, 100%] of the time; asked in"
    )
    rows = [row for row in csv.DictReader(io.StringIO(to_csv(report))) if row["what"] == "accuracy"]
    assert [(row["measured"], row["n"], row["replicate"]) for row in rows[:2]] == [
        (f"forward, {FULL}", "40", "facts"),
        (f"reverse, {FULL}", "30", "facts"),
    ]
    assert (float(rows[1]["low"]), float(rows[1]["high"])) == reference(15, 30)
    kept = report.to_dict()["shares"]
    assert (kept[1]["low"], kept[1]["high"]) == reference(15, 30)
    assert {row["reading"] for row in kept} == {FULL, "written, exact"}


def test_the_curve_ends_in_the_same_interval(report):
    forward, reverse = accuracy(report).panels[0].series
    assert (forward.points[-1].low, forward.points[-1].high) == reference(40, 40)
    assert (reverse.points[-1].low, reverse.points[-1].high) == reference(20, 40)


def test_a_probe_counts_facts_and_a_step_keeps_the_count(tmp_path):
    facts = [*rcprobe.load_dataset("letters", {"length": 4}).facts[:3], rcprobe.Fact("é", "E", "{a}{b}", "{b}{a}")]
    step = rcprobe.Probe(rcprobe.load("radd", options={"width": 8, "max_length": 4}), facts, ["accuracy"]).step(0)
    assert step.judged["swapped"][FULL] == (3, 3)  # é has no token; a fact is asked at many places and counts once
    save_step(tmp_path / "step", step)
    assert load_step(tmp_path / "step").judged == step.judged


def test_accuracy_is_that_of_trained_facts_and_each_counts_once():
    """A fact asked at many places weighs no more than one asked at few; held-out facts have no part."""
    letters = rcprobe.load_dataset("letters", {"length": 4}).facts
    short = replace(letters[1], forward=letters[1].forward[:1], reverse=letters[1].reverse[:1])
    facts = [letters[0], short, replace(letters[2], trained=False)]
    probe = rcprobe.Probe(rcprobe.load("radd", options={"width": 8, "max_length": 4}), facts, ["accuracy"])
    step = probe.step(0)
    assert step.judged["swapped"][FULL] == (2, 2)
    (measured,) = step.measured[:1]
    values = measured.columns["reverse, full vocabulary"]
    own = [np.nanmean(values[measured.table.fact == fact]) for fact in (0, 1)]
    assert step.accuracy["swapped"][FULL][1] == pytest.approx(np.mean(own))


def test_shares_are_of_facts_not_of_pairs():
    table = PairTable(*([np.zeros(10, dtype=np.int64)] * 6), np.ones(10, dtype=bool))
    table = replace(table, fact=np.array([0] * 9 + [1]))
    right = torch.tensor([[1.0, 1.0]] * 9 + [[0.0, 1.0]], dtype=torch.float64)
    by_fact = _by_fact(right, table)
    assert (_means(by_fact), _counts(by_fact)) == ((0.5, 1.0), (2, 2))
