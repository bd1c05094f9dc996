"""Models under low-rank adapters of peft: the adapters' gradients, and those of the weights under them."""

import pytest
import torch
from conformance.families import FACTS, build, in_double
from peft import LoraConfig, get_peft_model

import rcprobe
from rcprobe.controls import assign
from rcprobe.loaded import LoadedModel
from rcprobe.probing.coverage import PER_QUERY, UNREAD
from rcprobe.probing.gradients import gradient_products
from rcprobe.probing.plain_gradients import plain_products, query_gradients
from rcprobe.probing.storage import storage

# peft 0.21 asks transformers by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "value"],
}
CONTROLS = 4


def adapted(name, start=0.3, **options):
    """A tiny model with adapters whose B is no longer zero."""
    m = build(name, True)
    fan = {"fan_in_fan_out": True} if name == "gpt2" else {}
    config = LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS[name], lora_dropout=0.5, **fan, **options)
    torch.manual_seed(0)
    with in_double():
        model = get_peft_model(m.model, config).double().eval()
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_().mul_(start)
    return LoadedModel(model, m.adapter, m.tokenizer, name)


def pairs_of(m):
    return rcprobe.encode(m, FACTS, "swapped" if m.adapter.objective == "causal" else "same_target")


def assert_exact(got, want, one, other):
    assert torch.equal(got.isnan(), want.isnan())
    assert ((got - want).abs() <= 1e-10 * (one * other).sqrt() + 1e-24).logical_or(want.isnan()).all()


@pytest.mark.parametrize("name", TARGETS)
def test_products_of_adapters_equal_two_backward_passes_a_pair(name):
    m = adapted(name)
    pairs = pairs_of(m)
    controls = assign(pairs, CONTROLS)
    with in_double():
        found = gradient_products(m, pairs, controls)
        own = found.indices()
        true = plain_products(m, pairs, controls, [found.parts[i] for i in own])
    assert {found.parts[i].parameter for i in own} == {n for n, p in m.model.named_parameters() if p.requires_grad}
    assert not {PER_QUERY, UNREAD} & set(found.rules.values())
    inner, forward, reverse = true[:, 0], true[:, 1], true[:, 2]
    assert_exact(found.inner[:, own], inner, forward, reverse)
    assert_exact(found.forward_norm2[:, own], forward, forward, forward)
    theirs = true[:, 4::2]
    assert_exact(found.control_inner[..., own], true[:, 3::2], forward[:, None].expand_as(theirs), theirs)


@pytest.mark.parametrize("name", TARGETS)
def test_dense_gradients_are_those_of_the_weights_under_the_adapters(name):
    m = adapted(name)
    pairs = pairs_of(m)
    with in_double():
        found = gradient_products(m, pairs, assign(pairs, 0))
        dense = found.indices(dense=True)
        names = list(dict.fromkeys(found.parts[i].parameter for i in dense))
        layers = m.config.num_hidden_layers
        assert len(names) == layers * (3 if name == "gpt2" else len(TARGETS[name]))
        assert all(name.endswith(".base_layer.weight") for name in names)
        assert not any(p.requires_grad for n, p in m.model.named_parameters() if "base_layer" in n)  # frozen as before
        weights = [dict(m.model.named_parameters())[name] for name in names]
        for weight in weights:
            weight.requires_grad_(True)
        for i, pair in enumerate(pairs):
            f, r = (query_gradients(m, query, weights) for query in (pair.forward, pair.reverse))
            for parameter, x, y in zip(names, f, r, strict=True):
                inside = [k for k in dense if found.parts[k].parameter == parameter]
                assert abs(found.inner[i, inside].sum() - (x * y).sum()) <= 1e-10 * x.norm() * y.norm()
                torch.testing.assert_close(found.forward_norm2[i, inside].sum(), (x * x).sum(), rtol=1e-10, atol=0)


