"""The surrogate at unequal distances: against the covariance written out, brute force, and a second integral."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from test_theory_routing import covariance

from rcprobe.errors import UsageError
from rcprobe.theory import (
    expected_worst_case,
    frequencies,
    planes,
    rope_bound,
    sampled_worst_case,
    score_correlation,
    surrogate,
    worst_kappa,
)


def draws(count, width=16):
    """Random queries, traces, κ, distances and base."""
    rng = np.random.default_rng(2)
    for _ in range(count):
        trace, kappa = rng.exponential(size=width // 2), rng.uniform(0, 1, width // 2)
        forward, reverse = rng.uniform(0.2, 12, 2)
        yield rng.standard_normal(width), trace, kappa, float(forward), float(reverse), float(rng.uniform(2, 500))


def test_the_surrogate_is_the_covariance_over_the_mean_of_the_variances():
    for query, trace, kappa, forward, reverse, base in draws(100):
        sigma = covariance(query, trace, kappa)
        theta = np.array([base ** (-2 * m / 16) for m in range(8)])
        q = query[:8] + 1j * query[8:]
        ahead, behind = q * np.exp(-1j * forward * theta), q * np.exp(1j * reverse * theta)
        u, v = np.r_[ahead.real, ahead.imag], np.r_[behind.real, behind.imag]
        expected = u @ sigma @ v / ((u @ sigma @ u + v @ sigma @ v) / 2)
        weights = (planes(query) ** 2).sum(axis=-1) * trace
        assert float(surrogate(forward, reverse, weights, kappa, 16, base)) == pytest.approx(expected, abs=1e-12)


def test_the_surrogate_bounds_from_below_where_positive_and_from_above_where_negative():
    signs = set()
    for query, trace, kappa, forward, reverse, base in draws(1000):
        weights = (planes(query) ** 2).sum(axis=-1) * trace
        found = float(surrogate(forward, reverse, weights, kappa, 16, base))
        exact = score_correlation(query, covariance(query, trace, kappa), forward, reverse, base)
        assert abs(found) <= abs(exact) + 1e-12 <= 1 + 2e-12
        assert found * exact >= 0
        signs.add(found > 0)
    assert signs == {True, False}


def test_at_equal_distances_the_surrogate_is_the_correlation():
    for query, trace, kappa, distance, _, base in draws(100):
        weights = (planes(query) ** 2).sum(axis=-1) * trace
        exact = score_correlation(query, covariance(query, trace, kappa), distance, distance, base)
        assert float(surrogate(distance, distance, weights, kappa, 16, base)) == pytest.approx(exact, abs=1e-12)


def test_the_worst_kappa_is_the_least_of_all_corners():
    """A ratio of linear functions is least at a corner of the cube; there are 256."""
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=8)))
    for query, trace, _, forward, reverse, base in draws(200):
        weights = (planes(query) ** 2).sum(axis=-1) * trace
        least = float(surrogate(forward, reverse, weights, corners, 16, base).min())
        worst = worst_kappa(forward, reverse, 16, base)
        assert float(surrogate(forward, reverse, weights, worst, 16, base)) == pytest.approx(least, abs=1e-12)


def test_no_search_inside_the_cube_gets_below_the_worst_kappa():
    for query, trace, kappa, forward, reverse, base in draws(20):
        weights = (planes(query) ** 2).sum(axis=-1) * trace

        def value(k, w=weights, f=forward, r=reverse, b=base):
            return float(surrogate(f, r, w, k, 16, b))

        searched = minimize(value, kappa, bounds=[(0, 1)] * 8)
        assert searched.fun >= value(worst_kappa(forward, reverse, 16, base)) - 1e-9


def test_the_scale_of_weights_does_not_matter():
    weights, kappa = np.arange(1.0, 5.0), np.full(4, 0.3)
    assert float(surrogate(1, 2, weights, kappa, 8)) == pytest.approx(float(surrogate(1, 2, 9 * weights, kappa, 8)))


def test_wrong_numbers_of_planes_are_refused():
    with pytest.raises(UsageError, match="4 planes"):
        surrogate(1, 2, np.ones(3), np.ones(4), 8)


@pytest.mark.parametrize("width", [8, 64])
def test_the_exact_mean_agrees_with_the_monte_carlo(width):
    grid = [1, 5, 20, 50]
    exact, sampled = expected_worst_case(grid, grid, width), sampled_worst_case(grid, grid, width, draws=40_000)
    assert (np.abs(exact - sampled.mean) <= 4.5 * sampled.error + 1e-9).all()
    assert sampled.error.max() < 0.005


def test_the_exact_mean_is_that_of_normal_queries():
    rng = np.random.default_rng(3)
    weights = (planes(rng.standard_normal((200_000, 16))) ** 2).sum(axis=-1)
    found = surrogate(2, 7, weights, worst_kappa(2, 7, 16, 30.0), 16, 30.0)
    error = found.std() / np.sqrt(found.size)
    assert float(expected_worst_case([2], [7], 16, 30.0)[0, 0]) == pytest.approx(found.mean(), abs=4 * error)


def test_two_planes_agree_with_the_integral_over_their_share():
    """With two planes the first one's share is uniform on 0 … 1."""
    share = np.stack([np.linspace(0, 1, 20_001), 1 - np.linspace(0, 1, 20_001)], axis=-1)
    values = surrogate(3, 1, share, worst_kappa(3, 1, 4, 20.0), 4, 20.0)
    expected = np.trapezoid(values, share[:, 0])
    assert float(expected_worst_case([3], [1], 4, 20.0)[0, 0]) == pytest.approx(expected, abs=1e-8)


