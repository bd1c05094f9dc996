"""The flow of the toy model: autograd's velocity, the integrator against the closed form, and the limits."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from rcprobe.errors import UsageError
from rcprobe.theory import alibi_flow, reverse_limit, rope_curve, rope_flow, rotation, velocities

V, D, BASE = 7, 6, 30.0
TIMES = np.concatenate(([0.0], np.geomspace(0.01, 1e4, 60)))


def vectors(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(D), rng.standard_normal(D)


def start(q, k, forward, reverse):
    """s→(0), s←(0), n and ρ, by rotation matrices."""
    both = q @ rotation(forward + reverse, D, BASE) @ q
    return q @ rotation(forward, D, BASE) @ k, q @ rotation(-reverse, D, BASE) @ k, q @ q, both / (q @ q)


def descend(q, k, forward, reverse, steps, rate, *, turned, slope=0.0):
    """Gradient descent by autograd with small steps from w = 0.7, and p←, p→, s→, s←, D at its end."""
    w = torch.full((V,), 0.7, dtype=torch.float64, requires_grad=True)
    q, k = torch.from_numpy(q).clone().requires_grad_(), torch.from_numpy(k).clone().requires_grad_()
    ahead, behind = (
        torch.from_numpy(rotation(d, D, BASE)) if turned else torch.eye(D).double() for d in (forward, -reverse)
    )
    moving = [w, k] if turned else [w, k, q]
    for _ in range(steps):
        loss = -((q @ ahead @ k - slope * forward).sigmoid() * w).log_softmax(0)[0]
        with torch.no_grad():
            for x, g in zip(moving, torch.autograd.grad(loss, moving), strict=True):
                x -= rate * g
    with torch.no_grad():
        s_f, s_r = q @ ahead @ k - slope * forward, q @ behind @ k - slope * reverse
        p_f, p_r = (s_f.sigmoid() * w).softmax(0)[0], (s_r.sigmoid() * w).softmax(0)[0]
        return np.array([float(x) for x in (w[0] - w[3], s_f, s_r, p_f, p_r)])


def last(flow):
    return np.array(
        [x[-1] for x in (flow.gap, flow.forward_score, flow.reverse_score)]
        + [flow.forward_probability[-1], flow.reverse_probability[-1]]
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("turned", [True, False])
def test_the_velocity_is_autograds_gradient(seed, turned):
    """ẇ, k̇ and, under ALiBi, q̇ from any state: minus the gradient of the forward loss."""
    rng, slope = np.random.default_rng(seed), 0.0 if turned else 0.3
    w, (q, k) = 3 * rng.standard_normal(V), vectors(seed)
    leaves = [torch.from_numpy(x).clone().requires_grad_() for x in (w, q, k)]
    ahead = rotation(2, D, BASE) if turned else np.eye(D)
    score = leaves[1] @ torch.from_numpy(ahead) @ leaves[2] - slope * 2
    loss = -(score.sigmoid() * leaves[0]).log_softmax(0)[0]
    down = [-g.numpy() for g in torch.autograd.grad(loss, leaves)]
    logits, h = velocities(w, score.item())
    np.testing.assert_allclose(logits, down[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(h * ahead.T @ q, down[2], rtol=0, atol=1e-10)
    np.testing.assert_allclose(h * ahead @ k, down[1], rtol=0, atol=1e-10)  # RoPE's flow holds q fixed


@pytest.mark.parametrize("seed", range(20))
def test_the_closed_forms_slope_is_that_of_the_velocity(seed):
    """h/Ḋ = (1 − α→)D(V − 1)/V, on a path from w = 0, where all logits but the target's stay alike."""
    rng = np.random.default_rng(seed)
    gap, score, other = rng.exponential(4), 3 * rng.standard_normal(), rng.standard_normal()
    logits, h = velocities(np.r_[other + gap, np.full(V - 1, other)], score)
    assert np.ptp(logits[1:]) < 1e-15
    expected = (1 - 1 / (1 + np.exp(-score))) * gap * (V - 1) / V
    assert h / (logits[0] - logits[1]) == pytest.approx(expected, abs=1e-10)
    nudge = 1e-6 * gap  # and of the curve that was integrated from it
    curve = rope_curve([gap - nudge, gap + nudge], 0.4, -0.2, 1.7, 0.3, V)
    slope = np.diff(curve.forward_score)[0] / (2 * nudge) / 1.7
    at = rope_curve([gap], 0.4, -0.2, 1.7, 0.3, V).forward_score[0]
    assert slope == pytest.approx((1 - 1 / (1 + np.exp(-at))) * gap * (V - 1) / V, rel=1e-6)


