import math

import pytest
import torch

from rcprobe import Fact, TrainConfig, load
from rcprobe.errors import DataError, TrainingError, UsageError
from rcprobe.training import train
from rcprobe.training.objectives import LEAST_NOISE, OBJECTIVES, Statements, training_loss
from rcprobe.training.statements import forward_statements
from rcprobe.training.trainer import Average
from rcprobe_plugins.datasets.characters import character_tokenizer

FACTS = [Fact(c, c.upper(), ("{a}0{b}", "0{a}{b}"), ("{b}0{a}", "{b}{a}0")) for c in "abcd"]


def tiny(name="radd", **options):
    return load(name, options={"width": 8, "max_length": 8, **options})


def test_forward_statements_are_all_and_only_the_trained_ones():
    m = tiny()
    ids, real = forward_statements(m, [*FACTS[:2], Fact("c", "C", "{a}{b}", "{b}{a}", trained=False)])
    texts = {"".join(m.tokenizer.convert_ids_to_tokens(row)) for row in ids.tolist()}
    assert texts == {"a0A", "0aA", "b0B", "0bB"}
    assert bool(real.all())
    with pytest.raises(DataError, match="held out"):
        forward_statements(m, [Fact("c", "C", "{a}{b}", "{b}{a}", trained=False)])


def test_shorter_statements_are_padded_and_marked():
    ids, real = forward_statements(tiny(), [Fact("a", "A", ("{a}{b}", "{a}00{b}"), ("{b}{a}", "{b}00{a}"))])
    assert real.tolist() == [[True, True, False, False], [True] * 4]
    assert ids.shape == (2, 4)


@pytest.mark.parametrize("shift", [0, 1])
def test_the_masked_loss_is_the_sum_over_masks_weighted_by_one_over_p(shift):
    m = tiny()
    m.adapter.shift = shift
    with torch.no_grad():
        for parameter in m.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ids, real = forward_statements(m, [*FACTS, Fact("e", "E", "{a}000{b}", "{b}000{a}")])
    found = training_loss(m, OBJECTIVES["t-dce"], Statements(ids, real, real), torch.Generator().manual_seed(3))
    draws = torch.Generator().manual_seed(3)
    p = (1 - LEAST_NOISE) * torch.rand(len(ids), 1, generator=draws) + LEAST_NOISE
    masked = (torch.rand(ids.shape, generator=draws) < p) & real
    shown = torch.where(masked, m.mask_id, ids)
    total = 0.0
    for b in range(len(ids)):
        length = int(real[b].sum())
        logits = m.model(input_ids=shown[b : b + 1, :length]).logits[0]
        logits[:, m.mask_id] = -math.inf
        for i in range(shift, length):
            if masked[b, i]:
                total -= float(logits[i - shift].detach().log_softmax(-1)[ids[b, i]]) / float(p[b])
    assert float(found.detach()) == pytest.approx(total / len(ids), rel=1e-5)


def test_the_next_token_loss_is_the_mean_over_tokens_that_have_a_left_context():
    m = tiny("gpt2-mini")
    ids, real = forward_statements(m, [*FACTS, Fact("e", "E", "{a}000{b}", "{b}000{a}")])
    found = training_loss(m, OBJECTIVES["next-token"], Statements(ids, real, real), torch.Generator())
    losses = []
    for row, keep in zip(ids, real, strict=True):
        kept = row[keep]
        losses += torch.nn.functional.cross_entropy(
            m.model(input_ids=kept[None]).logits[0, :-1], kept[1:], reduction="none"
        ).tolist()
    assert float(found.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_averaged_weights_follow_the_ramp_and_are_what_is_probed():
    config = TrainConfig(steps=3, ema=0.9, probe_every=1, lr=0.01)
    averaged, raw = tiny(), tiny()
    raw_weights = []
    for stop in train(raw, FACTS, TrainConfig(steps=3, ema=0.0, probe_every=1, lr=0.01), seed=0):
        raw_weights.append(raw.model.lm_head.weight.detach().clone())
        assert math.isfinite(stop.loss or 0.0)
    expected = raw_weights[0]
    for n, stop in enumerate(train(averaged, FACTS, config, seed=0)):
        if n:
            decay = min(0.9, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * raw_weights[n]
        assert stop.step == n
        torch.testing.assert_close(averaged.model.lm_head.weight.detach(), expected)
    torch.testing.assert_close(averaged.model.lm_head.weight.detach(), expected)  # and it is left with them


def test_training_repeats_with_its_seed_and_differs_with_another():
    def weights(seed):
        m = tiny()
        for _ in train(m, FACTS, TrainConfig(steps=5), seed):
            pass
        return m.model.lm_head.weight

    torch.testing.assert_close(weights(1), weights(1), rtol=0, atol=0)
    assert not torch.equal(weights(1), weights(2))


def test_a_loss_that_is_not_finite_names_step_and_seed():
    m = tiny()
    with torch.no_grad():
        m.model.lm_head.bias[3] = torch.nan
    with pytest.raises(TrainingError, match=r"step 4, seed 7"):
        for _ in train(m, FACTS, TrainConfig(steps=4), seed=7):
            pass


def test_where_memory_runs_out_what_takes_less_is_said(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr("rcprobe.training.trainer.weighted_loss", full)
    with pytest.raises(UsageError, match=r"memory ran out with 64 statements a batch in 1 part; a smaller batch_size"):
        list(train(tiny(), FACTS, TrainConfig(steps=1), seed=0))


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"ema": 1.0},
        {"probe_every": 0},
        {"probe_at": (6,)},
        {"clip": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        TrainConfig(**{"steps": 5, **bad})


def test_the_first_and_the_last_step_are_always_probed():
    assert TrainConfig(steps=5, probe_at=(2,)).probed() == (0, 2, 5)
    assert TrainConfig(steps=5, probe_every=2).probed() == (0, 2, 4, 5)


def test_averages_of_half_precision_weights_move():
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    average = Average([parameter], 0.999)
    with torch.no_grad():
        parameter += 0.0625
    for _ in range(5000):
        average.update()
    assert average.shadow[0].dtype == torch.float32
    torch.testing.assert_close(average.shadow[0], parameter.detach().float(), rtol=1e-3, atol=0)


def test_a_statement_that_the_tokenizer_cannot_read_is_named():
    with pytest.raises(DataError, match=r"tokenizer can't read 'Oslo and Norway'"):
        forward_statements(tiny(), [Fact("Oslo", "Norway", "{a} and {b}", "{b} and {a}")])


def test_a_mask_is_nothing_to_train_on():
    m = load("radd", options={"alphabet": "0abAB"})
    with pytest.raises(DataError, match=r"can't read '.MASK.aA': the text holds the mask; take it out"):
        forward_statements(m, [Fact("a", "A", m.tokenizer.mask_token + "{a}{b}", "{b}{a}")])


def test_an_alphabet_larger_than_the_vocabulary_is_refused_by_training():
    m = load("gpt2-mini", options={"alphabet": "0abAB"}, tokenizer=character_tokenizer("0abcABC", mask=False))
    with pytest.raises(DataError, match=r"can't read '0c0C': the tokenizer gives 'C' the id 6, .* vocabulary is 5"):
        forward_statements(m, [Fact("c", "C", "0{a}0{b}", "0{b}0{a}")])
