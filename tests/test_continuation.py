import pytest
import torch

import rcprobe
from rcprobe.probing.continuation import greedy_to_the_end
from rcprobe.training import TrainConfig, train

LETTERS = rcprobe.load_dataset("letters", {"length": 4})
FACTS = LETTERS.facts[:6]


@pytest.fixture(scope="module")
def model():
    """A causal model that has begun to learn six pairs."""
    m = rcprobe.load("gpt2-mini", options={"width": 16, "max_length": 8})
    for _ in train(m, FACTS, TrainConfig(steps=300, lr=1e-2, ema=0.9, warmup=10), seed=0):
        pass
    return m


def queries_of(m):
    pairs = [pair for pair in rcprobe.encode(m, FACTS, "swapped") if pair.unsupported is None]
    return [query for pair in pairs for query in (pair.forward, pair.reverse)]


def by_hand(m, query):
    """Token by token, one prompt at a time."""
    whole = m.tokenizer(query.text)["input_ids"]
    ids = list(whole[: query.evidence_positions[-1] + 1])
    start = len(ids)
    with torch.no_grad():
        while len(ids) < len(whole):
            ids.append(int(m.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return query.target_ids[0] in ids[start:]


def test_it_is_what_the_model_writes_by_hand(model):
    queries = queries_of(model)
    found = greedy_to_the_end(model, queries, 7)
    assert found.tolist() == [float(by_hand(model, query)) for query in queries]
    assert 0 < found.mean() < 1
    assert torch.equal(found, greedy_to_the_end(model, queries, "auto"))


def test_the_dataset_asks_for_it_and_only_causal_models_answer(model):
    report = rcprobe.run(model, LETTERS, metrics=["accuracy"], limit=6, progress=False)
    right = greedy_to_the_end(model, queries_of(model), "auto").reshape(-1, 2).mean(0).tolist()
    assert report.accuracy["swapped"]["greedy to the end"][0] == pytest.approx(right)
    frame = report.frame("accuracy")
    swapped = frame[frame.pairing == "swapped"]
    assert swapped["forward, greedy to the end"].mean() == pytest.approx(right[0])
    masked = rcprobe.load("radd", options={"width": 16, "max_length": 8})
    accuracy = rcprobe.run(masked, LETTERS, metrics=["accuracy"], limit=6, progress=False).accuracy
    assert "greedy to the end" not in accuracy["swapped"]
