"""Storage against what the models themselves compute, with the norm's scale divided out."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rcprobe.facts import Fact
from rcprobe.loaded import LoadedModel
from rcprobe.probing.engine import observe
from rcprobe.probing.storage import storage
from rcprobe.queries import encode
from rcprobe_plugins.models.gpt2 import Gpt2
from rcprobe_plugins.models.gpt2_mini import Gpt2Mini
from rcprobe_plugins.models.llama import Llama
from rcprobe_plugins.models.radd import Radd

LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
ALPHABET = "0abcdeABCDE"
TEMPLATES = ("{a}0{b}", "{b}0{a}")
FACTS = [Fact(a, a.upper(), *TEMPLATES) for a in "abc"]


def build(family, **options):
    """A tiny float64 model whose every weight is moved."""
    torch.manual_seed(0)
    model = family.build({**family.tiny, "alphabet": ALPHABET, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def tolerance(family):
    return {"rtol": 1e-5, "atol": 1e-5} if family is Llama else {"rtol": 1e-10, "atol": 1e-10}  # its norms are float32


def centred(table):
    """Twice: over what is answered, and over what is evidence."""
    table = table - table.mean(-2, keepdim=True)
    return table - table.mean(-1, keepdim=True)


def stored(model, family):
    everything = range(model.config.vocab_size)
    return storage(model, family.ov_circuit, everything, everything)


def output_of(model, layer=0):
    layer = model.model.layers[layer] if hasattr(model, "model") else model.blocks[layer]
    return layer.self_attn.o_proj if hasattr(layer, "self_attn") else layer.attention.out


@torch.no_grad()
def without_mlp(model):
    for layer in model.model.layers if hasattr(model, "model") else model.blocks:
        last = layer.mlp.down_proj if hasattr(layer.mlp, "down_proj") else layer.mlp[2]
        for parameter in last.parameters():
            parameter.zero_()


@torch.no_grad()
def scaled_logits(model, ids, row):
    """The logits at a row times what the final norm divided by: linear in what the attention wrote."""
    final = model.model.norm if hasattr(model, "model") else model.norm
    before = []
    handle = final.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    out = model(ids).logits[:, row]
    handle.remove()
    x = before[0][:, row]
    if not isinstance(final, torch.nn.LayerNorm):
        return out * (x.pow(2).mean(-1, keepdim=True) + final.variance_epsilon).sqrt()
    shift = model.lm_head.weight @ final.bias
    if model.lm_head.bias is not None:
        shift = shift + model.lm_head.bias
    return (out - shift) * (x.var(-1, unbiased=False, keepdim=True) + final.eps).sqrt()


# --- the whole map, from the model's own forward passes ---


def measured(model, family, head, heads, position=1):
    """[V, V]: how each token in place of the evidence moves each logit at another row, by one head's values.

    Queries are silenced, so that every key gets the same weight 1/n; what biases and the other tokens leave is
    the same for all evidence, and goes with the centring.
    """
    without_mlp(model)
    with torch.no_grad():
        if family is Llama:
            model.model.layers[0].self_attn.q_proj.weight.zero_()
        else:
            for parameter in model.blocks[0].attention.qkv.parameters():
                parameter[: model.config.width] = 0
        weight = output_of(model).weight
        weight *= torch.arange(weight.shape[1]) // (weight.shape[1] // heads) == head
    length = 3
    ids = torch.tensor([[1, 1, 2]]).repeat(model.config.vocab_size, 1)
    ids[:, position] = torch.arange(model.config.vocab_size)
    return length * scaled_logits(model, ids, row=2).T  # the last row sees every token, in a causal model too


ONE_LAYER = {"depth": 1, "encoding": "rope"}
CASES = [(Radd, ONE_LAYER, 2), (Gpt2Mini, ONE_LAYER, 2), (Llama, LLAMA, 4)]
PLACED = ["absolute", "sinusoidal", "turned-values"]


@pytest.mark.parametrize(("family", "options", "heads"), CASES)
def test_storage_is_what_the_evidence_does_to_the_logits(family, options, heads):
    """The final norm's scale is divided out; its mean-centring, if it has one, is part of the path."""
    found = stored(build(family, **options), family)
    assert found.shape == (1, heads, *2 * [found.shape[-1]])
    assert found.dtype == torch.float64
    for head in range(heads):
        want = centred(measured(build(family, **options), family, head, heads))
        torch.testing.assert_close(found[0, head], want, **tolerance(family))
        assert want.std() > 0.1


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("encoding", PLACED)
def test_storage_with_position_in_it_is_that_of_the_place(encoding, position):
    flat = {"slope": 0.0} if encoding == "turned-values" else {}  # weights must be equal to be divided out
    options = {"depth": 1, "encoding": encoding, **flat}
    everything = range(len(ALPHABET) + 1)
    found = storage(build(Radd, **options), Radd.ov_circuit, everything, everything, (2, position))
    elsewhere = storage(build(Radd, **options), Radd.ov_circuit, everything, everything, (2, 1 - position))
    for head in range(2):
        want = centred(measured(build(Radd, **options), Radd, head, 2, position))
        torch.testing.assert_close(found[0, head], want, **tolerance(Radd))
    assert (found - elsewhere).abs().max() > 0.05 * found.std()


