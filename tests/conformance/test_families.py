"""Scores and gradient products of every family against what the model itself says, computed another way."""

import re
from functools import cache

import pytest
import torch

from conformance.families import CASES, FACTS, FAMILIES, IDS, build, in_double
from rcprobe.controls import assign
from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel
from rcprobe.probing.agreement import (
    gradients_agree,
    padding_agrees,
    parts_add_up,
    scores_agree,
)
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import attention_paths, capture
from rcprobe.probing.captured import Captured
from rcprobe.probing.coverage import PER_QUERY
from rcprobe.probing.gradients import gradient_products
from rcprobe.probing.hooks import capture_with_hooks
from rcprobe.probing.plain_gradients import query_gradients
from rcprobe.probing.verify import verify
from rcprobe.queries import encode

EVERY = pytest.mark.parametrize(("name", "tied"), CASES, ids=IDS)
FAMILY = pytest.mark.parametrize("name", FAMILIES)
OFF_INTERFACE = {name for name, family in FAMILIES.items() if not family.interface}
CONTROLS = 4


def pairs_of(m: LoadedModel):
    pairs = encode(m, FACTS, "swapped" if m.adapter.objective == "causal" else "same_target")
    assert all(pair.unsupported is None for pair in pairs)
    return pairs


def queries_of(m: LoadedModel) -> list[Query]:
    return [query for pair in pairs_of(m) for query in (pair.forward, pair.reverse)]


# --- attention scores ---


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
    assert padded.scores.shape == (len(queries), layers_of(m), m.config.num_attention_heads, 1, 1)
    if attention_paths(m.model):  # all that the twin can read
        for some in (batch, *(collate(m, [query]) for query in queries[3:6])):
            same(capture(m, some), capture_with_hooks(m, some))
    for check in (scores_agree(m, queries, atol), padding_agrees(m, queries, 10 * atol)):
        assert check.passed is True, check.seen


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
    assert not captured.attendable[:, 0].flatten(1).all(dim=1).all()  # the layer with a window
    assert captured.attendable[:, 1].all()
    assert captured.scores.isfinite().all()  # the score exists where the mask forbids it


# --- gradient products ---


@cache
def both(name: str, tied: bool):
    """Model, pairs, controls and gradient products, in batches of three pairs."""
    m = build(name, tied)
    pairs = pairs_of(m)
    controls = assign(pairs, CONTROLS)
    with in_double():
        return m, pairs, controls, gradient_products(m, pairs, controls, parameters="all", batch_size=3)


@EVERY
def test_products_equal_two_backward_passes_a_pair(name, tied):
    m, pairs, controls, fast = both(name, tied)
    assert (controls.partner >= 0).any(dim=0).all()  # every kind of control is met
    assert (controls.partner < 0).any()  # and a pair without one
    with in_double():
        check = gradients_agree(m, pairs, controls, fast, 1e-10)
    assert check.passed is True, check.seen


@EVERY
def test_parts_add_up_to_the_gradient_of_the_whole_model(name, tied):
    m, pairs, _, fast = both(name, tied)
    assert len(fast.parts) == len(list(m.model.parameters()))
    with in_double():
        check = parts_add_up(m, pairs, fast, 1e-10)
        assert check.passed is True, check.seen
        f, r = (query_gradients(m, query, list(m.model.parameters())) for query in (pairs[0].forward, pairs[0].reverse))
        f, r = (torch.cat([g.flatten() for g in some]) for some in (f, r))
        torch.testing.assert_close(fast.cosine()[0], f @ r / f.norm() / r.norm(), rtol=0, atol=1e-10)


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
        **({"encoding": True} if name == "radd" else {}),
    }
