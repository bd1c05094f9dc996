"""Each rule against autograd, query by query; and each rule broken on purpose is found out."""

import pytest
import torch
from conformance.families import in_double
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

import rcprobe
from rcprobe.controls import assign
from rcprobe.probing import coverage, factors
from rcprobe.probing.captured import Call
from rcprobe.probing.coverage import PER_QUERY
from rcprobe.probing.factors import Formed, Grams, Inputs, OneHot, Outer, Rows, rule_for
from rcprobe.probing.gradients import gradient_products
from rcprobe.probing.plain_gradients import plain_products

# gemma's norm asks for float32; the whole file computes in float64
pytestmark = pytest.mark.usefixtures("double")
N, L, W, O, V = 3, 5, 4, 6, 9  # noqa: E741


@pytest.fixture
def double():
    with in_double():
        yield


class Scaled(nn.Embedding):
    def forward(self, ids):
        return 3.0 * super().forward(ids)


MODULES = {
    "linear": lambda: nn.Linear(W, O),
    "linear without bias": lambda: nn.Linear(W, O, bias=False),
    "conv1d": lambda: Conv1D(O, W),
    "embedding": lambda: nn.Embedding(V, W),
    "embedding with padding": lambda: nn.Embedding(V, W, padding_idx=2),
    "scaled embedding": lambda: Scaled(V, W),
    "layer norm": lambda: nn.LayerNorm(W),
    "layer norm without bias": lambda: nn.LayerNorm(W, bias=False),
    "rms norm": lambda: nn.RMSNorm(W),
    "llama's norm": lambda: LlamaRMSNorm(W),
    "gemma's norm": lambda: Gemma2RMSNorm(W),
}
KIND = {name: next(k for k in ("linear", "conv1d", "embedding", "norm") if k in name) for name in MODULES}


def made(name):
    torch.manual_seed(0)
    module = MODULES[name]().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


def visited(module, dead=0):
    """A call of the module, the gradient of what came out, and each query's true gradients."""
    ids = torch.randint(V, (N, L))
    x = ids if isinstance(module, nn.Embedding) else torch.randn(N, L, W, dtype=torch.float64)
    out = module(x)
    gradient = torch.randn_like(out)
    gradient[:, :dead] = 0
    true = [
        torch.autograd.grad((module(x[i : i + 1]) * gradient[i : i + 1]).sum(), list(module.parameters()))
        for i in range(N)
    ]
    names = [name for name, _ in module.named_parameters()]
    return Call((x,), {}, out.detach()), gradient, {n: torch.stack([g[k] for g in true]) for k, n in enumerate(names)}


def formed(factor, parameter):
    whole = factor.values if isinstance(factor, Formed) else factor.formed(parameter.shape[0])
    return whole.reshape(-1, *parameter.shape)


@pytest.mark.parametrize("dead", [0, L - 1], ids=["", "only the last position reached"])
@pytest.mark.parametrize("name", MODULES)
def test_a_rule_gives_each_querys_gradient(name, dead):
    module = made(name)
    call, gradient, true = visited(module, dead)
    kind, rule = rule_for(module)
    assert kind == KIND[name]
    found = rule(module, call, gradient, Inputs(N))
    assert found.keys() == true.keys()
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(formed(found[key], parameter), true[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODULES)
def test_products_equal_those_of_formed_gradients(name):
    module = made(name)
    found = []
    for _ in range(2):
        call, gradient, true = visited(module)
        found.append((rule_for(module)[1](module, call, gradient, Inputs(N)), true))
    (one, mine), (other, theirs) = found
    for key in mine:
        for index in (None, torch.tensor([2, 0, 1])):
            want = (mine[key] * (theirs[key] if index is None else theirs[key][index])).flatten(1).sum(1)
            torch.testing.assert_close(one[key].inner(other[key], Grams(), index), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["layer norm", "llama's norm", "gemma's norm"])
def test_a_gain_of_zero_hides_nothing(name):
    module = made(name)
    with torch.no_grad():
        module.weight[1] = -1.0 if name == "gemma's norm" else 0.0
    call, gradient, true = visited(module)
    found = rule_for(module)[1](module, call, gradient, Inputs(N))
    torch.testing.assert_close(found["weight"].values, true["weight"], rtol=1e-10, atol=1e-12)


def test_a_module_of_another_kind_has_no_rule():
    assert rule_for(nn.Conv1d(2, 2, 3)) is None
    assert rule_for(nn.Bilinear(2, 2, 2)) is None


# --- broken on purpose ---


def doubled(factor):
    if isinstance(factor, Formed):
        return Formed(2 * factor.values)
    return Outer(tuple((left if isinstance(left, OneHot) else Rows(2 * left.values), Rows(2 * right.values))
                       for left, right in factor.uses))  # fmt: skip


BREAKABLE = [(rule, name) for rule in ("linear", "conv1d", "norm") for name in ("weight", "bias")]


@pytest.mark.parametrize(("rule", "attribute"), [*BREAKABLE, ("embedding", "weight")])
def test_a_broken_rule_is_found_out_and_nothing_is_wrong(rule, attribute, monkeypatch):
    """The check sets it aside for backward passes a query, so that the products stay right."""
    m = rcprobe.load("gpt2-mini", options={"width": 8, "max_length": 8}, dtype="float64")
    if rule == "conv1d":
        for block in m.model.blocks:
            old, block.mlp[0] = block.mlp[0], Conv1D(32, 8).double()
            with torch.no_grad():
                block.mlp[0].weight.copy_(old.weight.T)
    with torch.no_grad():
        for parameter in m.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    pairs = rcprobe.encode(m, rcprobe.load_dataset("letters", {"length": 3}).facts[:4], "swapped")
    pairs = [pair for pair in pairs if pair.unsupported is None]
    controls = assign(pairs, 0)
    sound = gradient_products(m, pairs, controls).rules
    assert [name for name, how in sound.items() if how == PER_QUERY] == []
    right = getattr(factors, rule)

    def broken(*args):
        found = right(*args)
        return {name: doubled(factor) if name == attribute else factor for name, factor in found.items()}

    monkeypatch.setattr(factors, rule, broken)
    coverage._COVERED.clear()
    found = gradient_products(m, pairs, controls)
    coverage._COVERED.clear()
    caught = {name for name, how in found.rules.items() if how == PER_QUERY}
    wanted = {name for name, how in sound.items() if rule in how.split(" + ") and name.endswith(attribute)}
    assert wanted
    assert caught == wanted
    true = plain_products(m, pairs, controls, found.parts)
    torch.testing.assert_close(found.inner, true[:, 0], rtol=1e-9, atol=1e-12)
