"""Chosen layers and heads, and passes that end where nothing more is asked for."""

import pytest
import torch

import rcprobe
from rcprobe.errors import UsageError

FACTS = rcprobe.load_dataset("letters", {"length": 4}).facts[:6]
READ = {"scores", "gradients", "log_probs", "alternatives"}


@pytest.fixture(scope="module")
def model():
    m = rcprobe.load("radd", options={"width": 8, "heads": 2, "depth": 3, "max_length": 8}, dtype="float64")
    with torch.no_grad():
        m.model.lm_head.weight.normal_()
    return m


@pytest.fixture(scope="module")
def pairs(model):
    return rcprobe.encode(model, FACTS)


def test_scores_of_chosen_layers_and_heads_are_those_of_all(model, pairs):
    every = rcprobe.observe(model, pairs, read={"scores"})
    some = rcprobe.observe(model, pairs, read={"scores"}, layers=[0, 2], heads=[1])
    assert some.scores.shape == (len(pairs), 2, 2, 1)
    for name in ("scores", "log_weights", "attendable"):
        assert torch.equal(getattr(some, name), getattr(every, name)[:, :, [0, 2]][..., [1]])


def test_gradients_of_chosen_layers_are_those_of_all(model, pairs):
    every = rcprobe.observe(model, pairs, read=READ).gradients
    some = rcprobe.observe(model, pairs, read=READ, layers=[1]).gradients
    assert {part.layer for part in some.parts} == {1}
    kept = every.indices(layer=1)
    assert [every.parts[i] for i in kept] == list(some.parts)
    torch.testing.assert_close(some.inner, every.inner[:, kept])
    torch.testing.assert_close(some.control_inner, every.control_inner[..., kept], equal_nan=True)


def test_a_pass_for_scores_alone_ends_with_the_last_layer_asked_for(model, pairs):
    ran = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.model.named_modules()
        if name in ("blocks.0.mlp", "blocks.1.mlp", "lm_head")
    ]
    try:
        rcprobe.observe(model, pairs, read={"scores"}, layers=[1])
        assert set(ran) == {"blocks.0.mlp"}
        rcprobe.observe(model, pairs, read={"scores", "log_probs"}, layers=[0])
        assert "lm_head" in ran
    finally:
        for handle in handles:
            handle.remove()


def test_a_layer_or_head_the_model_lacks_is_named(model, pairs):
    with pytest.raises(UsageError, match="layers: 3 is none of the model's 3"):
        rcprobe.observe(model, pairs, layers=[3])
    with pytest.raises(UsageError, match="heads: 2 is none of the model's 2"):
        rcprobe.observe(model, pairs, heads=[2])
    with pytest.raises(UsageError, match="no parameter that takes a gradient is in them"):
        rcprobe.observe(model, pairs, read={"gradients"}, layers=[7])


def test_one_pass_reads_what_several_do(model, pairs):
    together = rcprobe.observe(model, pairs, read=READ)
    apart = rcprobe.observe(model, pairs, read={"scores", "log_probs", "alternatives"})
    alone = rcprobe.observe(model, pairs, read={"gradients"})
    for name in ("scores", "log_weights", "log_probs", "alternatives"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name), equal_nan=True)
    torch.testing.assert_close(together.gradients.control_inner, alone.gradients.control_inner, equal_nan=True)


def test_half_precision_keeps_the_cosine(model, pairs):
    """In bfloat16 the rounding of activations is what is left: products are added up in float32."""
    exact = rcprobe.observe(model, pairs, read={"gradients"}).gradients.cosine()
    half = rcprobe.load("radd", options={"width": 8, "heads": 2, "depth": 3, "max_length": 8}, dtype="bfloat16")
    half.model.load_state_dict(model.model.state_dict())
    found = rcprobe.observe(half, pairs, read={"gradients"}).gradients
    off = (found.cosine() - exact).abs()
    assert off.median() < 2e-2
    assert found.inner.dtype == torch.float64
