"""Do signatures say which facts transfer? On made-up facts whose answer is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import synthetic
from scipy import stats

from rcprobe.facts import Dataset
from rcprobe.measured import Measured, PairTable, Step
from rcprobe.report import SeedRun
from rcprobe.report.foretold import foretold, lines, rows
from rcprobe.report.html import page
from rcprobe.report.saved import load_report
from rcprobe.report.terminal import print_report
from rcprobe.statistics import score_correlation
from rcprobe.transfer import ANSWERED, LOG_P, predictions

FULL = "full vocabulary"
INFO = {"dataset": "towns", "facts": 48}


def one_pair_a_fact(count, strata=1):
    fact = np.arange(count)
    one = np.ones(count, dtype=np.int64)
    return PairTable(fact, 0 * one, fact, 1 + fact % strata, one, one, one.astype(bool))


def step(number, table, seed=0, right=None, log_p=None, cosine=None, **others):
    """A step of known columns; what isn't given is noise."""
    rng = np.random.default_rng(1000 * seed + number)
    size = len(table.fact)

    def given(values):
        return rng.normal(size=size) if values is None else np.asarray(values, dtype=np.float64)

    p = given(log_p)
    columns = {
        "accuracy": {f"forward, {FULL}": np.ones(size), f"reverse, {FULL}": given(right)},
        "reverse_probability": {"forward": p, "reverse": p, "alternatives": 0 * p, f"reverse, {FULL}": p},
        "gradient_alignment": {"matched": given(cosine), "same_target": np.zeros(size)},
        **others,
    }
    measured = tuple(Measured(name, "swapped", seed, number, found, table) for name, found in columns.items())
    return Step(seed, number, None, measured, {"swapped": {FULL: (1.0, 0.5)}}, {}, {})


def asked(steps, count=48, replicate="fact"):
    dataset = Dataset("towns", synthetic.facts(count), replicate=replicate)
    return {(p.outcome, p.signature, p.step): p for p in predictions(dataset, steps)}


COSINE, PRODUCT, STORAGE = "gradient cosine over control", "score product", "storage over mismatched"
NOISE = np.random.default_rng(5).normal(size=48)
RIGHT = (np.arange(48) % 2).astype(float)


def test_r_is_point_biserial_and_spearman():
    found = asked([[step(0, one_pair_a_fact(48), right=RIGHT, log_p=NOISE**3, cosine=NOISE + RIGHT)]])
    biserial, rank = found[ANSWERED, COSINE, 0], found[LOG_P, COSINE, 0]
    assert biserial.r == pytest.approx(stats.pointbiserialr(RIGHT, NOISE + RIGHT).statistic, abs=1e-12)
    assert rank.r == pytest.approx(stats.spearmanr(NOISE**3, NOISE + RIGHT).statistic, abs=1e-12)
    assert biserial.low < biserial.r < biserial.high
    assert biserial.decision == "predicts"
    assert biserial.n == 48


def test_the_step_is_of_the_signature_and_the_outcome_is_the_last():
    steps = [
        step(0, one_pair_a_fact(48), right=1 - RIGHT, cosine=NOISE),
        step(50, one_pair_a_fact(48), right=RIGHT, cosine=RIGHT + 0.1 * NOISE),
    ]
    found = asked([steps])
    assert found[ANSWERED, COSINE, 0].r == pytest.approx(stats.pointbiserialr(RIGHT, NOISE).statistic)
    assert found[ANSWERED, COSINE, 0].decision == "not decided"
    assert found[ANSWERED, COSINE, 50].r > 0.9
    assert found[ANSWERED, COSINE, 50].decision == "predicts"