@pytest.mark.parametrize("turned", [True, False])
def test_the_flow_is_the_limit_of_autograds_gradient_descent(turned):
    """Euler's error is linear in the rate: two rates extrapolate to the flow."""
    q, k = vectors(0)
    coarse = descend(q, k, 2, 5, 400, 0.01, turned=turned, slope=0.0 if turned else 0.3)
    fine = descend(q, k, 2, 5, 800, 0.005, turned=turned, slope=0.0 if turned else 0.3)
    flow = rope_flow([4.0], q, k, 2, 5, V, BASE) if turned else alibi_flow([4.0], q, k, 2, 5, V, slope=0.3)
    np.testing.assert_allclose(2 * fine - coarse, last(flow), atol=1e-4)
    assert np.abs(fine - last(flow)).max() > 5e-4  # the rate mattered


@pytest.mark.parametrize("seed", range(6))
def test_the_closed_form_is_the_integrators_trajectory(seed):
    q, k = vectors(seed)
    flow = rope_flow(TIMES, q, k, 2, 5, V, BASE)
    curve = rope_curve(flow.gap, *start(q, k, 2, 5), V)
    assert flow.gap[-1] > 5
    for name in ("forward_score", "reverse_score", "forward_probability", "reverse_probability"):
        np.testing.assert_allclose(getattr(curve, name), getattr(flow, name), rtol=0, atol=1e-7)


def test_time_is_the_integral_of_the_closed_form():
    q, k = vectors(1)
    begin = start(q, k, 2, 5)

    def slowness(gap):
        curve = rope_curve(gap, *begin, V)
        alpha = 1 / (1 + np.exp(-curve.forward_score))
        return (V - 1) / (V * alpha * (1 - curve.forward_probability))

    flow = rope_flow([30.0], q, k, 2, 5, V, BASE)
    assert quad(slowness, 0, flow.gap[0])[0] == pytest.approx(30.0, rel=1e-7)


def test_the_gap_and_the_forward_score_rise_and_every_start_is_flat():
    for seed in range(6):
        q, k = vectors(seed)
        flow = rope_flow(TIMES, q, k, 1, 3, V, BASE)
        assert (np.diff(flow.gap) > 0).all()
        assert (np.diff(flow.forward_score) > -1e-9).all()
        assert flow.forward_probability[0] == flow.reverse_probability[0] == pytest.approx(1 / V)
        assert flow.forward_probability[-1] > 0.99


def test_a_gap_reached_in_another_clock_gives_the_same_scores():
    """dH/dD = (1 − α→)D(V − 1)/V, integrated over D as far as no time would reach."""
    s_f, s_r, n, rho = -0.4, 0.8, 2.5, -0.3
    solved = solve_ivp(
        lambda d, h: (V - 1) / V * d / (1 + np.exp(s_f + n * h)),
        (0, 1000),
        [0.0],
        rtol=1e-10,
        atol=1e-12,
        t_eval=[1, 30, 1000],
    )
    curve = rope_curve([1, 30, 1000], s_f, s_r, n, rho, V)
    np.testing.assert_allclose(curve.forward_score, s_f + n * solved.y[0], atol=1e-7)
    np.testing.assert_allclose(curve.reverse_score, s_r + rho * n * solved.y[0], atol=1e-7)


# the limits


@pytest.mark.parametrize("rho", [-1.0, -0.8, -0.55, -0.5, -0.45, -0.2, 0.0, 0.6, 1.0])
def test_the_closed_form_tends_to_its_limit(rho):
    begin = (0.3, -0.2, 1.7, rho, V)
    curve = rope_curve([1e3, 1e6, 1e60], *begin)
    assert curve.forward_probability[-1] == 1
    assert curve.reverse_probability[-1] == pytest.approx(reverse_limit(*begin), abs=1e-5)
    distance = np.abs(curve.reverse_probability - reverse_limit(*begin))
    assert distance[1] <= distance[0]


def test_the_limit_turns_at_minus_a_half():
    limits = [reverse_limit(0.3, -0.2, 1.7, rho, V) for rho in (-0.51, -0.5, -0.49)]
    assert limits[0] == 1 / V
    assert 1 / V < limits[1] < 1
    assert limits[2] == 1


