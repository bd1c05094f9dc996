"""The first-order term: against losses whose expansion is known, and its order on a random model."""

import numpy as np
import pytest
import torch
from torch import nn

from rcprobe.errors import UsageError
from rcprobe.theory import change_along, first_order, gradient_step


def quadratic(seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    return root @ root.T, torch.randn(5, generator=generator, dtype=torch.float64)


def loss_of(matrix, vector):
    return lambda p: 0.5 * p["x"] @ matrix @ p["x"] + vector @ p["x"]


POINT = {"x": torch.arange(5, dtype=torch.float64) / 3}


def network():
    """A small non-linear model as two pure losses, which ask different things of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    ahead, behind = torch.randn(2, 3, 4, dtype=torch.float64)

    def loss(inputs):
        return lambda p: nn.functional.cross_entropy(
            torch.func.functional_call(model, p, inputs), torch.tensor([1, 2, 3])
        )

    return loss(ahead), loss(behind), dict(model.named_parameters())


def test_a_quadratic_has_no_third_order():
    (m_f, v_f), (m_r, v_r) = quadratic(0), quadratic(1)
    found = first_order(loss_of(m_f, v_f), loss_of(m_r, v_r), POINT, [0.3, 0.01])
    g_f, g_r = m_f @ POINT["x"] + v_f, m_r @ POINT["x"] + v_r
    for i, rate in enumerate((0.3, 0.01)):
        assert found.first[i] == pytest.approx(-rate * float(g_f @ g_r), rel=1e-12)
        assert found.second[i] == pytest.approx(rate**2 / 2 * float(g_f @ m_r @ g_f), rel=1e-12)
    np.testing.assert_allclose(found.actual, found.first + found.second, rtol=1e-10)
    np.testing.assert_allclose(found.tightness, -0.5 * float(g_f @ m_r @ g_f) / float(g_f @ g_r), rtol=1e-8)


def test_terms_are_autograds_on_a_network():
    forward, reverse, parameters = network()
    found = first_order(forward, reverse, parameters, [0.1])
    g_f = torch.autograd.grad(forward(parameters), list(parameters.values()))
    g_r = torch.autograd.grad(reverse(parameters), list(parameters.values()))
    product = sum(float((a * b).sum()) for a, b in zip(g_f, g_r, strict=True))
    assert found.first[0] == pytest.approx(-0.1 * product, rel=1e-12)
    flat = torch.cat([g.ravel() for g in g_f])
    names, shapes = list(parameters), [p.shape for p in parameters.values()]

    def of_flat(x):
        pieces = x.split([s.numel() for s in shapes])
        return reverse({n: piece.view(s) for n, piece, s in zip(names, pieces, shapes, strict=True)})

    at = torch.cat([p.detach().ravel() for p in parameters.values()])
    hessian = torch.autograd.functional.hessian(of_flat, at)
    assert found.second[0] == pytest.approx(0.005 * float(flat @ hessian @ flat), rel=1e-10)
    assert found.actual[0] == pytest.approx(float(of_flat(at - 0.1 * flat) - of_flat(at)), rel=1e-10)


def test_what_remains_is_of_third_order_and_the_tightness_linear():
    forward, reverse, parameters = network()
    rates = np.array([0.04, 0.02, 0.01])
    found = first_order(forward, reverse, parameters, rates.tolist())
    remainder = found.actual - found.first - found.second
    assert (np.abs(remainder) > 1e-12).all()
    np.testing.assert_allclose(remainder[:-1] / remainder[1:], 8, rtol=0.1)
    limit = found.second / found.first / rates
    np.testing.assert_allclose(limit, limit[0], rtol=1e-10)
    away = found.tightness - limit
    np.testing.assert_allclose(away[:-1] / away[1:], 2, rtol=0.1)


def test_any_step_is_predicted_and_the_parameters_stay():
    forward, reverse, parameters = network()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    moved = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    optimiser = torch.optim.AdamW(moved.values(), lr=1e-4, weight_decay=0.1)
    forward(moved).backward()
    optimiser.step()
    step = {name: (moved[name] - before[name]).detach() for name in moved}
    found = change_along(reverse, parameters, step)
    assert found.actual == pytest.approx(float((reverse(moved) - reverse(before)).detach()), rel=1e-10)
    assert found.first == pytest.approx(found.actual, rel=0.01)
    assert abs(found.actual - found.first - found.second) < 1e-3 * abs(found.second)
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    assert all(p.grad is None for p in parameters.values())


def test_a_step_of_some_parameters_leaves_the_others():
    _, reverse, parameters = network()
    step = {"2.bias": torch.full((6,), 0.01, dtype=torch.float64) * torch.arange(6)}
    found = change_along(reverse, parameters, step)
    moved = {**parameters, "2.bias": parameters["2.bias"] + step["2.bias"]}
    assert found.actual == pytest.approx(float((reverse(moved) - reverse(parameters)).detach()), rel=1e-12)
    assert found.first != 0


def test_linear_losses_and_unused_parameters_are_no_trouble():
    found = change_along(lambda p: p["x"].sum(), {**POINT, "unused": POINT["x"]}, {"x": POINT["x"]})
    assert found.first == found.actual == pytest.approx(float(POINT["x"].sum()))
    assert found.second == 0


def test_orthogonal_gradients_have_no_tightness():
    found = first_order(lambda p: p["x"][0], lambda p: p["x"][1] ** 2, POINT, [0.1])
    assert np.isnan(found.tightness[0])


def test_gradient_step_goes_down():
    matrix, vector = quadratic(0)
    step = gradient_step(loss_of(matrix, vector), POINT, 0.2)
    torch.testing.assert_close(step["x"], -0.2 * (matrix @ POINT["x"] + vector))


def test_low_precision_unknown_names_and_rates_are_refused():
    loss = loss_of(*quadratic(0))
    with pytest.raises(UsageError, match="float64"):
        gradient_step(loss, {"x": POINT["x"].float()}, 0.1)
    with pytest.raises(UsageError, match="'y'"):
        change_along(loss, POINT, {"y": POINT["x"]})
    for rates in ([], [0.0], [0.1, -0.1]):
        with pytest.raises(UsageError, match="rates"):
            first_order(loss, loss, POINT, rates)