def test_at_equal_distances_the_exact_mean_is_thm_43s_bound():
    grid = np.arange(1, 51, 7)
    found = np.diag(expected_worst_case(grid, grid, 64))
    np.testing.assert_allclose(found, rope_bound(grid, 64), atol=1e-9)


def test_the_worst_case_is_symmetric_in_the_distances():
    found = expected_worst_case([3, 40], [3, 40], 32)
    assert found[0, 1] == pytest.approx(found[1, 0], abs=1e-9)


def test_what_is_certified_counts_negative_surrogates_as_minus_one():
    seen = sampled_worst_case([21], [50], 64, draws=20_000, seed=1)
    drawn = np.random.default_rng(1).standard_exponential((20_000, 32))
    s = surrogate(21, 50, drawn, worst_kappa(21, 50, 64), 64)
    assert seen.negative[0, 0] == pytest.approx((s <= 0).mean())
    assert seen.certified[0, 0] == pytest.approx(np.where(s > 0, s, -1).mean())
    assert seen.certified[0, 0] < seen.mean[0, 0] - 0.1


def test_what_is_certified_lies_below_the_mean_correlation_whatever_kappa():
    rng = np.random.default_rng(4)
    certified = float(sampled_worst_case([2], [9], 16, 40.0, draws=50_000).certified[0, 0])
    means = []
    for kappa in (np.zeros(8), np.ones(8), worst_kappa(2, 9, 16, 40.0), rng.uniform(0, 1, 8)):
        found = []
        for query in rng.standard_normal((400, 16)):
            found.append(score_correlation(query, covariance(query, np.ones(8), kappa), 2, 9, 40.0))
        means.append(np.mean(found))
    assert certified < min(means)


def test_seeds_repeat_and_differ():
    first, again, other = (sampled_worst_case([1, 9], [4], 16, draws=100, seed=s).mean for s in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_impossible_grids_and_draws_are_refused():
    with pytest.raises(UsageError, match="draws"):
        sampled_worst_case([1], [1], 8, draws=1)
    with pytest.raises(UsageError, match="grid"):
        expected_worst_case(3, [1], 8)
    with pytest.raises(UsageError, match="even"):
        expected_worst_case([3], [1], 7)


def test_frequencies_fall_from_one():
    assert frequencies(8)[0] == 1
    np.testing.assert_allclose(frequencies(8), [1, 0.1, 0.01, 0.001])