@pytest.mark.parametrize("rho", [-0.9, -0.5, -0.2, 0.0, 0.4])
def test_the_reverse_logit_grows_with_the_power_of_the_gap(rho):
    gap = np.array([1e8, 1e9])
    curve = rope_curve(gap, 0.3, -0.2, 1.7, rho, V)
    logit = gap / (1 + np.exp(-curve.reverse_score))
    slope = np.log(logit[1] / logit[0]) / np.log(10)
    assert slope == pytest.approx(1 + 2 * min(rho, 0), abs=0.01)


def test_the_integrator_already_shows_the_turn():
    """Keys start at 0, V = 3, one plane that turns by an angle whose cosine is ρ."""
    times = np.geomspace(1, 1e9, 30)
    found = {}
    for rho in (-0.9, -0.25):
        query = np.array([2.0, 0.0])
        flow = rope_flow(times, query, np.zeros(2), np.arccos(rho) / 2, np.arccos(rho) / 2, 3)
        found[rho] = flow.reverse_probability
    assert found[-0.25][-1] > 0.94
    assert np.diff(found[-0.25]).min() > -1e-6
    assert found[-0.9].max() > 0.42
    assert 1 / 3 < found[-0.9][-1] < 0.35


def test_rho_at_zero_or_above_lifts_the_reverse_query_as_the_paper_says():
    for seed in range(40):
        q, k = vectors(seed)
        if start(q, k, 1, 2)[3] >= 0:
            flow = rope_flow(TIMES, q, k, 1, 2, V, BASE)
            assert (np.diff(flow.reverse_probability) > -1e-8).all()
            assert flow.reverse_probability[-1] > flow.reverse_probability[0] + 0.01


# ALiBi


@pytest.mark.parametrize("seed", range(3))
def test_alibi_keeps_the_gap_of_scores_and_both_queries_arrive(seed):
    q, k = vectors(seed)
    flow = alibi_flow(np.geomspace(0.1, 1e6, 40), q, k, 2, 7, V, slope=0.2)
    np.testing.assert_allclose(flow.forward_score - flow.reverse_score, 0.2 * (7 - 2), atol=1e-12)
    assert flow.reverse_probability[-1] > 0.99


def test_alibis_score_follows_the_conserved_difference_of_norms():
    """With X = qᵀk, (‖q‖² + ‖k‖²)² − 4X² stays, so dX/dD = √(C + 4X²)(1 − α→)D(V − 1)/V."""
    q, k = vectors(2)
    flow = alibi_flow(TIMES, q, k, 2, 7, V, slope=0.2)
    kept = (q @ q + k @ k) ** 2 - 4 * (q @ k) ** 2
    solved = solve_ivp(
        lambda d, x: np.sqrt(kept + 4 * x**2) * d * (V - 1) / V / (1 + np.exp(x - 0.4)),
        (0, flow.gap[-1]),
        [q @ k],
        t_eval=flow.gap,
        rtol=1e-10,
        atol=1e-12,
    )
    np.testing.assert_allclose(flow.forward_score, solved.y[0] - 0.4, atol=1e-6)


# what is refused


@pytest.mark.parametrize("times", [[], [-1.0, 2.0], [1.0, 1.0], 3.0, [np.nan], [0.0, np.nan, 1.0], [0.0, np.inf]])
def test_times_that_do_not_increase_are_refused(times):
    with pytest.raises(UsageError, match="times"):
        rope_flow(times, *vectors(0), 1, 1, V)


def test_a_flow_asked_for_its_start_alone_has_not_moved():
    for flow in (rope_flow([0.0], *vectors(0), 1, 1, V), alibi_flow([0.0], *vectors(0), 1, 1, V, slope=0.1)):
        assert flow.gap.tolist() == [0.0]
        assert flow.forward_probability[0] == pytest.approx(1 / V)


def test_impossible_starts_are_refused():
    with pytest.raises(UsageError, match="width"):
        rope_flow([1.0], np.ones(4), np.ones(6), 1, 1, V)
    with pytest.raises(UsageError, match="vocabulary"):
        alibi_flow([1.0], np.ones(4), np.ones(4), 1, 1, 1, slope=0.1)
    with pytest.raises(UsageError, match="gap"):
        rope_curve([-1.0], 0, 0, 1, 0, V)
    for square, rho in [(0.0, 0.0), (1.0, 1.1), (1.0, np.nan)]:
        with pytest.raises(UsageError, match="ρ"):
            reverse_limit(0, 0, square, rho, V)
