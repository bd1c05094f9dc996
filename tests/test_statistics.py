"""Every figure against an independent computation, and every interval and test on data with a known truth."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from rcprobe.statistics import (
    Estimate,
    dyadic_weights,
    fisher_mean,
    hedges_dz,
    holm,
    judge,
    over_clusters,
    over_seeds,
    permutation_test,
    probability_superior,
    score_correlation,
    weighted_mean,
    wilson,
)

NAN = math.nan


def shared_content(facts, placements, rng, strength):
    """Scores [R, 2] of facts whose content shows at every placement: (forward, reverse, groups, facts)."""
    ids = np.tile(np.arange(facts), placements)
    groups = np.repeat(np.arange(placements), facts)
    content = rng.normal(size=(facts, 2))
    other = strength * content + math.sqrt(1 - strength**2) * rng.normal(size=(facts, 2))
    forward, reverse = (c[ids] + 0.1 * rng.normal(size=(ids.size, 2)) for c in (content, other))
    return forward, reverse, groups, ids


def brute_correlation(forward, reverse, groups, strata, facts, weights, minimum):
    """r and facts per (group, cell) by loops: repeated rows, their means subtracted, numpy's corrcoef."""
    labels = sorted(set(groups))
    r = np.full((len(labels), forward.shape[1]), NAN)
    count = np.zeros(r.shape, dtype=int)
    for g, label in enumerate(labels):
        for cell in range(forward.shape[1]):
            xs, ys, seen = [], [], set()
            for stratum in sorted(set(strata[groups == label])):
                rows = [
                    k
                    for k in range(len(facts))
                    if groups[k] == label
                    and strata[k] == stratum
                    and not math.isnan(forward[k, cell] + reverse[k, cell])
                ]
                if len({facts[k] for k in rows}) < minimum:
                    continue
                seen |= {facts[k] for k in rows}
                drawn = [k for k in rows for _ in range(int(weights[k]))]
                xs.extend(forward[drawn, cell] - forward[drawn, cell].mean())
                ys.extend(reverse[drawn, cell] - reverse[drawn, cell].mean())
            count[g, cell] = len(seen)
            if seen:
                r[g, cell] = np.corrcoef(xs, ys)[0, 1]
    return r, count


class TestOverSeeds:
    def test_agrees_with_scipy(self):
        x = np.array([0.3, 0.1, 0.45, 0.2, 0.05, 0.31])
        e = over_seeds(x, margin=0.1)
        reference = stats.ttest_1samp(x, 0.1, alternative="greater")
        interval = stats.ttest_1samp(x, 0.1).confidence_interval(0.95)
        assert (e.value, e.n, e.undefined, e.unit) == (pytest.approx(x.mean()), 6, 0, "seeds")
        assert e.p == pytest.approx(reference.pvalue, rel=1e-12)
        assert (e.low, e.high) == pytest.approx((interval.low, interval.high), rel=1e-12)

    def test_nan_seeds_are_counted_not_averaged(self):
        with_nan, without = over_seeds([1.0, NAN, 2.0, 4.0, NAN]), over_seeds([1.0, 2.0, 4.0])
        assert with_nan == replace(without, undefined=2)

    @pytest.mark.parametrize("values", [[], [NAN], [3.0], [3.0, NAN]])
    def test_too_few_seeds_give_no_interval(self, values):
        e = over_seeds(values)
        assert all(math.isnan(v) for v in (e.low, e.high, e.p))
        assert e.value == 3.0 if 3.0 in values else math.isnan(e.value)

    @pytest.mark.parametrize(("margin", "p"), [(0.0, 0.0), (0.1, 1.0), (0.2, 1.0)])
    def test_no_spread_is_a_point(self, margin, p):
        e = over_seeds([0.1, 0.1, 0.1], margin)
        assert (e.value, e.low, e.high, e.p) == (0.1, 0.1, 0.1, p)

    def test_infinite_seed_raises(self):
        with pytest.raises(ValueError, match="infinite"):
            over_seeds([1.0, math.inf])

    def test_interval_covers_at_its_rate(self):
        rng = np.random.default_rng(0)
        estimates = [over_seeds(rng.normal(0.7, 2.0, size=5), margin=0.7) for _ in range(2000)]
        covered = np.mean([e.low < 0.7 < e.high for e in estimates])
        assert covered == pytest.approx(0.95, abs=0.015)
        assert np.mean([e.p < 0.05 for e in estimates]) == pytest.approx(0.05, abs=0.015)