@pytest.mark.parametrize("encoding", [*PLACED, "rope"])
def test_observed_storage_is_read_where_the_reverse_query_stands(encoding):
    options = {"alphabet": ALPHABET, "depth": 1, "encoding": encoding}
    model = build(Radd, **options)
    m = LoadedModel(model, Radd(), Radd.default_tokenizer(options), "a test")
    two = [Fact(a, a.upper(), ("{a}0{b}", "0{a}{b}0"), ("{b}0{a}", "0{b}{a}0")) for a in "abc"]
    found = observe(m, encode(m, two), read={"storage"})
    answers, evidence = ([m.tokenizer.convert_tokens_to_ids(c) for c in text] for text in ("abc", "ABC"))
    maps = [storage(model, Radd.ov_circuit, answers, evidence, place)[..., 0, 0] for place in ((2, 0), (2, 1))]
    torch.testing.assert_close(found.storage[:2], torch.stack(maps), rtol=1e-10, atol=1e-12)
    want = torch.stack(maps).std(dim=0, correction=0)
    torch.testing.assert_close(found.storage_spread[0], want, rtol=1e-8, atol=1e-12)
    assert bool((want == 0).all()) == (encoding == "rope")


@pytest.mark.parametrize(("family", "options", "heads"), CASES[:2])
def test_storage_where_heads_write_no_mean(family, options, heads):
    """Then the norm's centring has nothing to take out, and all else of the map must agree."""

    def level(model):
        with torch.no_grad():
            weight = output_of(model).weight
            weight -= weight.mean(0)
        return model

    found = stored(level(build(family, **options)), family)
    for head in range(heads):
        want = centred(measured(level(build(family, **options)), family, head, heads))
        torch.testing.assert_close(found[0, head], want, **tolerance(family))


