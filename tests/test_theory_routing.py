"""Bounds on the correlation of scores: against printed figures, simulation, and the assumption written out."""

import math

import numpy as np
import pytest
import torch

import rcprobe
from rcprobe.errors import UsageError
from rcprobe.theory import (
    alibi_gap,
    frequencies,
    key_planes,
    planes,
    rope_bound,
    rope_bound_given,
    rope_tail,
    rotation,
    score_correlation,
    surrogate,
)
from rcprobe_plugins.encodings.rope import BASE, Rope
from rcprobe_plugins.models.radd import Radd
from rcprobe_plugins.studies.published import published

DISTANCES = np.arange(1, 51)


def covariance(query, trace, kappa, tilt=0.0):
    """Thm 4.3's covariance of keys, plane by plane; ``tilt`` turns its main axis away from the query's."""
    half = query.size // 2
    sigma = np.zeros((query.size, query.size))
    for m, q in enumerate(planes(query)):
        angle = math.atan2(q[1], q[0]) + tilt
        axis = np.array([math.cos(angle), math.sin(angle)])
        block = trace[m] / 2 * ((1 - kappa[m]) * np.eye(2) + 2 * kappa[m] * np.outer(axis, axis))
        sigma[np.ix_([m, m + half], [m, m + half])] = block
    return sigma


def sampled_correlation(query, sigma, forward, reverse, base, rng, draws=400_000):
    """corr(s→, s←) of keys drawn with that covariance, scores turned as complex numbers."""
    keys = rng.standard_normal((draws, query.size)) @ np.linalg.cholesky(sigma).T
    half = query.size // 2
    q, k = query[:half] + 1j * query[half:], keys[:, :half] + 1j * keys[:, half:]
    theta = np.array([base ** (-2 * m / query.size) for m in range(half)])
    ahead = (np.conj(q) * k * np.exp(1j * forward * theta)).real.sum(axis=1)
    behind = (np.conj(q) * k * np.exp(-1j * reverse * theta)).real.sum(axis=1)
    return np.corrcoef(ahead, behind)[0, 1]


# rotations


def test_rotation_is_what_the_encoding_applies():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 12, dtype=torch.float64)
    turned = Rope(12, 1, 16).rotate(q.expand(1, 1, 9, 12), k.expand(1, 1, 9, 12))
    scores = (turned[0] @ turned[1].transpose(-1, -2))[0, 0].numpy()
    for i in range(9):
        for j in range(9):
            expected = q.numpy().ravel() @ rotation(j - i, 12, BASE) @ k.numpy().ravel()
            assert scores[i, j] == pytest.approx(expected, abs=1e-12)


def test_rotations_add_up_and_keep_lengths():
    turn = rotation(3, 8, 50.0)
    np.testing.assert_allclose(turn @ rotation(4.5, 8, 50.0), rotation(7.5, 8, 50.0), atol=1e-15)
    np.testing.assert_allclose(turn.T @ turn, np.eye(8), atol=1e-15)
    np.testing.assert_allclose(turn.T, rotation(-3, 8, 50.0), atol=1e-15)


@pytest.mark.parametrize(("width", "base"), [(7, 10.0), (0, 10.0), (8, 0.0), (8, math.inf), (8, math.nan)])
def test_impossible_rotations_are_refused(width, base):
    with pytest.raises(UsageError, match=r"even|base"):
        frequencies(width, base)


def test_a_vector_of_odd_width_has_no_planes():
    with pytest.raises(UsageError, match="even"):
        planes(np.zeros(5))


# Thm 4.3


def test_the_bound_gives_the_printed_digits_of_table_3():
    table = published("tab3")
    for row in table.itertuples():
        assert round(float(rope_bound(DISTANCES, row.width, table.attrs["base"]).min()), 3) == row.bound