class TestOverClusters:
    def test_weights_are_multinomial_counts_of_whole_clusters(self):
        clusters, seen = np.array([7, 3, 7, 9, 3, 7]), []
        over_clusters(lambda w: seen.append(w) or 0.0, clusters, resamples=400, seed=1)
        assert (seen[0] == 1).all()
        drawn = np.array(seen[1:])
        assert drawn.shape == (400, 6)
        assert (drawn[:, clusters == 7] == drawn[:, [0]]).all()
        assert (drawn[:, [0, 1, 3]].sum(axis=1) == 3).all()
        assert np.var(drawn[:, 3]) == pytest.approx(2 / 3, abs=0.12)  # 3 draws at 1/3

    def test_interval_and_p_come_from_the_replicates(self):
        values, replicates = np.random.default_rng(0).normal(0.3, 1.0, 30), []

        def statistic(w):
            replicates.append(weighted_mean(values, w))
            return replicates[-1]

        e = over_clusters(statistic, np.arange(30), margin=0.2, resamples=300)
        drawn = sorted(replicates[1:])
        assert e.value == pytest.approx(values.mean())
        assert e.low == pytest.approx(np.percentile(drawn, 2.5))
        assert e.high == pytest.approx(np.percentile(drawn, 97.5))
        assert e.p == (1 + sum(r <= 0.2 for r in drawn)) / 301
        assert (e.n, e.undefined, e.unit) == (30, 0, "clusters")

    def test_interval_covers_when_rows_of_a_cluster_agree(self):
        rng = np.random.default_rng(0)
        clusters = np.repeat(np.arange(40), 5)
        covered = naive = 0
        for seed in range(150):
            x = rng.normal(size=40)[clusters] + 0.3 * rng.normal(size=200)
            e = over_clusters(lambda w, x=x: float(w @ x / w.sum()), clusters, resamples=100, seed=seed)
            covered += e.low < 0 < e.high
            naive += abs(x.mean()) < 1.96 * x.std() / math.sqrt(200)
        assert 0.84 <= covered / 150 <= 0.98  # 100 resamples of 40 clusters cover 91 %
        assert naive / 150 < 0.75  # the test would see rows taken for independent

    def test_same_seed_same_interval(self):
        x = np.random.default_rng(0).normal(size=25)
        one, again, other = (
            over_clusters(lambda w: weighted_mean(x, w), np.arange(25), resamples=50, seed=seed) for seed in (4, 4, 5)
        )
        assert one == again
        assert one.low != other.low

    def test_undefined_clusters_and_rows_are_counted(self):
        x = np.array([1.0, NAN, 2.0, 3.0, NAN, NAN, 4.0, 5.0])
        clusters = np.array([0, 0, 1, 2, 3, 3, 4, 5])
        e = over_clusters(lambda w: weighted_mean(x, w), clusters, resamples=100, defined=~np.isnan(x))
        assert (e.n, e.undefined, e.undefined_rows) == (5, 1, 3 / 8)
        assert e.value == 3.0

    def test_lost_resamples(self):
        def lose(share):
            calls = iter(range(101))
            return over_clusters(lambda w: NAN if 0 < next(calls) <= share else 1.0, range(9), resamples=100)

        some, many = lose(20), lose(21)
        assert (some.low, some.high, some.p) == (1.0, 1.0, 1 / 81)
        assert "80 of 100" in some.method
        assert all(math.isnan(v) for v in (many.low, many.high, many.p))

    @pytest.mark.parametrize("clusters", [[], [5, 5, 5]])
    def test_under_two_clusters_no_interval(self, clusters):
        e = over_clusters(lambda w: 1.0, np.array(clusters, dtype=int), resamples=10)
        assert math.isnan(e.low)
        assert math.isnan(e.p)

    def test_p_counts_replicates_at_the_margin(self):
        assert over_clusters(lambda w: 1.0, range(5), margin=1.0, resamples=20).p == 1.0

    def test_without_a_value_no_interval(self):
        e = over_clusters(lambda w: NAN if (w == 1).all() else 0.0, range(5), resamples=20)
        assert all(math.isnan(v) for v in (e.value, e.low, e.high, e.p))

    def test_infinite_statistic_raises(self):
        with pytest.raises(ValueError, match="infinite"):
            over_clusters(lambda w: math.inf if w[0] > 1 else 0.0, [0, 1, 2], resamples=50)

    def test_float_clusters_raise(self):
        with pytest.raises(ValueError, match="integers"):
            over_clusters(lambda w: 0.0, [0.0, 1.5])