@torch.no_grad()
def test_storage_of_a_released_gpt2():
    """Its fused weight is transposed; positions are silenced, which storage leaves out."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=7, n_embd=8, n_layer=1, n_head=2, n_positions=8, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config).double().eval()
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    block = model.transformer.h[0]
    for silent in (model.transformer.wpe.weight, *block.mlp.c_proj.parameters()):
        silent.zero_()
    found = storage(model, Gpt2.ov_circuit, range(7), range(7))
    for parameter in block.attn.c_attn.parameters():
        parameter[..., :8] = 0  # queries: each key then has the same weight
    whole, before = block.attn.c_proj.weight.clone(), []
    model.transformer.ln_f.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    for head in range(2):
        block.attn.c_proj.weight.copy_(whole * (torch.arange(8) // 4 == head)[:, None])
        logits = model(torch.tensor([[1, b, 2] for b in range(7)])).logits[:, 2]
        scale = (before.pop()[:, 2].var(-1, unbiased=False, keepdim=True) + model.transformer.ln_f.eps).sqrt()
        shift = model.lm_head.weight @ model.transformer.ln_f.bias
        want = centred(3 * ((logits - shift) * scale).T)
        torch.testing.assert_close(found[0, head], want, rtol=1e-10, atol=1e-10)
        assert want.std() > 0.1


# --- explicit algebra on the full V × V matrix ---


def explicit(model, n, head):
    """U diag(g) C W_O W_V LN(E) of one head, a token of evidence at a time; C centres where the norm does."""
    s = {name: value.detach() for name, value in model.state_dict().items()}
    llama = hasattr(model, "model")
    e = s["model.embed_tokens.weight" if llama else "embed_tokens.weight"]
    if "encoding.position.weight" in s:
        e = e + s["encoding.position.weight"][0]  # the place is the first one where none is named
    unembed, width = s["lm_head.weight"], e.shape[1]
    if llama:
        at = f"model.layers.{n}."
        gain, centre = s["model.norm.weight"], torch.eye(width, dtype=e.dtype)
        read = e / (e.pow(2).mean(1, keepdim=True) + model.config.rms_norm_eps).sqrt()
        read = read * s[at + "input_layernorm.weight"]
        v, o = s[at + "self_attn.v_proj.weight"], s[at + "self_attn.o_proj.weight"]
        heads = model.config.num_attention_heads
        shared = heads // model.config.num_key_value_heads
    else:
        at = f"blocks.{n}."
        gain, centre = s["norm.weight"], torch.eye(width, dtype=e.dtype) - 1 / width
        level = e - e.mean(1, keepdim=True)
        read = level / (level.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        read = read * s[at + "norm1.weight"] + s[at + "norm1.bias"]
        v, o = s[at + "attention.qkv.weight"][2 * width :], s[at + "attention.out.weight"]
        heads, shared = model.config.heads, 1
    d = width // heads
    columns = []
    for b in range(len(e)):
        value = v[(head // shared) * d : (head // shared + 1) * d] @ read[b]
        columns.append(unembed @ (gain * (centre @ (o[:, head * d : (head + 1) * d] @ value))))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (Radd, {"depth": 1}),
        (Radd, {"depth": 2, "encoding": "alibi"}),
        (Radd, {"depth": 2, "encoding": "absolute"}),
        (Gpt2Mini, {"depth": 2}),
        (Llama, {"num_attention_heads": 4, "num_key_value_heads": 2}),
        (Llama, {"num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": 3}),
        (Llama, {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 1}),
    ],
)
def test_storage_equals_explicit_algebra_in_every_layer_and_head(family, options):
    model = build(family, **options)
    found = stored(model, family)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    assert found.shape[:2] == (layers, heads)
    for n in range(layers):
        for head in range(heads):
            torch.testing.assert_close(found[n, head], centred(explicit(model, n, head)), **tolerance(family))


def test_the_jacobian_of_the_direct_path():
    """One layer, no MLP: the derivative of the logits by the weight on one key, the norm's scale held fixed."""
    model = build(Radd, depth=1, heads=1, encoding="rope")
    found = stored(model, Radd)[0, 0]
    block, final, width = model.blocks[0], model.norm, model.config.width
    with torch.no_grad():
        values = block.norm1(model.embed_tokens.weight) @ block.attention.qkv.weight[2 * width :].T
        x = torch.randn(width, dtype=torch.float64)  # any residual: the scale is held

    def logits(written):
        y = x + written
        scale = (y.var(unbiased=False) + final.eps).sqrt().detach()
        return model.lm_head((y - y.mean()) / scale * final.weight + final.bias) * scale

    one = torch.tensor(1.0, dtype=torch.float64)
    columns = [
        torch.autograd.functional.jacobian(lambda weight, v=v: logits(weight * block.attention.out(v)), one)
        for v in values
    ]
    torch.testing.assert_close(found, centred(torch.stack(columns, dim=1)), rtol=1e-10, atol=1e-10)


