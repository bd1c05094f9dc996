import math

import pytest
import torch

import rcprobe
from rcprobe.estimate import estimate
from rcprobe.metrics import resolve_metrics

ROUTE = "route_knockout"
LETTERS = rcprobe.load_dataset("letters", {"length": 4})


def tiny(**options):
    return rcprobe.load("radd", options={"width": 8, "max_length": 4, **options})


@pytest.fixture(scope="module")
def counted():
    m = tiny(dropout=0.1)
    m.model.train()
    before, drawn = m.fingerprint(), torch.get_rng_state()
    config = rcprobe.TrainConfig(steps=20, probe_every=10)
    cost = estimate(m, LETTERS, resolve_metrics(["reverse_probability", "gradient_alignment"]), config, 3, 50)
    return m, before, drawn, cost


def test_what_will_be_done_is_counted(counted):
    cost = counted[-1]
    assert cost.facts == 26
    assert cost.pairs["swapped"] == (26 * 6, 26 * 6)
    assert cost.probes == 3 * 3
    assert cost.steps == 3 * 20
    assert cost.parameters == sum(p.numel() for p in counted[0].model.parameters())
    assert cost.batches >= 8  # 156 pairs in fifties, twice at least


def test_time_and_memory_are_of_a_likely_size(counted):
    cost = counted[-1]
    assert 0.05 < cost.seconds < 600
    assert 50 * 2**20 < cost.memory < 20 * 2**30
    assert "timed" in cost.how


def test_the_model_and_the_random_numbers_stay_as_they_were(counted):
    m, before, drawn, _ = counted
    assert m.fingerprint() == before
    assert m.model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.grad is None for p in m.model.parameters())


def test_nobody_is_told_and_nothing_counts_without_training(monkeypatch):
    monkeypatch.setattr("rcprobe.plugins.Registry.notify", None)
    facts = [*LETTERS.facts[:2], rcprobe.Fact("é", "E", "{a}{b}", "{b}{a}")]
    cost = estimate(tiny(), rcprobe.Dataset("three", tuple(facts)), resolve_metrics(["accuracy"]), None, 1)
    assert cost.pairs["swapped"] == (12, 13)
    assert (cost.probes, cost.steps) == (1, 0)


def test_prompts_of_a_knockout_are_counted():
    m, dataset = tiny(depth=2, heads=2), rcprobe.Dataset("some", LETTERS.facts[:4])
    plain, knocked = (estimate(m, dataset, resolve_metrics([name]), None, 1, 16) for name in ("accuracy", ROUTE))
    assert plain.knockouts == 0
    # a pair a fact and distance, both pairings; prompts: 1 plain, 2 everywhere, 4 by layer, 8 by head
    pairs = [len(ask.pairs) for ask in rcprobe.Probe(m, dataset, [ROUTE]).asked if ask.metrics]
    assert knocked.knockouts == sum(math.ceil(2 * count * 15 / 16) for count in pairs)
    assert knocked.batches > knocked.knockouts
    assert knocked.seconds > plain.seconds
    assert "knockout counted" in knocked.how


def test_knockouts_that_cannot_be_asked_cost_nothing():
    causal = rcprobe.load("gpt2-mini", options={"width": 8, "max_length": 4})
    dataset = rcprobe.Dataset("some", LETTERS.facts[:2])
    cost = estimate(causal, dataset, resolve_metrics([ROUTE]), None, 1, 16)
    asks = [ask for ask in rcprobe.Probe(causal, dataset, [ROUTE]).asked if ask.metrics]
    swapped = [pair for ask in asks for pair in ask.pairs if pair.unsupported is None]
    assert {pair.pairing for pair in swapped} == {"swapped"}
    assert cost.knockouts == math.ceil(2 * len(swapped) * 3 / 16)