class TestDyadicWeights:
    def test_product_without_pairs_inside_a_cluster(self):
        w = dyadic_weights([2.0, 2.0, 0.0, 3.0], [3.0, 2.0, 4.0, 1.0], [0, 0, 1, 2], [1, 0, 2, 0])
        assert w.tolist() == [6.0, 0.0, 0.0, 3.0]

    def test_dropping_the_rule_would_bias_the_mismatches(self):
        """Kernel k(i, j) of independent facts, large where i = j: a drawn-twice fact is no mismatch."""
        clusters = np.arange(12)
        i, j = (a.ravel() for a in np.meshgrid(clusters, clusters))
        kernel = (i == j).astype(float)

        def mismatch(w):
            return weighted_mean(kernel, dyadic_weights(w[i], w[j], clusters[i], clusters[j]))

        e = over_clusters(mismatch, clusters, resamples=50)
        assert (e.value, e.low, e.high) == (0.0, 0.0, 0.0)


class TestEffectSizes:
    def test_weighted_mean(self):
        assert weighted_mean([1.0, NAN, 4.0], [1.0, 5.0, 2.0]) == 3.0
        assert weighted_mean([1.0, NAN, 4.0]) == 2.5
        assert math.isnan(weighted_mean([1.0, NAN], [0.0, 1.0]))
        assert math.isnan(weighted_mean([]))

    @pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, NAN]])
    def test_bad_weights_raise(self, weights):
        with pytest.raises(ValueError, match="weights"):
            weighted_mean([1.0, 2.0], weights)

    def test_dz_is_unbiased(self):
        rng = np.random.default_rng(1)
        d = [hedges_dz(x) for x in rng.normal(0.5, 1.0, size=(2500, 6))]
        plain = [x.mean() / x.std(ddof=1) for x in np.random.default_rng(1).normal(0.5, 1.0, size=(2500, 6))]
        assert np.mean(d) == pytest.approx(0.5, abs=0.025)
        assert np.mean(plain) > 0.56

    def test_dz_value(self):
        x = np.array([0.2, 0.5, -0.1, 0.9])
        j = math.gamma(1.5) / (math.sqrt(1.5) * math.gamma(1.0))
        assert j == pytest.approx(1 - 3 / (4 * 3 - 1), abs=0.01)
        assert hedges_dz(x) == pytest.approx(j * x.mean() / x.std(ddof=1), rel=1e-12)

    def test_dz_weights_are_row_counts(self):
        x = [0.2, 0.5, NAN, -0.1, 7.0]
        assert hedges_dz(x, [2, 1, 4, 3, 0]) == pytest.approx(hedges_dz([0.2, 0.2, 0.5, -0.1, -0.1, -0.1]))

    @pytest.mark.parametrize("x", [[], [1.0], [1.0, NAN], [1.0, 2.0], [0.1] * 30])
    def test_dz_undefined(self, x):
        assert math.isnan(hedges_dz(x))

    def test_probability_superior(self):
        matched, control = [1.0, 2.0, 3.0, NAN, 5.0], [0.0, 2.0, 4.0, 1.0, NAN]
        assert probability_superior(matched, control) == 0.5
        assert probability_superior(matched, control, [3, 0, 1, 1, 1]) == 0.75
        assert math.isnan(probability_superior([NAN], [1.0]))
        with pytest.raises(ValueError, match="control"):
            probability_superior([1.0], [1.0, 2.0])

    def test_wilson(self):
        for successes, n in ((0, 12), (5, 12), (12, 12), (998, 1000)):
            reference = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
            assert wilson(successes, n) == pytest.approx((reference.low, reference.high), abs=1e-12)
        assert wilson(0, 12)[0] == 0.0
        assert wilson(12, 12)[1] == 1.0
        assert all(math.isnan(v) for v in wilson(0, 0))
        with pytest.raises(ValueError, match="successes"):
            wilson(3, 2)


