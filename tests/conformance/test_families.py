"""Scores and gradient products of every family against what the model itself says, computed another way."""

import re
from functools import cache

import pytest
import torch

from conformance.families import CASES, FACTS, FAMILIES, IDS, build, in_double
from rcprobe.controls import assign
from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import attention_paths, capture
from rcprobe.probing.captured import Captured
from rcprobe.probing.coverage import PER_QUERY
from rcprobe.probing.gradients import gradient_products
from rcprobe.probing.hooks import capture_with_hooks
from rcprobe.probing.plain_gradients import control_query, plain_products
from rcprobe.probing.verify import verify
from rcprobe.queries import encode

EVERY = pytest.mark.parametrize(("name", "tied"), CASES, ids=IDS)
FAMILY = pytest.mark.parametrize("name", FAMILIES)
OFF_INTERFACE = {name for name, family in FAMILIES.items() if not family.interface}
CONTROLS = 4
# a cosine with what rounding leaves of a gradient that vanishes is no number: such parts are zero for both
VANISHING = 1e-12


def pairs_of(m: LoadedModel):
    pairs = encode(m, FACTS, "swapped" if m.adapter.objective == "causal" else "same_target")
    assert all(pair.unsupported is None for pair in pairs)
    return pairs


def queries_of(m: LoadedModel) -> list[Query]:
    return [query for pair in pairs_of(m) for query in (pair.forward, pair.reverse)]


# --- attention scores ---


def shown_weights(m: LoadedModel, query: Query) -> torch.Tensor:
    """exp(log weight) [N, H] at the query's cell, from the model's own eager weights of the prompt alone."""
    before = m.config._attn_implementation
    if before != "eager":
        m.model.set_attn_implementation("eager")
    ids = torch.tensor([query.input_ids])
    with torch.no_grad():
        shown = m.model(ids, attention_mask=torch.ones_like(ids), output_attentions=True).attentions
    if before != "eager":
        m.model.set_attn_implementation(before)
    return torch.stack([layer[0, :, query.row, query.evidence_positions[0]] for layer in shown if layer is not None])


def same(one: Captured, other: Captured) -> None:
    for name in ("scores", "log_weights", "attendable"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    # the head runs on the target rows alone in one, on every row in the other
    torch.testing.assert_close(one.logits, other.logits)


def layers_of(m: LoadedModel) -> int:
    """Those with softmax attention: of a hybrid, some."""
    return len(attention_paths(m.model)) or m.config.num_hidden_layers


def check_scores(m: LoadedModel, atol: float) -> None:
    queries = queries_of(m)
    assert len({len(query.input_ids) for query in queries}) > 2  # the batch is padded
    batch = collate(m, queries)
    padded = capture(m, batch)
    if attention_paths(m.model):  # all that the twin can read
        same(padded, capture_with_hooks(m, batch))
    assert padded.scores.shape == (len(queries), layers_of(m), m.config.num_attention_heads)
    for b, query in enumerate(queries):
        want = shown_weights(m, query)
        got = padded.log_weights[b].exp()
        torch.testing.assert_close(got, want.to(got.dtype), rtol=0, atol=atol)
        assert torch.equal(padded.attendable[b], want > 0)
    for b in range(len(queries))[3:6]:
        single = collate(m, [queries[b]])
        alone = capture(m, single)
        if attention_paths(m.model):
            same(alone, capture_with_hooks(m, single))
        torch.testing.assert_close(alone.scores[0], padded.scores[b], rtol=10 * atol, atol=10 * atol)
        got, want = alone.log_weights[0].exp(), padded.log_weights[b].exp()
        torch.testing.assert_close(got, want, rtol=0, atol=atol)


@FAMILY
def test_scores_give_the_weights_that_the_model_shows(name):
    tied = FAMILIES[name].ties[0]
    with in_double():
        check_scores(build(name, tied), atol=1e-10)
    check_scores(build(name, tied, torch.float32), atol=1e-6)


def test_the_families_off_the_interface_are_these():
    off = {name for name in FAMILIES if not attention_paths(build(name, FAMILIES[name].ties[0]).model)}
    assert off == OFF_INTERFACE == {"bloom", "deberta-v2", "deberta-v2 new head", "falcon", "falcon alibi", "mpt"}


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "modernbert"])
def test_a_window_puts_evidence_out_of_reach(name):
    m = build(name, True)
    assert m.config.layer_types == ["sliding_attention", "full_attention"]
    captured = capture(m, collate(m, queries_of(m)))
    assert not captured.attendable[:, 0].all(dim=1).all()  # the layer with a window
    assert captured.attendable[:, 1].all()
    assert captured.scores.isfinite().all()  # the score exists where the mask forbids it


