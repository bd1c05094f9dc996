"""Differences between runs against scipy, written-out definitions, and data whose truth is known."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from rcprobe.differences import paired_draws, paired_means, resamples, welch


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_over_seeds_it_is_scipys_welch_test(rng):
    a, b = rng.normal(1, 0.3, 5), rng.normal(0.6, 1.2, 8)
    found, known = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    interval = known.confidence_interval()
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found.p == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.n, found.unit) == (5, "seeds")


def test_seeds_without_a_value_are_left_out_and_counted(rng):
    a, b = rng.normal(size=6), rng.normal(size=6)
    a[2] = math.nan
    found, known = welch(a, b), stats.ttest_ind(a, b, equal_var=False, nan_policy="omit")
    assert found.p == pytest.approx(known.pvalue)
    assert (found.n, found.undefined) == (5, pytest.approx(1 / 6))


def test_one_seed_gives_a_difference_and_no_interval():
    found = welch([1.0], [0.25, 0.5])
    assert found.value == 0.625
    assert math.isnan(found.low)
    assert math.isnan(found.p)
    assert math.isnan(welch([], [1.0, 2.0]).value)


def test_seeds_without_spread_differ_or_do_not():
    assert welch([1.0] * 5, [0.0] * 5).p == 0
    same = welch([0.5] * 5, [0.5] * 5)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_paired_means_are_tested_as_every_change_of_sign_would(rng):
    a = rng.normal(0.4, 1, 9)
    b = rng.normal(0, 1, 9)
    apart = a - b
    sums = [abs(np.dot(signs, apart)) for signs in product((-1, 1), repeat=9)]
    exact = np.mean(np.array(sums) >= abs(apart.sum()) - 1e-9)
    found = paired_means(a, b, np.arange(9))
    assert found.value == pytest.approx(apart.mean())
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9999))


def test_facts_of_one_cluster_change_sign_together(rng):
    clusters = np.repeat(np.arange(8), 3)
    shared = np.repeat(rng.normal(0.5, 1, 8), 3)
    found = paired_means(shared, np.zeros(24), clusters)
    sums = [abs(np.dot(signs, shared[::3])) for signs in product((-1, 1), repeat=8)]
    assert found.p == pytest.approx(np.mean(np.array(sums) >= abs(shared[::3].sum()) - 1e-9), abs=0.02)
    assert found.n == 8


def test_the_interval_of_paired_means_is_that_of_resampled_clusters(rng):
    clusters = np.repeat(np.arange(30), 2)
    a, b = rng.normal(1, 1, 60), rng.normal(0, 1, 60)
    found = paired_means(a, b, clusters)
    apart = (a - b).reshape(30, 2)
    means = [apart[rng.integers(30, size=30)].mean() for _ in range(4000)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.08)


def test_only_facts_that_both_answered_are_paired():
    a = np.array([1.0, 2.0, math.nan, 4.0])
    b = np.array([0.0, math.nan, 1.0, 1.0])
    found = paired_means(a, b, np.arange(4))
    assert (found.value, found.n, found.undefined) == (2.0, 2, 0.5)


def test_equal_runs_are_not_told_apart_and_clearly_unequal_ones_are():
    ones, zeros, clusters = np.ones(20), np.zeros(20), np.arange(20)
    assert paired_means(ones, ones, clusters).p == 1
    assert paired_means(ones, zeros, clusters).p == pytest.approx(1e-4)


def test_statistics_of_the_same_resamples_are_subtracted_before_the_interval(rng):
    common = rng.normal(0, 5, 1000)
    found = paired_draws(1.0, 0.5, common + rng.normal(0, 0.1, 1000), common, 30)
    assert found.high - found.low < 0.6  # what both share falls out; apart it would be some 28
    apart = found.value / (found.high - found.low) * 2 * stats.norm.ppf(0.975)
    assert found.p == pytest.approx(2 * stats.t.sf(apart, 29), abs=1e-4)
    lost = paired_draws(1.0, 0.5, np.where(np.arange(1000) < 300, math.nan, 1.0), common, 30)
    assert math.isnan(lost.low)


def test_resamples_are_the_same_for_every_caller_and_draw_as_many_as_there_are():
    assert np.array_equal(resamples(7), resamples(7))
    assert (resamples(7).sum(axis=1) == 7).all()


def test_under_no_difference_p_is_small_as_often_as_it_says(rng):
    small = [paired_means(rng.normal(size=20), rng.normal(size=20), np.arange(20)).p < 0.1 for _ in range(30)]
    assert sum(small) <= 9  # 3 expected; more than this less than once in 500
