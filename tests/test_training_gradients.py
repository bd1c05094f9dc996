"""The gradient of the training objective against the reverse query's, and plain autograd on the same draws."""

import pytest
import torch
from test_engine import EVERY, FACTS, loaded, pairs_of

import rcprobe
from rcprobe.errors import CaptureError
from rcprobe.probing import coverage, training_gradients
from rcprobe.probing.engine import observe
from rcprobe.probing.training_gradients import DRAWS, training_cosine
from rcprobe.training.objectives import LEAST_NOISE


def plain_cosine(m, pair):
    """Two backward passes through the model itself: the drawn statements' loss, and −log p of the reverse query."""
    model = m.model
    ids = torch.tensor(m.tokenizer(pair.forward.text)["input_ids"])

    def gradient(loss):
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    if m.adapter.objective == "masked":
        generator = torch.Generator().manual_seed(pair.fact)
        t = torch.rand(DRAWS, 1, generator=generator)
        masked = torch.rand((DRAWS, len(ids)), generator=generator) < (p := (1 - LEAST_NOISE) * t + LEAST_NOISE)
        losses = []
        for hidden, share in zip(masked, p, strict=True):
            out = model(ids.masked_fill(hidden, m.mask_id)[None]).logits[0]
            out = m.adapter.logits(out[None], m.mask_id)[0].log_softmax(-1)
            losses.append(-out[hidden, ids[hidden]].sum() / share.item())
        loss = torch.stack(losses).mean()
    else:
        out = model(ids[None]).logits[0, :-1].log_softmax(-1)
        loss = -out[range(len(ids) - 1), ids[1:]].mean()
    query = pair.reverse
    out = model(torch.tensor([query.input_ids])).logits[:, list(query.rows)]
    out = m.adapter.logits(out, m.mask_id)[0].log_softmax(-1)
    reverse = -out[range(len(query.rows)), list(query.target_ids)].sum()
    return torch.nn.functional.cosine_similarity(gradient(loss), gradient(reverse), dim=0)


@EVERY
@pytest.mark.parametrize("batch_size", [1, 1000])
def test_the_cosine_is_that_of_plain_autograd(name, batch_size):
    m = loaded(name)
    pairs = [pair for pair in pairs_of(m, pairing="swapped") if pair.unsupported is None]
    found = training_cosine(m, pairs, batch_size=batch_size)
    want = torch.stack([plain_cosine(m, pair) for pair in pairs])
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)  # the weights 1/t are drawn in float32
    assert (want.abs() > 0.01).any()


def test_parameters_that_no_rule_factors_count_too(monkeypatch):
    m = loaded("radd one layer")
    pairs = [pair for pair in pairs_of(m, pairing="swapped") if pair.unsupported is None][:3]
    monkeypatch.setattr(coverage, "rule_for", lambda module: None)
    monkeypatch.setattr(coverage, "_COVERED", type(coverage._COVERED)())
    found = training_cosine(m, pairs)
    torch.testing.assert_close(found, torch.stack([plain_cosine(m, pair) for pair in pairs]), rtol=1e-6, atol=1e-6)


def test_a_pair_that_cant_be_asked_keeps_its_row():
    m = loaded("radd rope")
    pairs = pairs_of(m, pairing="swapped")
    seen = observe(m, pairs, read={"training_gradients"})
    assert seen.excluded
    assert torch.equal(seen.training_cosine.isnan().nonzero().flatten(), torch.tensor(sorted(seen.excluded)))


def test_memory_that_runs_out_halves_the_batch(monkeypatch):
    m = loaded("radd one layer")
    pairs = [pair for pair in pairs_of(m, pairing="swapped") if pair.unsupported is None]
    whole, capture, sizes = training_cosine(m, pairs), training_gradients.capture, []

    def short(m, batch, **others):
        sizes.append(len(batch.rows))
        if len(batch.rows) > 2 * DRAWS:
            raise torch.OutOfMemoryError("no more")
        return capture(m, batch, **others)

    monkeypatch.setattr(training_gradients, "capture", short)
    torch.testing.assert_close(training_cosine(m, pairs, batch_size=1000), whole)
    assert sizes[0] > 2 * DRAWS >= sizes[-1]
    monkeypatch.setattr(training_gradients, "capture", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(CaptureError, match="memory ran out"):
        training_cosine(m, pairs)


def test_it_is_a_signature_on_request():
    m = loaded("gpt2-mini")
    probe = rcprobe.Probe(m, FACTS, ["training_alignment"])
    probe.step(0)
    report = probe.report()
    frame = report.frame("training_alignment")
    assert frame["cosine"].between(-1, 1).sum() > 3
    assert report.signatures["training_alignment"].findings[0].condition.label == "cos(g_train, g←)"
    assert "training_alignment" not in [metric.name for metric in rcprobe.Probe(m, FACTS).metrics]