def test_the_whole_is_the_adapters_alone():
    m = adapted("llama")
    pairs = pairs_of(m)
    with in_double():
        found = gradient_products(m, pairs, assign(pairs, CONTROLS))
    own = found.indices()
    whole = (
        found.inner[:, own].sum(1) / (found.forward_norm2[:, own].sum(1) * found.reverse_norm2[:, own].sum(1)).sqrt()
    )
    torch.testing.assert_close(found.cosine(), whole)
    assert not torch.allclose(found.cosine(found.indices(dense=True)), whole)


def test_where_b_is_zero_the_gradient_of_a_vanishes_and_is_undefined():
    m = adapted("llama", start=0.0)
    pairs = pairs_of(m)
    with in_double():
        found = gradient_products(m, pairs, assign(pairs, 0))
    undefined = found.undefined()
    assert set(undefined) == {part.name for part in found.parts if "lora_A" in part.parameter}
    assert set(undefined.values()) == {len(pairs)}
    lora_a = [i for i, part in enumerate(found.parts) if "lora_A" in part.parameter]
    assert found.cosine(lora_a).isnan().all()
    assert found.cosine().isfinite().all()


def test_an_adapter_that_is_no_sum_has_no_dense_gradient():
    """DoRA rescales the columns of W + BA, so what its output tells isn't W's gradient."""
    m = adapted("llama", use_dora=True)
    pairs = pairs_of(m)
    with in_double():
        found = gradient_products(m, pairs, assign(pairs, 0))
    dense = found.indices(dense=True)
    assert {found.rules[found.parts[i].parameter] for i in dense} == {UNREAD}
    assert found.inner[:, dense].isnan().all()
    assert found.cosine().isfinite().all()


def test_dense_gradients_that_cannot_be_read_leave_the_pairs_alone():
    m = adapted("llama", use_dora=True)
    with in_double():
        seen = rcprobe.observe(m, pairs_of(m), read={"gradients", "log_probs"})
    assert not seen.excluded
    assert seen.gradients.cosine().isfinite().all()
    assert seen.gradients.inner[:, seen.gradients.indices(dense=True)].isnan().all()


def test_what_an_adapter_of_zeros_hides_is_checked_again():
    """Where B is zero, DoRA rescales by one, and looks like a sum."""
    m = adapted("llama", start=0.0, use_dora=True)
    pairs = pairs_of(m)
    with in_double():
        before = gradient_products(m, pairs, assign(pairs, 0))
        for name, parameter in m.model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.data.add_(torch.rand_like(parameter))
        after = gradient_products(m, pairs, assign(pairs, 0))
    assert {before.rules[before.parts[i].parameter] for i in before.indices(dense=True)} == {"linear"}
    assert {after.rules[after.parts[i].parameter] for i in after.indices(dense=True)} == {UNREAD}


def test_frozen_parameters_are_named_and_take_part_when_asked_for():
    m = adapted("llama")
    pairs = pairs_of(m)
    with in_double():
        trainable = gradient_products(m, pairs, assign(pairs, 0))
        everything = gradient_products(m, pairs, assign(pairs, 0), parameters="all")
    assert trainable.left_out["base_model.model.model.embed_tokens.weight"] == "it is frozen"
    assert not set(trainable.left_out) & {part.parameter for part in trainable.parts}
    assert not everything.left_out
    assert not everything.indices(dense=True)
    assert len({part.parameter for part in everything.parts}) == len(list(m.model.parameters()))


def test_storage_counts_what_the_adapters_add():
    m = adapted("llama")
    circuit = rcprobe.load("llama").adapter.ov_circuit
    with in_double():
        found = storage(m.model, circuit, [5, 6], [7, 8])
        merged = m.model.merge_and_unload()
        torch.testing.assert_close(found, storage(merged, circuit, [5, 6], [7, 8]))


def test_the_metric_reports_the_dense_cosine_beside():
    m = adapted("llama")
    seen = rcprobe.observe(m, pairs_of(m), read={"gradients"})
    metric = rcprobe.Probe(m, FACTS, ["gradient_alignment"]).metrics[0]
    columns = metric.measure(seen)
    assert {"matched", "dense matched", "dense same_target"} <= set(columns)
