"""Storage, gradients and their alignment: closed forms against autograd on random models, in float64."""

import math

import numpy as np
import pytest
import torch

from rcprobe.errors import UsageError
from rcprobe.theory import (
    OneLayer,
    column_product,
    effective_cosine,
    effective_gradient,
    one_layer_gradients,
    read,
    residual,
    routing_cosine,
    score_gradient,
    split_product,
    storage_gradient,
    storage_velocity,
    toy_split,
    untrained_cosines,
)
from rcprobe_plugins.encodings.rope import BASE, Rope

V, W, D = 11, 5, 6  # V also is the mask's symbol
MASK = V
EXACT = {"rtol": 1e-10, "atol": 1e-12}
MATRICES = ("unembed", "value", "query", "key", "embedding")
ENCODINGS = {"rope": {"base": 30.0}, "alibi": {"slope": 0.3}, "none": {}, "scaled": {"base": float(BASE), "scale": 0.4}}


def one_layer(seed=0, **encoding):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"unembed": (V, D), "value": (D, W), "query": (D, W), "key": (D, W), "embedding": (W, V + 1)}
    weights = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return OneLayer(**weights, **encoding)


def leaves(model):
    return {name: getattr(model, name).clone().requires_grad_() for name in MATRICES}


def turn(x, distance, base):
    """x turned by ``distance`` positions, planes as complex numbers."""
    if base is None:
        return x
    theta = torch.tensor([base ** (-2 * m / D) for m in range(D // 2)], dtype=torch.float64)
    z = torch.complex(x[: D // 2], x[D // 2 :]) * torch.polar(torch.ones_like(theta), distance * theta)
    return torch.cat((z.real, z.imag))


def loss(model, w, prompt, row, target):
    """−log p_a, written one position at a time."""
    content = w["embedding"].T[prompt]
    q = w["query"] @ content[row]
    scores = torch.stack(
        [
            model.scale * (q @ turn(w["key"] @ x, place - row, model.base)) - model.slope * abs(place - row)
            for place, x in enumerate(content)
        ]
    )
    mixed = sum(a * (w["value"] @ x) for a, x in zip(scores.softmax(0), content, strict=True))
    return -(w["unembed"] @ mixed).log_softmax(0)[target]


def autograd(model, prompt, row, target):
    w = leaves(model)
    return dict(zip(MATRICES, torch.autograd.grad(loss(model, w, prompt, row, target), list(w.values())), strict=True))


def prompt_of(seed, length=7, masks=1):
    """A random prompt with repeated tokens, its row, and a target; more masks than one on request."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(0, 4, (length,), generator=generator)
    places = torch.randperm(length, generator=generator)
    prompt[places[:masks]] = MASK
    return prompt, int(places[0]), int(torch.randint(0, V, (1,), generator=generator))


def flat(gradients):
    return torch.cat([g.ravel() for g in gradients.values()])


# Prop. 4.1, Thm 4.6


def probabilities(generator, sharp=2.0):
    return (sharp * torch.randn(V, generator=generator, dtype=torch.float64)).softmax(0)


def w_eff_gradients(model, prompt, row, target):
    """Autograd in W_eff itself, attention held."""
    seen = read(model, prompt, row)
    w_eff = (model.unembed @ model.value @ model.embedding).requires_grad_()
    (gradient,) = torch.autograd.grad(-(w_eff @ seen.attention).log_softmax(0)[target], w_eff)
    return seen, gradient


@pytest.mark.parametrize("seed", range(5))
def test_storage_gradient_is_autograds_column(seed):
    model = one_layer(seed, base=30.0)
    prompt, row, target = prompt_of(seed)
    seen, gradient = w_eff_gradients(model, prompt, row, target)
    for token in range(V + 1):
        mass = float(seen.attention[token])
        torch.testing.assert_close(storage_gradient(seen.probabilities, target, mass), gradient[:, token], **EXACT)
        expected = [-mass * (1 - p) if t == target else mass * p for t, p in enumerate(seen.probabilities.tolist())]
        torch.testing.assert_close(gradient[:, token], torch.tensor(expected, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(effective_gradient(seen.probabilities, target, seen.attention), gradient, **EXACT)


def test_signs_of_the_storage_gradient():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        gradient = storage_gradient(probabilities(generator), 4, 0.3)
        assert gradient[4] < 0
        assert (gradient >= 0).sum() == V - 1
        assert gradient.sum().abs() < 1e-15


def test_column_product_is_autograds_and_positive():
    for seed in range(20):
        model = one_layer(seed, base=30.0)
        ahead, behind = torch.tensor([0, MASK, 2, 1, 0]), torch.tensor([1, 0, 0, MASK, 1])
        f, gradient_f = w_eff_gradients(model, ahead, 1, 5)
        r, gradient_r = w_eff_gradients(model, behind, 3, 5)
        found = column_product(f.probabilities, r.probabilities, 5, float(f.attention[1]), float(r.attention[1]))
        assert found == pytest.approx(float(gradient_f[:, 1] @ gradient_r[:, 1]), rel=1e-10)
        assert found > 0


def test_the_cosine_of_the_shared_column_is_at_least_a_half():
    generator = torch.Generator().manual_seed(1)
    found = []
    for sharp in (0.1, 1, 3, 10):
        for _ in range(300):
            f, r = (residual(probabilities(generator, sharp), 3) for _ in range(2))
            found.append(float(f @ r / (f.norm() * r.norm())))
    assert 0.5 <= min(found) < 0.52


def test_a_target_outside_the_vocabulary_is_refused():
    with pytest.raises(UsageError, match="target 11"):
        residual(torch.ones(V, dtype=torch.float64) / V, V)


# App. C.1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_effective_cosine_is_that_of_autograds_gradients(encoding):
    model = one_layer(3, **ENCODINGS[encoding])
    (x, i, a), (y, j, b) = prompt_of(1), prompt_of(2)
    f, gradient_f = w_eff_gradients(model, x, i, a)
    r, gradient_r = w_eff_gradients(model, y, j, b)
    expected = (gradient_f * gradient_r).sum() / (gradient_f.norm() * gradient_r.norm())
    found = effective_cosine(residual(f.probabilities, a), residual(r.probabilities, b), f.attention, r.attention)
    assert found == pytest.approx(float(expected), abs=1e-12)


def test_a_zero_gradient_has_no_cosine():
    some, none = torch.ones(V, dtype=torch.float64), torch.zeros(V, dtype=torch.float64)
    assert math.isnan(effective_cosine(none, some, some, some))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_score_gradient_is_autograds(encoding):
    model = one_layer(1, **ENCODINGS[encoding])
    prompt, row, target = prompt_of(5)
    seen = read(model, prompt, row)
    w_eff = model.unembed @ model.value @ model.embedding
    scores = seen.scores.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-(w_eff[:, prompt] @ scores.softmax(0)).log_softmax(0)[target], scores)
    effects = residual(seen.probabilities, target) @ w_eff[:, prompt]
    torch.testing.assert_close(score_gradient(seen.weights, effects), expected, **EXACT)


def test_routing_cosines_are_those_of_autograd_through_the_evidences_score():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        q, k = (torch.randn(D, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
        g_f, g_r = torch.randn(2, generator=generator, dtype=torch.float64).tolist()
        ahead = torch.autograd.grad(g_f * (q @ turn(k, 2.0, 30.0)), (q, k), retain_graph=True)
        behind = torch.autograd.grad(g_r * (q @ turn(k, -5.0, 30.0)), (q, k))
        for vector, f, r in ((k, ahead[0], behind[0]), (q, ahead[1], behind[1])):
            expected = float(f @ r / (f.norm() * r.norm()))
            assert routing_cosine(vector.detach(), 2.0, 5.0, g_f, g_r, 30.0) == pytest.approx(expected, abs=1e-12)


def test_without_rotation_routing_cosines_are_one_or_minus_one():
    vector = torch.randn(D, dtype=torch.float64)
    assert routing_cosine(vector, 2.0, 5.0, 0.1, 3.0, None) == 1
    assert routing_cosine(vector, 2.0, 5.0, -0.1, 3.0, None) == -1
    assert routing_cosine(vector, 2.0, 5.0, -1e-200, -1e-200, None) == 1
    assert math.isnan(routing_cosine(vector, 2.0, 5.0, 0.0, 1.0, None))
    assert math.isnan(routing_cosine(0 * vector, 2.0, 5.0, 1.0, 1.0))


# App. C.2, any prompt


def test_the_reference_turns_as_the_encoding_does():
    x = torch.randn(D, dtype=torch.float64)
    _, turned = Rope(D, 1, 16).rotate(x.expand(1, 1, 5, D), x.expand(1, 1, 5, D))
    torch.testing.assert_close(turned[0, 0, 4], turn(x, 4.0, BASE), **EXACT)
    torch.testing.assert_close(one_layer(base=float(BASE)).rotation(4.0) @ x, turn(x, 4.0, BASE), **EXACT)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("masks", [1, 3])
def test_gradients_of_every_matrix_are_autograds(encoding, seed, masks):
    model = one_layer(seed, **ENCODINGS[encoding])
    prompt, row, target = prompt_of(seed, masks=masks)
    seen = read(model, prompt, row)
    expected_loss = loss(model, leaves(model), prompt, row, target)
    assert float(-seen.probabilities[target].log()) == pytest.approx(float(expected_loss.detach()), abs=1e-12)
    found, expected = one_layer_gradients(model, prompt, row, target), autograd(model, prompt, row, target)
    for name in MATRICES[:-1]:
        torch.testing.assert_close(getattr(found, name), expected[name], **EXACT)
    torch.testing.assert_close(found.embedding.sum(0), expected["embedding"], **EXACT)


def test_the_embeddings_paths_are_those_that_autograd_finds_when_the_others_are_held():
    model = one_layer(2, base=30.0)
    prompt, row, target = prompt_of(3)
    found = one_layer_gradients(model, prompt, row, target)
    for path, name in enumerate(("query", "key", "value")):
        fixed = {n: w.detach() for n, w in leaves(model).items()}
        moving = fixed["embedding"].clone().requires_grad_()
        embedded = {n: (moving if n == name else fixed["embedding"]).T[prompt] for n in ("query", "key", "value")}
        q = fixed["query"] @ embedded["query"][row]
        keys = [turn(fixed["key"] @ x, place - row, 30.0) for place, x in enumerate(embedded["key"])]
        weights = torch.stack([q @ k for k in keys]).softmax(0)
        logits = fixed["unembed"] @ fixed["value"] @ embedded["value"].T @ weights
        (expected,) = torch.autograd.grad(-logits.log_softmax(0)[target], moving)
        torch.testing.assert_close(found.embedding[path], expected, **EXACT)
    assert (found.embedding[:, :, MASK].abs().amax(-1) > 1e-3).all()  # the mask's column has all three


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_split_adds_up_to_the_inner_product_over_all_parameters(encoding):
    model = one_layer(4, **ENCODINGS[encoding])
    (x, i, a), (y, j, _) = prompt_of(6, masks=2), prompt_of(7)
    f, r = autograd(model, x, i, a), autograd(model, y, j, a)
    found = split_product(one_layer_gradients(model, x, i, a), one_layer_gradients(model, y, j, a))
    for name in MATRICES[:-1]:
        assert getattr(found, name) == pytest.approx(float((f[name] * r[name]).sum()), rel=1e-10)
    assert float(found.embedding.sum()) == pytest.approx(float((f["embedding"] * r["embedding"]).sum()), rel=1e-10)
    assert found.total == pytest.approx(float(flat(f) @ flat(r)), rel=1e-10)


def test_matrices_and_rows_that_do_not_fit_are_refused():
    model = one_layer()
    with pytest.raises(UsageError, match="fit together"):
        OneLayer(model.unembed, model.value, model.query, model.key, torch.zeros(W + 1, V, dtype=torch.float64))
    with pytest.raises(UsageError, match="fit together"):
        OneLayer(model.unembed, model.value[:, :-1], model.query, model.key, model.embedding)
    with pytest.raises(UsageError, match="row 3"):
        read(model, torch.tensor([MASK, 1, 2]), 3)


# App. C.2, toy


def toy_autograd(model, evidence, distance, target):
    """∇L of the toy z = σ(s) U v_b, the score turned by the signed ``distance``."""
    w = leaves(model)
    e_b, e_m = w["embedding"][:, evidence], w["embedding"][:, MASK]
    score = model.scale * (w["query"] @ e_m) @ turn(w["key"] @ e_b, distance, model.base) - model.slope * abs(distance)
    value = -(score.sigmoid() * (w["unembed"] @ w["value"] @ e_b)).log_softmax(0)[target]
    return dict(zip(MATRICES, torch.autograd.grad(value, list(w.values())), strict=True))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("seed", range(3))
def test_the_toys_split_is_autograds_matrix_by_matrix(encoding, seed):
    model = one_layer(seed, **ENCODINGS[encoding])
    f, r = toy_autograd(model, 2, 3.0, 7), toy_autograd(model, 2, -5.0, 7)
    found = toy_split(model, 2, MASK, 7, 3.0, 5.0)
    for name in MATRICES[:-1]:
        assert getattr(found, name) == pytest.approx(float((f[name] * r[name]).sum()), rel=1e-10)
    column = float(f["embedding"][:, MASK] @ r["embedding"][:, MASK])
    assert float(found.embedding[0].sum()) == pytest.approx(column, rel=1e-10)
    column = float(f["embedding"][:, 2] @ r["embedding"][:, 2])
    assert float(found.embedding[1:].sum()) == pytest.approx(column, rel=1e-10)
    assert found.total == pytest.approx(float(flat(f) @ flat(r)), rel=1e-10)


def test_the_toys_storage_parts_are_positive():
    for seed in range(50):
        found = toy_split(one_layer(seed, base=30.0), 2, MASK, 7, 3.0, 5.0)
        assert found.unembed > 0


def test_a_toy_whose_evidence_is_the_mask_is_refused():
    with pytest.raises(UsageError, match="two symbols"):
        toy_split(one_layer(), MASK, MASK, 1, 1.0, 1.0)


# a step on the matrices is not a step in W_eff


def test_storage_velocity_is_the_derivative_of_w_eff_along_a_step():
    model = one_layer(5, base=30.0)
    prompt, row, target = prompt_of(8)
    gradient = autograd(model, prompt, row, target)

    def w_eff(eta):
        moved = {n: getattr(model, n) - eta * gradient[n] for n in ("unembed", "value", "embedding")}
        return moved["unembed"] @ moved["value"] @ moved["embedding"]

    _, expected = torch.autograd.functional.jvp(w_eff, torch.tensor(0.0).double(), torch.tensor(1.0).double())
    found = storage_velocity(model, one_layer_gradients(model, prompt, row, target))
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_step_on_the_matrices_may_lower_what_a_step_in_w_eff_raises():
    falls = 0
    for seed in range(200):
        model = one_layer(seed, base=30.0)
        prompt = torch.tensor([0, 0, MASK, 2, 0])
        falls += int(storage_velocity(model, one_layer_gradients(model, prompt, 2, 7))[7, 2] < 0)
    assert 0 < falls < 100


# §6: what random weights already show


@pytest.mark.parametrize(("vocabulary", "length"), [(11, 6), (11, 2), (5, 20)])
def test_untrained_cosines_are_autograds(vocabulary, length):
    """W_eff = 0 gives flat p, and equal scores give uniform attention; symbols: tokens, then the mask."""
    evidence, other = vocabulary - 1, vocabulary - 2

    def gradient(row, place, b, a):
        prompt = torch.zeros(length, dtype=torch.long)
        prompt[row], prompt[place] = vocabulary, b
        w_eff = torch.zeros(vocabulary, vocabulary + 1, dtype=torch.float64, requires_grad=True)
        uniform = torch.bincount(prompt, minlength=vocabulary + 1).double() / length
        return torch.autograd.grad(-(w_eff @ uniform).log_softmax(0)[a], w_eff)[0].ravel()

    forward = gradient(0, length - 1, evidence, 1)
    for kind, (b, a) in {
        "matched": (evidence, 1),
        "same_target": (other, 1),
        "other_target": (evidence, 2),
        "other_fact": (other, 2),
    }.items():
        reverse = gradient(length - 1, 0, b, a)
        expected = float(forward @ reverse / (forward.norm() * reverse.norm()))
        assert untrained_cosines(vocabulary, length)[kind] == pytest.approx(expected, abs=1e-12)


def test_untrained_cosines_separate_matched_from_same_target_by_little():
    found = untrained_cosines(53, 10)
    assert found["matched"] - found["same_target"] == pytest.approx(1 / 66)
    assert abs(found["other_fact"]) < 0.02
    with pytest.raises(UsageError, match="2 or more"):
        untrained_cosines(1, 10)


def test_numbers_are_float64():
    model = one_layer(base=30.0)
    assert read(model, torch.tensor([0, MASK, 3]), 1).probabilities.dtype == torch.float64
    assert isinstance(toy_split(model, 2, MASK, 7, 3.0, 5.0).total, float)
    assert np.isfinite(toy_split(model, 2, MASK, 7, 3.0, 5.0).total)