@pytest.mark.parametrize(("base", "least"), [(5e5, 0.546), (1e6, 0.579)])
def test_the_bound_depends_on_the_base(base, least):
    assert round(float(rope_bound(DISTANCES, 128, base).min()), 3) == least


def test_the_bound_is_the_trace_of_twice_the_rotation():
    for distance in (0, 1, 7.5, 40):
        expected = np.trace(rotation(2 * distance, 64)) / 64
        assert float(rope_bound(distance, 64)) == pytest.approx(expected, abs=1e-14)


def model_gradients(seed, forward, reverse):
    """The mask's query and the letters' keys [26, D] of a random model, and autograd's ∂s→/∂k and ∂s←/∂k."""
    m = rcprobe.load("radd", options={"width": 16}, seed=seed)
    model = m.model.double()
    letters = torch.tensor(m.tokenizer.convert_tokens_to_ids([chr(97 + n) for n in range(26)]))
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight.normal_(generator=torch.Generator().manual_seed(seed))
        x = model.blocks[0].norm1(model.embed_tokens.weight)
        query, key, _ = model.blocks[0].attention.qkv(x).chunk(3, dim=-1)
    q, keys = query[m.mask_id], key[letters]
    found = []
    for row, column in ((0, forward), (reverse, 0)):  # the evidence stands so far to the right, or to the left
        k = keys.clone().requires_grad_()
        at = torch.zeros(26, 1, max(row, column) + 1, 16, dtype=torch.float64)
        asked, given = at.clone(), at.clone()
        asked[:, :, row], given[:, :, column] = q, k[:, None]
        asked, given = model.encoding.rotate(asked, given)
        scores = (asked @ given.mT)[:, 0, row, column]
        found.append((scores.detach().numpy(), torch.autograd.grad(scores.sum(), k)[0].numpy()))
    return q.numpy(), keys.numpy(), found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("forward", "reverse"), [(1, 1), (3, 7), (8, 2)])
def test_correlations_are_those_of_a_random_models_scores(seed, forward, reverse):
    """Over the 26 letters' own keys; and, of keys of the assumed form, with autograd's gradients: Thm 4.3, App. B.2
    at κ = 0, where the bound given q is attained, and App. B.3's surrogate.
    """
    query, keys, ((ahead, up), (behind, down)) = model_gradients(seed, forward, reverse)
    np.testing.assert_allclose(up, np.tile(rotation(forward, 16, BASE).T @ query, (26, 1)), atol=1e-10)
    np.testing.assert_allclose(down, np.tile(rotation(-reverse, 16, BASE).T @ query, (26, 1)), atol=1e-10)
    measured = np.corrcoef(ahead, behind)[0, 1]
    assert score_correlation(query, np.cov(keys.T), forward, reverse, BASE) == pytest.approx(measured, abs=1e-10)
    rng = np.random.default_rng(seed)
    trace, kappa = rng.exponential(size=8), rng.uniform(0, 1, 8)
    weights = (planes(query) ** 2).sum(axis=-1) * trace
    for spread in (np.zeros(8), kappa):
        sigma = covariance(query, trace, spread)
        both, first, second = up[0] @ sigma @ down[0], up[0] @ sigma @ up[0], down[0] @ sigma @ down[0]
        found = float(surrogate(forward, reverse, weights, spread, 16, BASE))
        assert found == pytest.approx(2 * both / (first + second), abs=1e-10)
        if forward == reverse:
            exact, bound = both / np.sqrt(first * second), float(rope_bound_given(weights, forward, 16, BASE))
            assert found == pytest.approx(exact, abs=1e-10)
            assert exact >= bound - 1e-10
            assert spread.any() or exact == pytest.approx(bound, abs=1e-10)


def test_the_bound_keeps_the_shape_of_distances():
    assert rope_bound([[1, 2, 3], [4, 5, 6]], 8).shape == (2, 3)