# --- which entries are read ---


def test_chosen_entries_are_those_of_the_whole_map():
    model = build(Radd)
    whole = stored(model, Radd)
    answers, evidence = [3, 1, 7], [2, 9]
    some = storage(model, Radd.ov_circuit, answers, evidence)
    assert some.shape == (2, 2, 3, 2)
    torch.testing.assert_close(some, whole[:, :, answers][..., evidence], rtol=1e-12, atol=1e-12)
    # rows and columns of the whole map have no mean left
    torch.testing.assert_close(whole.mean(-1), torch.zeros_like(whole[..., 0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.mean(-2), torch.zeros_like(whole[..., 0, :]), rtol=0, atol=1e-12)


def test_what_a_softmax_ignores_is_ignored():
    """A constant added to every logit, by the head or by what every token stores, changes nothing."""
    model = build(Gpt2Mini, depth=1)
    before = stored(model, Gpt2Mini)
    block = model.blocks[0]
    with torch.no_grad():
        for bias in (block.norm1.bias, block.attention.qkv.bias, block.attention.out.bias, model.norm.bias):
            bias += torch.randn_like(bias)
    torch.testing.assert_close(stored(model, Gpt2Mini), before, rtol=1e-10, atol=1e-10)
    other = build(Radd, depth=1)
    before = stored(other, Radd)
    with torch.no_grad():
        other.lm_head.weight += torch.randn(16).double()  # the same for every token
    torch.testing.assert_close(stored(other, Radd), before, rtol=1e-10, atol=1e-10)


def test_storage_leaves_no_gradient_and_is_read_in_float64():
    model = build(Radd)
    found = stored(model, Radd)
    assert not found.requires_grad
    assert all(p.grad is None for p in model.parameters())
    half = stored(build(Radd).to(torch.bfloat16), Radd)
    assert half.dtype == torch.float64
    assert (half - found).abs().max() < 0.05 * found.abs().max()


def observed(facts, **options):
    options = {"alphabet": ALPHABET, **options}
    model = build(Radd, **options)
    m = LoadedModel(model, Radd(), Radd.default_tokenizer(options), "a test")
    return stored(model, Radd), observe(m, encode(m, facts), read={"storage"})


def test_observed_storage_is_the_facts_own_entry_beside_its_mismatches():
    # d is an answer to A as well, so it is no mismatch of a's, nor a of d's
    facts = [*FACTS, Fact("d", "A", *TEMPLATES), Fact("ab", "é", *TEMPLATES)]
    others = {"a": "bc", "b": "acd", "c": "abd", "d": "bc"}
    whole, found = observed(facts, depth=2)
    for i, fact in enumerate(facts[:4]):
        column = whole[..., ALPHABET.index(fact.b)]
        torch.testing.assert_close(found.storage[i], column[..., ALPHABET.index(fact.a)], rtol=1e-10, atol=1e-12)
        want = column[..., [ALPHABET.index(a) for a in others[fact.a]]].mean(-1)
        torch.testing.assert_close(found.storage_mismatched[i], want, rtol=1e-10, atol=1e-12)
    assert found.storage[4].isnan().all()
    assert found.storage_mismatched[4].isnan().all()
    assert list(found.excluded) == [4]


def test_another_right_answer_is_no_mismatch():
    facts = [Fact("a", "A", *TEMPLATES, a_answers=("d",)), *FACTS[1:], Fact("d", "D", *TEMPLATES)]
    whole, found = observed(facts, depth=1)
    want = whole[..., [ALPHABET.index(c) for c in "bc"], ALPHABET.index("A")].mean(-1)
    torch.testing.assert_close(found.storage_mismatched[0], want, rtol=1e-10, atol=1e-12)


def test_one_fact_has_no_mismatch():
    _, found = observed(FACTS[:1], depth=1)
    assert math.isfinite(found.storage.sum())
    assert found.storage_mismatched.isnan().all()
