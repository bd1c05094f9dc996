import re

import pytest
import torch
from conformance.families import FACTS as FAMILY_FACTS
from conformance.families import build

import rcprobe
from rcprobe.controls import assign
from rcprobe.probing.coverage import _COVERED, PER_QUERY, UNMET, cover
from rcprobe.probing.factors import Formed, Grams, OneHot, Outer, Rows, split
from rcprobe.probing.gradients import gradient_products
from rcprobe.probing.plain_gradients import plain_products

FACTS = rcprobe.load_dataset("letters", {"length": 3}).facts[:6]


def tied(n=3, length=4, vocabulary=11, width=5):
    ids = torch.randint(vocabulary, (n, length))
    looked_up = (OneHot(ids, torch.ones_like(ids) > 0), Rows(torch.randn(n, length, width).double()))
    return Outer((looked_up, (Rows(torch.randn(n, 1, vocabulary).double()), Rows(torch.randn(n, 1, width).double()))))


def test_a_tied_weight_has_both_cross_terms():
    torch.manual_seed(0)
    x, y = tied(), tied()
    for index in (None, torch.tensor([2, 0, 1])):
        other = y.formed(11) if index is None else y.formed(11)[index]
        torch.testing.assert_close(x.inner(y, Grams(), index), (x.formed(11) * other).sum((1, 2)))
    head_alone = Outer(x.uses[1:]).inner(Outer(y.uses[1:]), Grams()) + Outer(x.uses[:1]).inner(
        Outer(y.uses[:1]), Grams()
    )
    assert not torch.allclose(head_alone, x.inner(y, Grams()))


def test_padding_rows_of_an_embedding_get_nothing():
    ids = torch.tensor([[1, 0, 1]])
    gradient = torch.randn(1, 3, 2).double()
    factor = Outer(((OneHot(ids, ids != 0), Rows(gradient)),))
    expected = gradient[0, 0] + gradient[0, 2]
    torch.testing.assert_close(factor.inner(factor, Grams()), (expected**2).sum()[None])