class TestFisherMean:
    def test_by_hand(self):
        z = (17 * math.atanh(0.5) + 47 * math.atanh(-0.2)) / 64
        assert fisher_mean([0.5, -0.2, NAN, 0.9], [20, 50, 30, 3]) == pytest.approx(math.tanh(z), rel=1e-12)

    def test_broadcasts_facts_over_cells(self):
        r = np.array([[0.1, 0.3], [0.2, 0.6]])
        assert fisher_mean(r, [[10], [20]]) == pytest.approx(fisher_mean(r.ravel(), [10, 10, 20, 20]))

    def test_identity_stays_one(self):
        assert fisher_mean([1.0, 1.0, 1.0], [20, 30, 5]) == pytest.approx(1.0, abs=2e-15)
        assert fisher_mean([-1.0], [9]) == pytest.approx(-1.0, abs=2e-15)

    def test_nothing_left_is_undefined(self):
        assert math.isnan(fisher_mean([NAN, 0.5], [30, 3]))
        assert math.isnan(fisher_mean([], []))

    def test_impossible_correlation_raises(self):
        with pytest.raises(ValueError, match="outside"):
            fisher_mean([1.1], [30])


class TestScoreCorrelation:
    def test_one_stratum_is_pearson(self):
        rng = np.random.default_rng(0)
        forward = rng.normal(size=(50, 3))
        reverse = forward * [0.0, 0.5, -2.0] + rng.normal(size=(50, 3))
        same = np.zeros(50, dtype=int)
        c = score_correlation(forward, reverse, same, same, np.arange(50))
        reference = [stats.pearsonr(forward[:, k], reverse[:, k]).statistic for k in range(3)]
        assert c.r[0] == pytest.approx(reference, rel=1e-12)
        assert (c.n.tolist(), c.facts.tolist(), c.undefined) == ([50], [[50, 50, 50]], 0)
        assert c.pooled == pytest.approx(math.tanh(np.arctanh(reference).mean()), rel=1e-12)

    @pytest.mark.parametrize("missing", [0.0, 0.2])
    def test_agrees_with_loops(self, missing):
        rng = np.random.default_rng(5)
        rows = 160
        groups, strata = rng.choice([4, 8, 11], rows), rng.integers(0, 3, rows) * 10 - 7
        facts = rng.integers(100, 115, rows)
        weights = rng.integers(0, 4, rows).astype(float)
        forward = rng.normal(size=(rows, 4)) + strata[:, None]
        reverse = forward + rng.normal(size=(rows, 4))
        forward[rng.random(forward.shape) < missing] = NAN
        r, count = brute_correlation(forward, reverse, groups, strata, facts, weights, 10)
        c = score_correlation(forward, reverse, groups, strata, facts, weights, minimum=10)
        assert np.isfinite(r).any()
        assert c.r == pytest.approx(r, rel=1e-10, nan_ok=True)
        assert (c.facts == count).all()
        assert (c.n >= count.max(axis=1)).all()
        assert c.pooled == pytest.approx(fisher_mean(r, count), rel=1e-10)

    def test_weights_are_row_counts(self):
        rng = np.random.default_rng(2)
        forward, reverse = rng.normal(size=(2, 20, 3))
        weights, strata = rng.integers(0, 4, 20), np.arange(20) % 2
        twice = np.repeat(np.arange(20), weights)
        same = np.zeros(20, dtype=int)
        weighted = score_correlation(forward, reverse, same, strata, np.arange(20), weights)
        repeated = score_correlation(forward[twice], reverse[twice], same[twice], strata[twice], np.arange(twice.size))
        assert weighted.r == pytest.approx(repeated.r, rel=1e-12)

    def test_means_over_lengths_are_not_correlation(self):
        """Facts without shared content, whose scores average over T × E token pairs."""
        rng = np.random.default_rng(0)
        target, evidence = rng.integers(1, 4, size=(2, 600))
        level = 1.5 / (target * evidence)[:, None]
        forward, reverse = level + 0.4 * rng.normal(size=(2, 600, 2))
        facts, one = np.arange(600), np.zeros(600, dtype=int)
        pooled_over_lengths = score_correlation(forward, reverse, one, one, facts)
        stratified = score_correlation(forward, reverse, one, target * 4 + evidence, facts)
        assert pooled_over_lengths.pooled > 0.3
        assert abs(stratified.pooled) < 0.06
        assert stratified.n.tolist() == [600]

    def test_a_shared_part_survives_the_strata(self):
        forward, reverse, groups, facts = shared_content(200, 3, np.random.default_rng(1), 0.7)
        strata = groups * 4 + facts % 4
        level = 5.0 * (facts % 4)[:, None]
        c = score_correlation(forward + level, reverse - level, groups, strata, facts)
        assert c.r == pytest.approx(np.full((3, 2), 0.69), abs=0.12)

    def test_equal_strata_numbers_in_two_groups_stay_apart(self):
        forward, reverse, groups, facts = shared_content(40, 2, np.random.default_rng(1), 0.5)
        shift = 9.0 * groups[:, None]
        finer = score_correlation(forward + shift, reverse + shift, groups, groups * 2 + facts % 2, facts)
        reused = score_correlation(forward + shift, reverse + shift, groups, facts % 2, facts)
        assert (finer.r == reused.r).all()

    def test_small_strata_stay_out(self):
        rng = np.random.default_rng(0)
        forward, reverse = rng.normal(size=(2, 27, 1))
        strata = np.repeat([0, 1, 2], [12, 8, 7])
        one, facts = np.zeros(27, dtype=int), np.arange(27)
        c = score_correlation(forward, reverse, one, strata, facts)
        kept = slice(0, 20)
        same = score_correlation(forward[kept], reverse[kept], one[kept], strata[kept], facts[kept])
        assert c.n.tolist() == [20]
        assert c.r == same.r
        facts[19] = facts[18]  # 8 rows, 7 facts
        assert score_correlation(forward, reverse, one, strata, facts).n.tolist() == [12]

    def test_a_group_of_small_strata_is_descriptive(self):
        rng = np.random.default_rng(0)
        forward, reverse = rng.normal(size=(2, 20, 2))
        groups = np.repeat([0, 1], [13, 7])
        c = score_correlation(forward, reverse, groups, groups, np.arange(20))
        assert c.n.tolist() == [13, 0]
        assert np.isnan(c.r[1]).all()
        assert c.undefined == 0

    def test_zero_variance_is_undefined_at_any_scale(self):
        rng = np.random.default_rng(0)
        strata = np.arange(30) % 3
        noise = rng.normal(size=30)
        forward = np.stack([0.1 + strata * 0.7, noise, 1e-30 * noise, 1e3 + 1e-8 * noise], axis=1)
        reverse = np.stack([noise, np.full(30, 1 / 3), 1e-30 * noise, 1e3 + 1e-8 * noise], axis=1)
        one = np.zeros(30, dtype=int)
        c = score_correlation(forward, reverse, one, strata, np.arange(30))
        assert np.isnan(c.r[0]).tolist() == [True, True, False, False]
        assert c.r[0, 2:] == pytest.approx(1.0, abs=1e-12)
        assert c.undefined == 2

    def test_identity_is_one(self):
        rng = np.random.default_rng(0)
        forward = rng.normal(size=(60, 5))
        groups = np.arange(60) % 3
        c = score_correlation(forward, forward - 0.37 * (1 + groups[:, None]), groups, groups, np.arange(60))
        assert c.pooled == pytest.approx(1.0, abs=1e-14)

    def test_few_facts_with_weight_are_undefined(self):
        """Two facts drawn again and again correlate at ±1: a replicate, not an identity."""
        rng = np.random.default_rng(0)
        forward, reverse = rng.normal(size=(2, 10, 1))
        one, facts = np.zeros(10, dtype=int), np.arange(10)
        three, four = (np.where(facts < k, 3.0, 0.0) for k in (3, 4))
        assert math.isnan(score_correlation(forward, reverse, one, one, facts, three).pooled)
        c = score_correlation(forward, reverse, one, one, facts, four)
        assert c.r[0, 0] == pytest.approx(np.corrcoef(forward[:4, 0], reverse[:4, 0])[0, 1])
        assert c.n.tolist() == [10]

    def test_nan_leaves_other_cells_alone(self):
        rng = np.random.default_rng(0)
        forward, reverse = rng.normal(size=(2, 20, 3))
        one, facts = np.zeros(20, dtype=int), np.arange(20)
        whole = score_correlation(forward, reverse, one, one, facts)
        forward[3, 1], reverse[:13, 2] = NAN, NAN
        c = score_correlation(forward, reverse, one, one, facts)
        assert c.r[0, 0] == pytest.approx(whole.r[0, 0], rel=1e-12)
        rest = np.delete(np.arange(20), 3)
        assert c.r[0, 1] == pytest.approx(np.corrcoef(forward[rest, 1], reverse[rest, 1])[0, 1])
        assert math.isnan(c.r[0, 2])
        assert (c.facts.tolist(), c.undefined) == ([[20, 19, 0]], 1)

    def test_no_rows(self):
        none = np.empty(0, dtype=int)
        c = score_correlation(np.empty((0, 2)), np.empty((0, 2)), none, none, none)
        assert c.r.shape == (0, 2)
        assert math.isnan(c.pooled)

    def test_bad_input_raises(self):
        x, ids = np.zeros((4, 2)), np.arange(4)
        with pytest.raises(ValueError, match="shapes"):
            score_correlation(x, x[:3], ids, ids, ids)
        with pytest.raises(ValueError, match="strata"):
            score_correlation(x, x, ids, ids[:3], ids)
        with pytest.raises(ValueError, match="infinite"):
            score_correlation(x, x + math.inf, ids, ids, ids)