def test_correlation_given_a_covariance_is_that_of_drawn_keys():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((8, 8))
    query, sigma = rng.standard_normal(8), root @ root.T
    for forward, reverse in [(1, 1), (2, 5), (3, 0.5)]:
        expected = sampled_correlation(query, sigma, forward, reverse, 30.0, rng)
        assert score_correlation(query, sigma, forward, reverse, 30.0) == pytest.approx(expected, abs=0.006)


def test_correlation_is_that_of_autograds_scores():
    """s→ and s← are linear in k: their gradients give covariance and variances."""
    torch.manual_seed(0)
    root = torch.randn(8, 8, dtype=torch.float64)
    q, sigma = torch.randn(8, dtype=torch.float64), root @ root.T
    k = torch.zeros(1, 1, 9, 8, dtype=torch.float64, requires_grad=True)
    turned, keys = Rope(8, 1, 16).rotate(q.expand(1, 1, 9, 8), k)
    (ahead,) = torch.autograd.grad(turned[0, 0, 2] @ keys[0, 0, 5], k, retain_graph=True)
    (behind,) = torch.autograd.grad(turned[0, 0, 8] @ keys[0, 0, 4], k)
    ahead, behind = ahead.sum(dim=(0, 1, 2)), behind.sum(dim=(0, 1, 2))
    expected = (ahead @ sigma @ behind) / ((ahead @ sigma @ ahead) * (behind @ sigma @ behind)).sqrt()
    assert score_correlation(q.numpy(), sigma.numpy(), 3, 4, BASE) == pytest.approx(float(expected), abs=1e-12)


def test_without_spread_the_correlation_is_undefined():
    assert math.isnan(score_correlation(np.ones(4), np.zeros((4, 4)), 1, 1))