# --- gradient products ---


def whole(m: LoadedModel, query: Query) -> torch.Tensor:
    """The gradient over all parameters in one vector, by plain autograd on the prompt alone."""
    ids = torch.tensor([query.input_ids])
    parameters = list(m.model.parameters())
    logits = m.model(ids, attention_mask=torch.ones_like(ids)).logits[0, list(query.rows)]
    rows = m.adapter.logits(logits, m.mask_id).log_softmax(-1)
    loss = -rows[range(len(query.rows)), query.target_ids].sum()
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


@cache
def both(name: str, tied: bool):
    """Pairs, controls, gradient products (in batches of three pairs), and plain ones as columns of a table."""
    m = build(name, tied)
    pairs = pairs_of(m)
    controls = assign(pairs, CONTROLS)
    with in_double():
        fast = gradient_products(m, pairs, controls, parameters="all", batch_size=3)
        return m, pairs, controls, fast, plain_products(m, pairs, controls, fast.parts)


def close(got: torch.Tensor, want: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> None:
    """|Δ⟨x, y⟩| ≤ 1e-10 ‖x‖ ‖y‖ for each part, or rounding of the whole gradient's size where a part vanishes."""
    assert torch.equal(got.isnan(), want.isnan())
    floor = VANISHING**2 * (one.sum(-1, keepdim=True) * other.sum(-1, keepdim=True)).sqrt()
    off = (got - want).abs() - (1e-10 * (one * other).sqrt() + floor)
    assert (off.nan_to_num(-1) <= 0).all()


@EVERY
def test_products_equal_two_backward_passes_a_pair(name, tied):
    _, pairs, controls, fast, plain = both(name, tied)
    inner, forward, reverse = plain[:, 0], plain[:, 1], plain[:, 2]
    close(fast.inner, inner, forward, reverse)
    close(fast.forward_norm2, forward, forward, forward)
    close(fast.reverse_norm2, reverse, reverse, reverse)
    assert (controls.partner >= 0).any(dim=0).all()  # every kind of control is met
    assert (controls.partner < 0).any()  # and a pair without one
    control, theirs = plain[:, 3::2], plain[:, 4::2]
    close(fast.control_inner, control, forward[:, None].expand_as(theirs), theirs)
    close(fast.control_norm2, theirs, theirs, theirs)
    assert len(pairs) == len(fast.inner)


@EVERY
def test_parts_add_up_to_the_gradient_of_the_whole_model(name, tied):
    m, pairs, controls, fast, _ = both(name, tied)
    assert len(fast.parts) == len(list(m.model.parameters()))
    with in_double():
        for i, pair in enumerate(pairs):
            f, r = whole(m, pair.forward), whole(m, pair.reverse)
            others = [
                (k, whole(m, control_query(m, pair, pairs[j], controls.kinds[k])))
                for k, j in enumerate(controls.partner[i].tolist())
                if j >= 0
            ]
            got = [fast.inner[i].sum(), *(fast.control_inner[i, k].sum() for k, _ in others)]
            for value, other in zip(got, (r, *(c for _, c in others)), strict=True):
                assert abs(value - f @ other) <= 1e-10 * f.norm() * other.norm()
            torch.testing.assert_close(fast.forward_norm2[i].sum(), f @ f, rtol=1e-10, atol=0)
            torch.testing.assert_close(fast.cosine()[i], f @ r / f.norm() / r.norm(), rtol=0, atol=1e-10)


@EVERY
def test_parameters_without_a_rule_are_the_ones_listed(name, tied):
    fast = both(name, tied)[3]
    found = {parameter for parameter, rule in fast.rules.items() if rule == PER_QUERY}
    family = FAMILIES[name]
    patterns = {**family.per_query, **({} if tied else family.untied_per_query)}
    listed = {parameter for parameter in fast.rules if any(re.search(p, parameter) for p in patterns)}
    assert found == listed
    for pattern in patterns:
        assert any(re.search(pattern, parameter) for parameter in found), pattern


# --- and the checks that `load` runs ---


@FAMILY
def test_the_family_passes_verification(name):
    m = build(name, FAMILIES[name].ties[0])
    with in_double():
        checks = {check.name: check.passed for check in verify(m)}
    masked = m.adapter.objective == "masked"
    assert checks == {
        "mask": True if masked else None,
        "attention": None if m.adapter.attention == "hybrid" else True,
        "padding": True,
        "scores": True,
    }
