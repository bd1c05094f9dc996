"""Scores beside the anchors: whole spans, and the slot rows of shifted models."""

import pandas as pd
import torch
from test_engine import ALPHABET, EXACT, asked, loaded, pairs_of, raw_scores, weights

import rcprobe
from rcprobe.facts import Fact
from rcprobe.probing import capture
from rcprobe.probing.engine import observe
from rcprobe.probing.watch import AttentionWatch
from rcprobe_plugins.models.radd import Radd


class Ahead(Radd):
    """RADD read one position ahead of its targets."""

    shift = 1


class Blind(AttentionWatch):
    """A watch that recognises nothing as attention."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def log_weights(scores):
    return scores - scores.logsumexp(dim=-1, keepdim=True)


def test_spans_are_the_mean_the_largest_and_the_last_of_all_cells():
    name = "radd rope"
    m, model = loaded(name), weights(name)
    pairs = pairs_of(m)
    found = observe(m, pairs, read={"span_scores"}, batch_size=4)
    wide = 0
    for i, pair, both in asked(name):
        for side, (p, query) in enumerate(zip(both, (pair.forward, pair.reverse), strict=True)):
            tokens = list(query.evidence_positions)
            wide += len(p.rows) * len(tokens) > 1
            scores, _ = raw_scores(model, name, p)
            for field, table in (("scores", scores), ("log_weights", log_weights(scores))):
                block = table[:, :, list(p.rows)][..., tokens].flatten(2)
                seen = {kind: getattr(cells, field)[i, side] for kind, cells in found.other_cells.items()}
                assert set(seen) == {"mean", "max", "last"}
                torch.testing.assert_close(seen["mean"], block.mean(dim=-1), **EXACT)
                torch.testing.assert_close(seen["max"], block.amax(dim=-1), **EXACT)
                torch.testing.assert_close(seen["last"], block[..., -1], **EXACT)
                torch.testing.assert_close(getattr(found, field)[i, side], block[..., 0], **EXACT)
    assert wide


def test_spans_leave_out_what_the_mask_forbids():
    """A causal model's first target row sees all of the evidence before it; nothing is forbidden, and all counts."""
    m = loaded("gpt2-mini")
    pairs = pairs_of(m)
    found = observe(m, pairs, read={"span_scores"})
    kept = [i for i in range(len(pairs)) if i not in found.excluded]
    assert found.other_cells["mean"].attendable[kept].all()
    largest, mean = found.other_cells["max"].scores[kept], found.other_cells["mean"].scores[kept]
    assert (largest >= mean - 1e-12).all()
    assert (largest > mean).any()


def test_a_shifted_model_is_read_at_its_slot_too():
    name = "radd rope"
    model = weights(name)
    ahead, plain = loaded(name, adapter=Ahead), loaded(name)
    facts = [Fact("ab", "C", "0{a}00{b}", "0{b}0{a}"), Fact("m", "NO", "0{a}00{b}", "0{b}0{a}")]
    shifted = observe(ahead, pairs_of(ahead, facts), read={"scores", "span_scores"})
    straight = observe(plain, pairs_of(plain, facts), read={"span_scores"})
    assert not shifted.excluded
    torch.testing.assert_close(shifted.other_cells["slot"].scores, straight.scores, **EXACT)
    torch.testing.assert_close(shifted.other_cells["slot"].log_weights, straight.log_weights, **EXACT)
    assert not torch.allclose(shifted.scores, straight.scores)
    assert "slot" not in straight.other_cells
    # spans speak of the rows that predict, not of the slot between the first and the second
    query = pairs_of(ahead, facts)[0].forward
    scores = raw_scores(model, name, type("P", (), {"ids": query.input_ids}))[0]
    block = scores[:, :, list(query.rows)][..., list(query.evidence_positions)].flatten(2)
    torch.testing.assert_close(shifted.other_cells["mean"].scores[0, 0], block.mean(dim=-1), **EXACT)
    torch.testing.assert_close(shifted.other_cells["max"].scores[0, 0], block.amax(dim=-1), **EXACT)


def test_a_shifted_model_whose_attention_cannot_be_read(monkeypatch):
    m = loaded("radd rope", adapter=Ahead)
    pairs = pairs_of(m, [Fact("ab", "C", "0{a}00{b}", "0{b}0{a}"), Fact("m", "NO", "0{a}00{b}", "0{b}0{a}")])
    expected = observe(m, pairs, read={"log_probs"}).log_probs
    monkeypatch.setattr(capture, "attention_paths", lambda model: ())
    monkeypatch.setattr(capture, "AttentionWatch", Blind)
    found = observe(m, pairs, read={"scores", "span_scores", "log_probs"})
    assert found.other_cells["slot"].scores.shape == (len(pairs), 2, 0, 0)
    assert expected.isfinite().all()
    torch.testing.assert_close(found.log_probs, expected, **EXACT)


def test_the_slot_stands_beside_the_verdict_and_not_in_it():
    letters = ALPHABET[1:27]
    facts = [Fact(a, a.upper(), "0{a}00{b}", "0{b}00{a}") for a in letters]
    name = "radd rope"
    reports = {
        adapter: rcprobe.Probe(loaded(name, adapter=adapter), facts, ["attention_correlation"])
        for adapter in (Ahead, Radd)
    }
    shifted, plain = (reports[a] for a in (Ahead, Radd))
    for probe in (shifted, plain):
        probe.step(0)
    found = {adapter: probe.report().signatures["attention_correlation"] for adapter, probe in reports.items()}
    labels = [finding.condition.label for finding in found[Ahead].findings]
    assert labels == ["r of scores", "r of log weights", "r of scores, slot row"]
    assert [f.condition.label for f in found[Radd].findings] == labels[:2]
    frame = shifted.report().frame("attention_correlation")
    assert isinstance(frame, pd.DataFrame)
    assert {"forward slot", "reverse_log_weight slot"} <= set(frame.columns)
    assert "forward slot" not in plain.report().frame("attention_correlation").columns
    # the slot of the shifted model is the row of the plain one
    beside, judged = found[Ahead].findings[2].estimate.value, found[Radd].findings[0].estimate.value
    assert abs(beside - judged) < 1e-9


def test_span_correlation_is_measured_on_request():
    facts = [Fact(a + "0", "0" + a.upper(), "0{a}00{b}", "0{b}00{a}") for a in ALPHABET[1:23]]
    m = loaded("radd rope")
    asked_for = rcprobe.Probe(m, facts, ["span_correlation"])
    asked_for.step(0)
    signature = asked_for.report().signatures["span_correlation"]
    assert len(signature.findings) == 6
    assert all(-1 <= f.estimate.value <= 1 for f in signature.findings)
    assert "span_correlation" not in [metric.name for metric in rcprobe.Probe(m, facts).metrics]