def draws(count, width=16, low=0.0, high=1.0, equal=False):
    """Random queries, covariances under the assumption, distances; κ between low and high."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        query = rng.standard_normal(width)
        trace = np.ones(width // 2) if equal else rng.exponential(size=width // 2) ** 2
        kappa = rng.uniform(low, high, width // 2)
        yield query, trace, kappa, float(rng.uniform(0.2, 12)), float(rng.uniform(2, 500))


def test_the_bound_given_q_holds_for_any_traces_and_kappas():
    slack = []
    for query, trace, kappa, distance, base in draws(800):
        sigma = covariance(query, trace, kappa)
        bound = float(rope_bound_given((planes(query) ** 2).sum(axis=-1) * trace, distance, 16, base))
        slack.append(score_correlation(query, sigma, distance, distance, base) - bound)
    assert min(slack) > -1e-12
    assert max(slack) > 0.5


def test_the_bound_given_q_is_attained_at_kappa_zero():
    for query, trace, kappa, distance, base in draws(100):
        sigma = covariance(query, trace, 0 * kappa)
        bound = float(rope_bound_given((planes(query) ** 2).sum(axis=-1) * trace, distance, 16, base))
        assert score_correlation(query, sigma, distance, distance, base) == pytest.approx(bound, abs=1e-12)


def test_negative_kappas_break_the_bound_always_and_weights_without_traces_sometimes():
    for query, trace, kappa, distance, base in draws(500, low=-1.0, high=-0.01):
        sigma = covariance(query, trace, kappa)
        bound = float(rope_bound_given((planes(query) ** 2).sum(axis=-1) * trace, distance, 16, base))
        assert score_correlation(query, sigma, distance, distance, base) < bound
    broken = []
    for query, trace, kappa, distance, base in draws(500):
        plain = float(rope_bound_given((planes(query) ** 2).sum(axis=-1), distance, 16, base))
        broken.append(
            score_correlation(query, covariance(query, trace, kappa), distance, distance, base) < plain - 1e-12
        )
    assert 0 < np.mean(broken) < 0.5


def test_a_tilt_of_the_axis_leaves_the_bound_where_it_is_positive():
    held = 0
    for query, trace, kappa, distance, base in draws(800):
        tilt = 0.2 * math.pi  # κ̂ = κ cos(2·tilt) stays positive
        bound = float(rope_bound_given((planes(query) ** 2).sum(axis=-1) * trace, distance, 16, base))
        if bound >= 0:
            sigma = covariance(query, trace, kappa, tilt)
            assert score_correlation(query, sigma, distance, distance, base) > bound - 1e-12
            held += 1
    assert held > 100


def test_over_queries_the_mean_correlation_is_the_bound_at_kappa_zero_and_above_it_elsewhere():
    mean = {}
    for kappa in (0.0, 0.4):
        rng = np.random.default_rng(0)
        found = []
        for _ in range(1000):
            query = rng.standard_normal(16)
            sigma = covariance(query, np.ones(8), np.full(8, kappa))
            found.append(score_correlation(query, sigma, 2, 2, 100.0))
        mean[kappa] = np.mean(found)
    bound = float(rope_bound(2, 16, 100.0))
    assert mean[0.0] == pytest.approx(bound, abs=0.02)
    assert mean[0.4] > bound + 0.05


@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(4), np.zeros(4), np.full(4, math.nan)])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(UsageError, match="4 weights"):
        rope_bound_given(weights, 1, 8)


# what is measured in place of the assumption


def test_key_planes_finds_what_the_covariance_was_made_of():
    for query, trace, kappa, _, _ in draws(50):
        seen = key_planes(query, covariance(query, trace, kappa))
        weights = (planes(query) ** 2).sum(axis=-1) * trace
        np.testing.assert_allclose(seen.weights, weights / weights.sum(), atol=1e-12)
        np.testing.assert_allclose(seen.kappa, kappa, atol=1e-12)
        np.testing.assert_allclose(seen.tilt, 0, atol=1e-12)
        assert seen.cross == pytest.approx(0, abs=1e-12)


def test_key_planes_sees_a_tilt_and_what_lies_between_planes():
    query = np.array([1.0, 2.0, -1.0, 0.5])
    seen = key_planes(query, covariance(query, np.ones(2), np.array([0.5, 0.8]), tilt=0.3))
    np.testing.assert_allclose(seen.kappa, np.array([0.5, 0.8]) * math.cos(0.6), atol=1e-12)
    np.testing.assert_allclose(seen.tilt, np.array([0.5, 0.8]) * math.sin(0.6), atol=1e-12)
    assert key_planes(query, np.ones((4, 4))).cross == pytest.approx(0.5)


def test_a_plane_without_a_query_is_undefined_and_an_empty_covariance_refused():
    seen = key_planes(np.array([0.0, 1.0, 0.0, 1.0]), np.eye(4))
    assert np.isnan(seen.kappa[0])
    assert seen.kappa[1] == pytest.approx(0)
    with pytest.raises(UsageError, match="no plane"):
        key_planes(np.ones(4), np.zeros((4, 4)))
    with pytest.raises(UsageError, match="covariance"):
        key_planes(np.ones(4), np.eye(6))


# App. B.2


def test_the_tail_gives_the_printed_digits_of_table_4():
    table = published("tab4")
    for row in table.itertuples():
        found = float(rope_tail(row.distance, row.threshold, row.width, table.attrs["base"]))
        assert round(found, 3) == row.probability, row


def test_the_tails_mean_and_variance_are_those_of_drawn_weights():
    """Cantelli's bound at two thresholds pins down μ and ν."""
    rng = np.random.default_rng(0)
    drawn = rng.dirichlet(np.ones(16), 200_000)
    found = drawn @ np.cos(6 * frequencies(32, 50.0))
    mean, variance = found.mean(), found.var()
    for threshold in (mean - 0.1, mean - 0.3):
        expected = (mean - threshold) ** 2 / (variance + (mean - threshold) ** 2)
        assert float(rope_tail(3, threshold, 32, 50.0)) == pytest.approx(expected, rel=0.02)