def test_what_only_tells_groups_apart_predicts_nothing():
    """In one group of alike facts all is high, in the other low: over all facts r is near 1."""
    table, group = one_pair_a_fact(48, strata=2), np.arange(48) % 2
    right = ((np.arange(48) // 2 + group) % 4 < 1 + 2 * group).astype(float)
    cosine = 5.0 * group + NOISE
    found = asked([[step(0, table, right=right, cosine=cosine)]])[ANSWERED, COSINE, 0]
    assert stats.pearsonr(right, cosine).statistic > 0.4
    assert abs(found.r) < 0.3
    assert found.decision == "not decided"
    held = score_correlation(cosine[:, None], right[:, None], 0 * group, group, np.arange(48))
    assert found.r == pytest.approx(held.pooled, abs=1e-12)


def test_an_inverse_relation_is_the_opposite():
    found = asked([[step(0, one_pair_a_fact(48), right=RIGHT, cosine=NOISE - 3 * RIGHT)]])[ANSWERED, COSINE, 0]
    assert found.decision == "predicts the opposite"
    assert found.high < 0


def test_p_is_no_less_than_the_share_of_exchanges_that_reach_r():
    rng = np.random.default_rng(1)
    found = asked([[step(0, one_pair_a_fact(48), right=RIGHT, cosine=NOISE)]])[ANSWERED, COSINE, 0]
    null = [abs(np.corrcoef(rng.permutation(RIGHT), NOISE)[0, 1]) for _ in range(1000)]
    exchanged = np.mean(np.array(null) >= abs(found.r))
    assert exchanged - 0.1 <= found.p <= exchanged + 0.25  # the larger of two ways' p


def test_noise_is_seldom_taken_for_a_prediction():
    rng, table = np.random.default_rng(3), one_pair_a_fact(48)
    found = asked([[step(k, table, right=RIGHT, cosine=rng.normal(size=48)) for k in range(60)]])
    decisions = [found[ANSWERED, COSINE, k].decision for k in range(60)]
    assert 60 - decisions.count("not decided") <= 8  # 5 % of 60, and chance


def test_holm_counts_the_signatures_of_a_step():
    stored = {"storage": {"stored": NOISE[::-1].copy(), "mismatched": 0 * NOISE}}
    found = asked([[step(0, one_pair_a_fact(48), right=RIGHT, cosine=NOISE, **stored)]])
    pair = sorted((found[ANSWERED, name, 0] for name in (COSINE, STORAGE)), key=lambda one: one.p)
    assert pair[0].adjusted == min(1, 2 * pair[0].p)
    assert pair[1].adjusted == max(pair[0].adjusted, pair[1].p)


def test_the_score_product_is_a_facts_part_in_the_correlation():
    scores = np.random.default_rng(2).normal(size=(2, 48, 2, 3))
    columns = {
        "forward": scores[0],
        "reverse": scores[1],
        "forward_log_weight": scores[0],
        "reverse_log_weight": scores[1],
    }
    found = asked([[step(0, one_pair_a_fact(48), right=RIGHT, attention_correlation=columns)]])[ANSWERED, PRODUCT, 0]
    z = (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)
    product = (z[0] * z[1]).mean(axis=(1, 2))
    assert product.mean() == pytest.approx(
        np.mean([[np.corrcoef(*scores[:, :, k, h])[0, 1] for h in range(3)] for k in range(2)])
    )
    assert found.r == pytest.approx(np.corrcoef(product, RIGHT)[0, 1])


@pytest.mark.parametrize(("right", "why"), [(0.0, "no fact transfers"), (1.0, "all facts transfer")])
def test_it_cannot_be_asked_when_all_or_none_transfer(right, why):
    found = asked([[step(0, one_pair_a_fact(48), right=np.full(48, right))]])
    assert found[ANSWERED, COSINE, 0].decision == "can't be asked"
    assert found[ANSWERED, COSINE, 0].why == why
    assert math.isnan(found[ANSWERED, COSINE, 0].r)
    assert found[LOG_P, COSINE, 0].why == ""  # that one differs between facts all the same


def test_too_few_facts_decide_nothing():
    few = asked([[step(0, one_pair_a_fact(16), right=RIGHT[:16], cosine=RIGHT[:16] + NOISE[:16])]], 16)
    assert few[ANSWERED, COSINE, 0].why == "16 groups of facts; it needs 20"
    scattered = asked([[step(0, one_pair_a_fact(48, strata=8), right=RIGHT)]])
    assert "in no group of 8 alike facts" in scattered[ANSWERED, COSINE, 0].why


def test_seeds_are_the_replicate_of_a_task_on_one_vocabulary():
    table = one_pair_a_fact(48)
    noise = [np.random.default_rng(k).normal(size=48) for k in range(6)]
    seeds = [[step(0, table, seed=k, right=RIGHT, cosine=RIGHT + noise[k])] for k in range(6)]
    found = asked(seeds, replicate="seed")[ANSWERED, COSINE, 0]
    each = [stats.pearsonr(RIGHT, RIGHT + noise[k]).statistic for k in range(6)]
    test = stats.ttest_1samp(each, 0)
    assert (found.r, found.p) == pytest.approx((np.mean(each), test.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    assert (found.n, found.unit, found.decision) == (6, "seeds", "predicts")
    assert "5" in asked(seeds[:3], replicate="seed")[ANSWERED, COSINE, 0].why


def test_clusters_are_drawn_whole():
    """Each fact four times over, under one name: the interval must be that of a quarter as many."""
    table = one_pair_a_fact(48)
    wide = replace(table, cluster=np.arange(48) % 24)
    values = np.tile(NOISE[:24], 2)
    right = np.tile(RIGHT[:24], 2)
    apart, together = (asked([[step(0, t, right=right, cosine=values)]])[ANSWERED, COSINE, 0] for t in (table, wide))
    assert together.r == pytest.approx(apart.r)
    assert together.n == 24
    assert together.high - together.low > 1.2 * (apart.high - apart.low)


@pytest.fixture(scope="module")
def report():
    steps = tuple(step(k, one_pair_a_fact(48), right=RIGHT, cosine=NOISE + 0.02 * k * RIGHT) for k in (0, 100, 200))
    runs = [SeedRun(0, steps, None, "ab12" * 8)]
    return synthetic.judged(Dataset("towns", synthetic.facts(48)), runs, INFO)


def test_a_report_says_shows_and_keeps_it(report, tmp_path, capsys, monkeypatch):
    assert {(p.outcome, p.step) for p in report.transfer} == {(o, s) for o in (ANSWERED, LOG_P) for s in (0, 100, 200)}
    assert lines(report)[0].startswith(
        f"Which facts transfer ({ANSWERED} at the end), by their signatures at step 200: {COSINE} r 0."
    )
    assert lines(report)[0].endswith("predicts (first at step 100).")
    print_report(report)
    assert lines(report)[0] in " ".join(capsys.readouterr().out.split())
    text = page(report)
    assert "Which facts transfer" in text
    assert text.count("<td>predicts</td>") == 2
    panels = foretold(report).panels
    assert [panel.title for panel in panels] == [ANSWERED, LOG_P]
    assert [p.value for p in panels[0].series[0].points] == [p.r for p in report.transfer if p.outcome == ANSWERED]
    assert len(rows(report)) == 6
    kept = json.loads(json.dumps(report.to_dict()))

    class Kept:  # a run's folder, of which the report alone is read
        path = tmp_path

        def check(self):
            pass

        def seeds(self):
            return ()

        def dataset(self):
            return report.dataset

    monkeypatch.setattr("rcprobe.report.saved.RunFolder", Kept)
    monkeypatch.setattr("rcprobe.report.saved.read_json", lambda path: kept)
    assert load_report(Kept()).transfer == report.transfer


def test_a_reason_common_to_all_is_said_once_and_what_cannot_be_asked_is_not_drawn(report):
    why = "3 seeds; it needs 5"
    apart = replace(report, transfer=tuple(replace(p, why=why if p.outcome == LOG_P else "") for p in report.transfer))
    assert lines(apart)[1].endswith(f"step 200: {COSINE} can't be asked ({why}).")
    right, log_p = foretold(apart).panels
    assert all(p.value == p.value for p in right.series[0].points)
    assert all(p.value != p.value for p in log_p.series[0].points)
    none = replace(report, transfer=tuple(replace(p, why=why) for p in report.transfer))
    assert lines(none) == [f"Which facts transfer by their signatures can't be asked: {why}."]
    assert foretold(none).panels == ()
    assert foretold(none).missing == f"it can't be asked ({why})"


def test_nothing_is_said_where_nothing_was_measured():
    nothing = synthetic.large(10)
    assert nothing.transfer == ()
    assert foretold(nothing) is None
    assert lines(nothing) == []


def test_a_signature_that_one_seed_or_step_lacks_leaves_the_others():
    pairs = one_pair_a_fact(48)

    def seed(number, lacking):
        whole = step(1, pairs, number, right=RIGHT, cosine=RIGHT + 0.3 * NOISE)
        kept = tuple(m for m in whole.measured if m.metric != lacking)
        return [replace(whole, measured=kept)]

    found = asked([seed(0, None), seed(1, "gradient_alignment")])
    assert found[ANSWERED, COSINE, 1].r > 0.5
    seeds = asked([seed(n, "gradient_alignment" if n == 5 else None) for n in range(6)], replicate="seed")
    assert seeds[ANSWERED, COSINE, 1].n == 5


def test_facts_that_share_a_name_do_not_count_as_many():
    """Twenty families of five alike facts and no effect: exchanged one by one, chance would look like an effect."""
    taken = 0
    for draw in range(12):
        rng = np.random.default_rng(draw)
        family = np.repeat(np.arange(20), 5)
        pairs = replace(one_pair_a_fact(100), cluster=family)
        right = rng.integers(2, size=20)[family].astype(float)
        cosine = rng.normal(size=20)[family] + 0.1 * rng.normal(size=100)
        found = asked([[step(1, pairs, draw, right=right, cosine=cosine)]], 100)[ANSWERED, COSINE, 1]
        taken += found.p < 0.05
    assert taken <= 3


def test_who_was_left_out_is_not_spoken_of():
    strata = np.where(np.arange(48) < 10, 1, np.arange(48))
    pairs = replace(one_pair_a_fact(48), stratum=strata)
    right = (np.arange(48) >= 10).astype(float)
    found = asked([[step(1, pairs, right=right, cosine=NOISE)]])[ANSWERED, COSINE, 1]
    assert found.why == "of the 10 facts in groups of 8 alike ones, no fact transfers"