class TestPermutationTest:
    def test_null_matches_all_permutations(self):
        """Six facts in one stratum: mean, sd and p over all 720 permutations are known."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=6)
        y = x + 0.5 * rng.normal(size=6)
        exact = np.array([np.corrcoef(x, y[list(order)])[0, 1] for order in permutations(range(6))])
        one, facts = np.zeros(6, dtype=int), np.arange(6)
        p, mean, sd = permutation_test(x[:, None], y[:, None], one, one, facts, 300, minimum=2)
        assert mean == pytest.approx(exact.mean(), abs=4 * exact.std() / math.sqrt(300))
        assert sd == pytest.approx(exact.std(), rel=0.1)
        assert p == pytest.approx(np.mean(exact >= exact[0] - 1e-12), abs=0.06)

    def test_uniform_under_the_null_where_facts_recur(self):
        """A fact's scores are alike at all placements: shuffling placements apart would reject ≈ 27 %."""
        rng = np.random.default_rng(7)
        p = []
        for seed in range(40):
            forward, reverse, groups, facts = shared_content(24, 6, rng, 0.0)
            kept = rng.random(groups.size) > 0.1  # not every fact at every placement
            rows = (a[kept] for a in (forward, reverse, groups, groups * 2 + facts % 2, facts))
            p.append(permutation_test(*rows, permutations=19, seed=seed)[0])
        assert stats.kstest(np.array(p) - 0.025, "uniform").pvalue > 0.01
        assert np.mean(np.array(p) <= 0.05) < 0.14

    def test_sees_shared_content(self):
        forward, reverse, groups, facts = shared_content(60, 3, np.random.default_rng(0), 0.6)
        p, mean, sd = permutation_test(forward, reverse, groups, groups, facts, 60)
        assert p == 1 / 61
        assert abs(mean) < 0.05
        assert 0.05 < sd < 0.2

    def test_shuffles_only_within_strata(self):
        """Forty quiet facts and forty loud ones: r hangs on the loud, and so does the null's width."""
        loud = np.arange(80) % 2
        forward, reverse = np.where(loud, 10.0, 1.0)[:, None] * np.random.default_rng(0).normal(size=(2, 80, 1))
        one, facts = np.zeros(80, dtype=int), np.arange(80)
        sd_within = permutation_test(forward, reverse, one, loud, facts, 150)[2]
        sd_across = permutation_test(forward, reverse, one, one, facts, 150)[2]
        assert sd_within == pytest.approx(1 / math.sqrt(39), rel=0.15)
        assert sd_across == pytest.approx(1 / math.sqrt(79), rel=0.15)

    def test_ties_count_as_reached(self):
        x, one = np.array([[0.0], [0.0], [0.0], [0.1], [0.1], [0.1]]), np.zeros(6, dtype=int)
        p = permutation_test(x, x, one, one, np.arange(6), 200, minimum=2)[0]
        assert p == pytest.approx(1 / 20, abs=0.035)

    def test_repeated_rows_of_a_fact_move_together(self):
        """Two rows per fact whose scores differ by row alone: every permutation keeps first with first."""
        facts = np.repeat(np.arange(12), 2)
        strata = np.zeros(24, dtype=int)
        row = np.tile([0.0, 1.0], 12)[:, None]
        rng = np.random.default_rng(0)
        small = 1e-3 * rng.normal(size=(2, 12, 1))
        p, mean, sd = permutation_test(row + small[0][facts], row + small[1][facts], strata, strata, facts, 40)
        assert mean > 0.999
        assert sd < 1e-4
        assert p > 0.01

    def test_empty_rows_do_not_thin_the_null(self):
        forward, reverse, groups, facts = shared_content(30, 1, np.random.default_rng(0), 0.5)
        kept = facts % 3 > 0
        rest = permutation_test(forward[kept], reverse[kept], groups[kept], groups[kept], facts[kept], 30)
        forward[~kept] = NAN
        assert permutation_test(forward, reverse, groups, groups, facts, 30) == rest
        assert not any(math.isnan(v) for v in rest)

    def test_undefined_without_a_value(self):
        x, one = np.ones((10, 2)), np.zeros(10, dtype=int)
        assert all(math.isnan(v) for v in permutation_test(x, x, one, one, np.arange(10), 5))