def test_the_tail_holds_for_random_queries_and_certifies_nothing_above_the_mean():
    rng = np.random.default_rng(0)
    weights = (planes(rng.standard_normal((100_000, 32))) ** 2).sum(axis=-1)
    weights /= weights.sum(axis=-1, keepdims=True)
    for distance in (1, 4, 20):
        found = weights @ np.cos(2 * distance * frequencies(32, 50.0))
        for threshold in np.linspace(-0.5, 0.9, 15):
            certified = float(rope_tail(distance, threshold, 32, 50.0))
            assert (found >= threshold).mean() >= certified - 0.005
            assert (certified > 0) == (threshold < float(rope_bound(distance, 32, 50.0)))


def test_at_distance_zero_the_tail_is_certain():
    assert float(rope_tail(0, 0.99, 32)) == 1


def test_the_tail_broadcasts():
    assert rope_tail(np.arange(1, 6)[:, None], [0.1, 0.2, 0.3], 64).shape == (5, 3)


# Prop. 4.5

ALPHABET = "0abcdefghABCDEFGH"


def radd(encoding, depth, length):
    torch.manual_seed(0)
    options = {"alphabet": ALPHABET, "encoding": encoding, "depth": depth, "width": 16, "heads": 2}
    model = Radd.build({**options, "max_length": length}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.set_attn_implementation("eager")
    return model


def prompts(length, row, evidence):
    """One prompt a fact: the mask at ``row``, the fact's capital at ``evidence``, and placeholders."""
    x = torch.zeros(8, length, dtype=torch.long)
    x[:, evidence] = torch.arange(9, 17)
    x[:, row] = len(ALPHABET)
    return x


def relative_scores(model, length, row, evidence):
    """s_ij − s_ii over facts: the mask's own score doesn't depend on the fact. [8, H]"""
    with torch.no_grad():
        weights = model(prompts(length, row, evidence), output_attentions=True).attentions[0]
    return (weights[:, :, row, evidence] / weights[:, :, row, row]).log()


def test_alibi_scores_differ_by_the_gap_whatever_the_distances():
    model = radd("alibi", 1, 9)
    for forward, reverse in [(1, 1), (1, 4), (4, 2), (3, 4)]:
        ahead = relative_scores(model, 9, 4, 4 + forward)
        behind = relative_scores(model, 9, 4, 4 - reverse)
        for head, slope in enumerate((2.0**-4, 2.0**-8)):
            gap = float(alibi_gap(slope, forward, reverse))
            torch.testing.assert_close(
                ahead[:, head] - behind[:, head], torch.full((8,), gap).double(), atol=1e-12, rtol=0
            )
            assert np.corrcoef(ahead[:, head], behind[:, head])[0, 1] > 1 - 1e-12


def test_rope_scores_do_not_differ_by_a_constant():
    model = radd("rope", 1, 9)
    gap = relative_scores(model, 9, 4, 7) - relative_scores(model, 9, 4, 1)
    assert gap.std(dim=0).min() > 0.01


@pytest.mark.parametrize("depth", [1, 3])
def test_a_mirrored_query_has_the_same_output_under_alibi_at_any_depth(depth):
    model = radd("alibi", depth, 9)
    with torch.no_grad():
        ahead = model(prompts(9, 2, 6)).logits[:, 2]
        behind = model(prompts(9, 6, 2)).logits[:, 6]
    torch.testing.assert_close(ahead, behind, rtol=0, atol=1e-11)


@pytest.mark.parametrize("encoding", ["rope", "absolute"])
def test_a_mirrored_query_is_another_one_under_other_encodings(encoding):
    model = radd(encoding, 1, 9)
    with torch.no_grad():
        ahead = model(prompts(9, 2, 6)).logits[:, 2]
        behind = model(prompts(9, 6, 2)).logits[:, 6]
    assert (ahead - behind).abs().max() > 0.01