def test_gradients_near_saturation_keep_their_products():
    """Where p(target) is 1 − 1e-26, products of gradients are near 1e-104: far below float32's range."""
    m = rcprobe.load("radd", options={"width": 8, "max_length": 8})
    torch.manual_seed(0)
    pairs = rcprobe.encode(m, FACTS)
    with torch.no_grad():
        m.model.lm_head.weight.normal_()
        m.model.lm_head.bias[pairs[0].forward.target_ids[0]] += 60
    controls = assign(pairs, 4)
    found = gradient_products(m, pairs, controls)
    assert found.forward_norm2[0].sum() < 1e-45
    m.model.double()
    true = gradient_products(m, pairs, controls)
    torch.testing.assert_close(found.cosine()[0], true.cosine()[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(found.forward_norm2[0].sum(), true.forward_norm2[0].sum(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_fused_weight_is_cut_along_what_comes_out(axis):
    torch.manual_seed(0)
    left, right = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    whole = Outer(((Rows(left), Rows(right)),))
    parts = split(whole, 3, axis)
    for part, true in zip(parts, whole.formed().chunk(3, dim=1 + axis), strict=True):
        assert isinstance(part, Outer)
        torch.testing.assert_close(part.formed(), true)
    (first, *_) = split(Formed(left.sum(1)), 3, axis)
    torch.testing.assert_close(first.values, left.sum(1)[:, :2])


def test_a_parameter_that_no_module_call_shows_is_read_query_by_query():
    """A vector added to what enters the head: no rule sees it, and nothing is left out."""
    m = rcprobe.load("radd", options={"width": 8, "max_length": 8}, dtype="float64")
    m.adapter.groups = {**m.adapter.groups, r"^offset$": "offset"}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in m.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    m.model.offset = torch.nn.Parameter(torch.randn(8, dtype=torch.float64))
    m.model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] + m.model.offset,))
    pairs = rcprobe.encode(m, FACTS)
    controls = assign(pairs, 4)
    found = gradient_products(m, pairs, controls)
    assert found.rules["offset"] == PER_QUERY
    assert [name for name, rule in found.rules.items() if rule == PER_QUERY] == ["offset"]
    true = plain_products(m, pairs, controls, found.parts)
    torch.testing.assert_close(found.inner, true[:, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.control_inner, true[:, 3::2], rtol=1e-9, atol=1e-12, equal_nan=True)


class Scaled(torch.nn.Module):
    """A scalar gain, an expert for prompts that hold a certain token's row, and one for nobody."""

    def __init__(self, inner, row):
        super().__init__()
        self.inner, self.row = inner, row
        self.weight = torch.nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
        self.expert, self.idle = (torch.nn.Linear(8, 8, bias=False, dtype=torch.float64) for _ in range(2))

    def forward(self, x):
        theirs = torch.isclose(x, self.row).all(dim=-1).any(dim=-1)
        if theirs.any():
            x = x.index_put((theirs,), x[theirs] + self.expert(x[theirs]))
        return self.inner(x) * self.weight


class Marking(torch.nn.Module):
    """Attention that gives nothing, so that a token's row stays what it was."""

    def forward(self, x, *args, **kwargs):
        return torch.zeros_like(x), None


def test_what_the_check_does_not_meet_or_no_rule_fits_is_read_query_by_query():
    m = rcprobe.load("radd", options={"width": 8, "max_length": 8, "encoding": "nope"}, dtype="float64")
    m.adapter.groups = {**m.adapter.groups, r"\.mlp\.": "mlp"}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in m.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    pairs = rcprobe.encode(m, FACTS)
    block = m.model.blocks[0]
    late = pairs[-1].forward  # the last fact's evidence, which the check's queries don't hold
    evidence = torch.tensor(late.input_ids[late.evidence_positions[0]])
    with torch.no_grad():
        row = block.norm2(m.model.embed_tokens(evidence))
    block.attention = Marking()
    block.mlp = Scaled(block.mlp, row)
    named = [(name, p) for name, p in m.model.named_parameters() if name.startswith("blocks.0.mlp.")]
    found = gradient_products(m, pairs, assign(pairs, 2))
    mine = {name.removeprefix("blocks.0.mlp."): found.rules[name] for name, _ in named if "inner" not in name}
    assert mine == {"weight": PER_QUERY, "expert.weight": UNMET, "idle.weight": UNMET}
    true = plain_products(m, pairs, assign(pairs, 2), found.parts)
    torch.testing.assert_close(found.inner, true[:, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.control_inner, true[:, 3::2], rtol=1e-9, atol=1e-12, equal_nan=True)
    (expert,) = (i for i, part in enumerate(found.parts) if part.parameter == "blocks.0.mlp.expert.weight")
    assert (found.forward_norm2[:, expert] > 0).sum() == 3  # the last fact's placements


def test_an_exchanged_module_is_checked_anew():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    m = rcprobe.load("radd", options={"width": 8, "max_length": 8}, dtype="float64")
    torch.nn.init.normal_(m.model.lm_head.weight)
    pairs = rcprobe.encode(m, FACTS)[:3]
    before = gradient_products(m, pairs, assign(pairs, 0))
    old = m.model.blocks[0].mlp[0]
    new = Doubled(8, 32, dtype=torch.float64)
    new.weight, new.bias = old.weight, old.bias
    m.model.blocks[0].mlp[0] = new
    after = gradient_products(m, pairs, assign(pairs, 0))
    true = plain_products(m, pairs, assign(pairs, 0), after.parts)
    assert not torch.allclose(before.inner, after.inner)
    torch.testing.assert_close(after.inner, true[:, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_a_table_that_all_prompts_share_is_read_query_by_query(length):
    """T5's table is looked up once for all prompts: L × L rows, however many prompts there are."""
    m = rcprobe.load("radd", options={"encoding": "t5", "width": 8}, dtype="float64", seed=1)
    torch.nn.init.normal_(m.model.lm_head.weight)
    pairs = rcprobe.encode(m, rcprobe.load_dataset("letters", {"length": length}).facts[:3])[:3]
    controls = assign(pairs, 2)
    found = gradient_products(m, pairs, controls)
    assert [name for name, rule in found.rules.items() if rule == PER_QUERY] == ["encoding.table.weight"]
    true = plain_products(m, pairs, controls, found.parts)
    torch.testing.assert_close(found.inner, true[:, 0], rtol=1e-9, atol=1e-12)


def test_a_rule_that_gives_the_wrong_gradient_is_caught(monkeypatch):
    from rcprobe.probing import factors

    m = rcprobe.load("radd", options={"width": 8, "max_length": 8})
    right = factors.linear

    def without_bias(*args):
        return {**right(*args), "bias": Formed(torch.zeros(3, 32))}

    monkeypatch.setattr(factors, "linear", without_bias)
    pairs = rcprobe.encode(m, FACTS)
    named = [(name, p) for name, p in m.model.named_parameters() if name == "blocks.0.mlp.0.bias"]
    assert cover(m, named, [pairs[0].forward, pairs[0].reverse]).rules == {"blocks.0.mlp.0.bias": PER_QUERY}
    monkeypatch.setattr(factors, "linear", right)
    _COVERED.clear()
    assert cover(m, named, [pairs[0].forward, pairs[0].reverse]).rules == {"blocks.0.mlp.0.bias": "linear"}


@pytest.mark.parametrize(("name", "turned"), [("bert", False), ("qwen2", True)])
def test_a_key_bias_is_read_in_half_precision_where_keys_are_turned_alone(name, turned):
    """Elsewhere its gradient is zero, and what rounding leaves is no measurement."""
    m = build(name, True)
    m.model.to(torch.bfloat16)
    pairs = rcprobe.encode(m, FAMILY_FACTS, "swapped" if m.adapter.objective == "causal" else "same_target")
    found = gradient_products(m, pairs, assign(pairs, 0))
    assert PER_QUERY not in found.rules.values()
    keys = [i for i, part in enumerate(found.parts) if re.search(r"k(ey|_proj)\.bias$", part.parameter)]
    assert len(keys) == 2
    assert found.cosine(keys).isfinite().all() if turned else found.cosine(keys).isnan().all()