class TestHolm:
    def test_by_hand(self):
        adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": NAN})
        assert [adjusted[k] for k in "abcd"] == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert list(adjusted) == list("abcde")
        assert math.isnan(adjusted["e"])

    def test_never_above_one(self):
        assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
        assert holm({}) == {}

    def test_impossible_p_raises(self):
        with pytest.raises(ValueError, match="p values"):
            holm({"a": 1.2})


class TestJudge:
    clear = Estimate(0.5, 0.3, 0.7, 0.001, 0.1, 30, 0, "clusters", "by hand")
    low = replace(clear, value=0.0, low=-0.1, high=0.05)
    wide = replace(clear, low=0.05, high=0.7)

    @pytest.mark.parametrize(
        ("estimates", "p", "verdict"),
        [
            ([clear], 0.01, "present"),
            ([clear, clear], 0.049, "present"),
            ([clear], 0.05, "inconclusive"),
            ([clear], NAN, "inconclusive"),
            ([clear, wide], 0.01, "inconclusive"),
            ([clear, low], 0.01, "absent"),
            ([wide, low], 0.9, "absent"),
            ([replace(clear, low=0.1)], 0.01, "inconclusive"),
            ([replace(clear, n=19)], 0.01, "undefined"),
            ([replace(clear, n=20)], 0.01, "present"),
            ([low, replace(clear, n=3)], 0.01, "undefined"),
            ([replace(clear, n=40, undefined=10)], 0.01, "present"),
            ([replace(clear, n=40, undefined=11)], 0.01, "undefined"),
            ([replace(clear, undefined_rows=0.21)], 0.01, "undefined"),
            ([replace(clear, low=NAN)], 0.01, "undefined"),
            ([clear, replace(clear, high=NAN)], 0.01, "undefined"),
        ],
    )
    def test_verdicts(self, estimates, p, verdict):
        assert judge(estimates, p, minimum=20) == verdict

    def test_thresholds_are_the_callers(self):
        assert judge([self.clear], 0.2, minimum=31) == "undefined"
        assert judge([self.clear], 0.2, minimum=30, alpha=0.3) == "present"
        strict = replace(self.clear, undefined=3)
        assert judge([strict], 0.01, minimum=20, undefined_share=0.05) == "undefined"

    def test_nothing_to_judge_raises(self):
        with pytest.raises(ValueError, match="at least one"):
            judge([], 0.01, minimum=20)

    def test_nothing_measured_is_undefined(self):
        assert judge([over_seeds([])], NAN, minimum=0) == "undefined"
