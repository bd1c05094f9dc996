"""`observe` against a second computation: plain PyTorch, one unpadded prompt at a time, no nnsight."""

import copy
import itertools
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rcprobe.controls import assign
from rcprobe.encoding import Encoding
from rcprobe.errors import AdapterError, CaptureError, DataError, UsageError
from rcprobe.facts import Fact
from rcprobe.loaded import LoadedModel
from rcprobe.probing import gradients
from rcprobe.probing.answers import FULL
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import capture, capture_gradient
from rcprobe.probing.captured import Captured
from rcprobe.probing.engine import observe
from rcprobe.probing.gradients import gradient_products
from rcprobe.probing.hooks import capture_with_hooks, gradient_with_hooks
from rcprobe.probing.plain_gradients import plain_products
from rcprobe.queries import encode
from rcprobe_plugins.datasets.characters import character_tokenizer
from rcprobe_plugins.models.gpt2_mini import Gpt2Mini
from rcprobe_plugins.models.llama import Llama
from rcprobe_plugins.models.radd import Radd

ALPHABET = "0abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
MASK = len(ALPHABET)
CONTROLS = {"same_target", "other_target", "other_fact"}
LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "radd rope": (Radd, {"encoding": "rope", "depth": 2}),
    "radd alibi": (Radd, {"encoding": "alibi", "depth": 2}),
    "radd absolute": (Radd, {"encoding": "absolute", "depth": 2}),
    "radd one layer": (Radd, {"encoding": "rope", "depth": 1}),
    "gpt2-mini": (Gpt2Mini, {"depth": 2}),
    "llama": (Llama, LLAMA),
}
EVERY = pytest.mark.parametrize("name", MODELS)
# transformers' llama rounds to float32 inside (norms, angles); measured: 1e-10 holds all the same
EXACT = {"rtol": 1e-10, "atol": 1e-12}

LONG = (("{a}00{b}0",), ("{b}0{a}",))
SHORT = (("{a}0{b}", "0{a}{b}00"), ("0{b}00{a}0000", "{b}{a}"))
FACTS = (
    Fact("ab", "C", *LONG),
    Fact("m", "NOP", *SHORT),
    Fact("de", "F", *LONG),
    Fact("gh", "I", *LONG, trained=False),
    Fact("jk", "L", *LONG, a_answers=("de",)),
    Fact("é", "Z", *LONG),
    Fact("q", "RST", *SHORT),
    Fact("un", "V", *LONG),
    Fact("w", "XYA", *SHORT),
)
CASES = (ALPHABET[1:27], ALPHABET[27:])
TWOS = tuple(ALPHABET[k : k + 2] for k in range(1, 53, 2))
UNASKED = 6  # the pair of é: of the facts before it, one has two pairs


def weights(name):
    """A tiny float64 model in whose every parameter a mistake would show."""
    family, options = MODELS[name]
    torch.manual_seed(0)
    model = family.build({**family.tiny, **options, "alphabet": ALPHABET}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def loaded(name, model=None, adapter=None):
    family = MODELS[name][0]
    tokenizer = character_tokenizer(ALPHABET, mask=family.objective == "masked")
    return LoadedModel(model or weights(name), (adapter or family)(), tokenizer, name)


def pairing_of(name):
    return "same_target" if name.startswith("radd") else "swapped"


def pairs_of(m, facts=FACTS, pairing=None):
    return encode(m, facts, pairing or ("same_target" if m.adapter.objective == "masked" else "swapped"))


# --- the second computation ---


@dataclass(frozen=True)
class Prompt:
    """Positions found in the text itself: one character is one token, and no entity's letters occur twice."""

    ids: tuple[int, ...]
    rows: tuple[int, ...]
    targets: tuple[int, ...]
    evidence: int


def prompt(name, fact, template, direction, asked, given, forced=None):
    """One side of a fact; ``asked`` and ``given`` are "a" and "b", ``forced`` other target tokens."""
    statement = getattr(fact, direction)[template]
    text = statement.replace("{a}", fact.a).replace("{b}", fact.b)
    start, end = (
        text.index(getattr(fact, asked)),
        text.index(getattr(fact, asked)) + len(getattr(fact, asked)),
    )
    evidence = text.index(getattr(fact, given))
    ids = [ALPHABET.index(c) for c in text]
    targets = tuple(ids[start:end]) if forced is None else forced
    assert len(targets) == end - start
    if name.startswith("radd"):
        ids[start:end] = [MASK] * (end - start)
        return Prompt(tuple(ids), tuple(range(start, end)), targets, evidence)
    ids[start:end] = targets
    return Prompt(tuple(ids[: end - 1]), tuple(range(start - 1, end - 1)), targets, evidence)


def prompts(name, fact, template, pairing, forced=None):
    forward = ("a", "b") if pairing == "same_target" else ("b", "a")
    return (
        prompt(name, fact, template, "forward", *forward),
        prompt(name, fact, template, "reverse", "a", "b", forced),
    )


def logits(model, name, p):
    out = model(torch.tensor([p.ids])).logits[0, list(p.rows)]
    if name.startswith("radd"):  # RADD never predicts its mask
        out = out.index_fill(-1, torch.tensor([MASK]), -torch.inf)
    return out


def log_prob(model, name, p):
    return logits(model, name, p).log_softmax(-1)[range(len(p.rows)), p.targets].sum()


def gradient(model, name, p):
    """Each parameter's gradient of −log p, the fused ones in thirds; keys are those of ``Part``."""
    model.zero_grad(set_to_none=True)
    (-log_prob(model, name, p)).backward()
    found = {}
    for parameter_name, parameter in model.named_parameters():
        if "qkv" in parameter_name:
            for part, piece in zip(("query", "key", "value"), parameter.grad.chunk(3), strict=True):
                found[f"{parameter_name}[{part}]"] = piece.flatten()
        else:
            found[parameter_name] = parameter.grad.flatten()
    return {key: value.clone() for key, value in found.items()}


def turned(x, positions):
    """Rotate-half RoPE, angles in float32 as transformers computes them and in float64 as ours does."""
    width = x.shape[-1]
    frequency = 1.0 / (10_000.0 ** (torch.arange(0, width, 2, dtype=positions.dtype) / width))
    angle = torch.outer(positions, frequency).repeat(1, 2)
    cos, sin = angle.cos().double()[None], angle.sin().double()[None]
    return apply_rotary_pos_emb(x[None], x[None], cos, sin)[0][0]


def raw_scores(model, name, p):
    """Scores of every layer [N, H, L, L], from the projections' outputs, and which cells are seen [L, L]."""
    outputs = []

    def keep(_, __, output):
        outputs.append(output[0].detach())

    if name == "llama":
        taps = [(b.self_attn.q_proj, b.self_attn.k_proj) for b in model.model.layers]
    else:
        taps = [(b.attention.qkv,) for b in model.blocks]
    handles = [module.register_forward_hook(keep) for layer in taps for module in layer]
    with torch.no_grad():
        model(torch.tensor([p.ids]))
    for handle in handles:
        handle.remove()
    length = len(p.ids)
    scores = []
    for n in range(len(taps)):
        if name == "llama":
            q, k = outputs[2 * n : 2 * n + 2]
        else:
            q, k, _ = outputs[n].chunk(3, dim=-1)
        width = 16 // (4 if name == "llama" else 2)
        q = q.reshape(length, -1, width).transpose(0, 1)
        k = k.reshape(length, -1, width).transpose(0, 1)
        k = k.repeat_interleave(len(q) // len(k), dim=0)
        if name == "llama" or model.config.encoding == "rope":
            positions = torch.arange(length, dtype=torch.float32 if name == "llama" else torch.float64)
            q, k = turned(q, positions), turned(k, positions)
        layer = q @ k.transpose(-1, -2) / width**0.5
        if name == "radd alibi":
            distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()
            layer = layer - torch.tensor([2.0**-4, 2.0**-8])[:, None, None] * distance
        scores.append(layer)
    full = torch.ones(length, length, dtype=torch.bool)
    return torch.stack(scores), full if name.startswith("radd") else full.tril()


@cache
def seen(name, pairing=None):
    m = loaded(name)
    pairs = pairs_of(m, pairing=pairing)
    candidates = {"letters": CASES, "twos": TWOS, "few": ("abcdeghjkm",)}
    return pairs, observe(m, pairs, read={"scores", "log_probs", "alternatives"}, candidates=candidates, batch_size=5)


def asked(name, pairing=None):
    """(row of the observation, the two prompts) of every pair that can be asked."""
    pairs, _ = seen(name, pairing)
    for i, pair in enumerate(pairs):
        if i != UNASKED:
            yield i, pair, prompts(name, FACTS[pair.fact], pair.template, pairing or pairing_of(name))


# --- forward readings ---


@EVERY
def test_scores_equal_those_of_queries_and_keys(name):
    model, (_, found) = weights(name), seen(name)
    for i, _, both in asked(name):
        for side, p in enumerate(both):
            scores, allowed = raw_scores(model, name, p)
            row = p.rows[0]
            weight = scores.masked_fill(~allowed, -torch.inf).softmax(-1)[:, :, row, p.evidence]
            torch.testing.assert_close(found.scores[i, side], scores[:, :, row, p.evidence], **EXACT)
            torch.testing.assert_close(found.log_weights[i, side].exp(), weight, **EXACT)
            assert found.attendable[i, side].all()
            assert allowed[row, p.evidence]


@EVERY
@torch.no_grad()
def test_weights_equal_those_the_model_shows(name):
    model, (_, found) = weights(name), seen(name)
    model.set_attn_implementation("eager")
    # transformers' eager llama takes its softmax in float32
    tolerance = {"rtol": 0, "atol": 1e-6} if name == "llama" else EXACT
    for i, _, both in asked(name):
        for side, p in enumerate(both):
            shown = model(torch.tensor([p.ids]), output_attentions=True).attentions
            cells = torch.stack([layer[0, :, p.rows[0], p.evidence] for layer in shown])
            torch.testing.assert_close(found.log_weights[i, side].exp(), cells, **tolerance)


@EVERY
@torch.no_grad()
def test_log_probabilities_and_answers(name):
    model, (_, found) = weights(name), seen(name)
    right_somewhere = judged_somewhere = 0
    for i, _, both in asked(name):
        for side, p in enumerate(both):
            out = logits(model, name, p)
            torch.testing.assert_close(found.log_probs[i, side], log_prob(model, name, p), **EXACT)
            assert torch.equal(found.log_probs[i], found.readings[FULL][0][i])
            full = all((row >= row[t]).sum() == 1 for row, t in zip(out, p.targets, strict=True))
            assert found.readings[FULL][1][i, side] == full
            for reading, groups in {"letters": CASES, "twos": TWOS, "few": ("abcdeghjkm",)}.items():
                got_p, got_right = (table[i, side] for table in found.readings[reading])
                rivals = [next((g for g in groups if ALPHABET[t] in g), None) for t in p.targets]
                if None in rivals:
                    assert reading == "few"
                    assert got_p.isnan()
                    assert got_right.isnan()
                    continue
                want, right = 0.0, True
                for row, t, group in zip(out, p.targets, rivals, strict=True):
                    some = row[[ALPHABET.index(c) for c in group]]
                    want, right = want + row[t] - some.logsumexp(0), right and row[t] == some.max()
                torch.testing.assert_close(got_p, want, **EXACT)
                assert got_right == right
                right_somewhere += bool(right)
                judged_somewhere += 1
    assert 0 < right_somewhere < judged_somewhere  # both answers occur, so neither is a constant


@EVERY
@torch.no_grad()
def test_alternatives_are_other_trained_targets_of_the_same_length(name):
    model, (_, found) = weights(name), seen(name)
    pairing = pairing_of(name)
    for i, pair, _ in asked(name):
        fact = FACTS[pair.fact]
        others = {
            other.a: tuple(ALPHABET.index(c) for c in other.a)
            for other in FACTS
            if other.trained and len(other.a) == len(fact.a) and other.a not in {fact.a, *fact.a_answers, "é"}
        }
        assert others
        asked_otherwise = [prompts(name, fact, pair.template, pairing, ids)[1] for ids in others.values()]
        want = torch.stack([log_prob(model, name, p) for p in asked_otherwise]).mean()
        torch.testing.assert_close(found.alternatives[i], want, **EXACT)


def test_swapped_pairs_of_a_masked_model():
    model, (_, found) = weights("radd rope"), seen("radd rope", "swapped")
    with torch.no_grad():
        for i, _, both in asked("radd rope", "swapped"):
            for side, p in enumerate(both):
                want = log_prob(model, "radd rope", p)
                torch.testing.assert_close(found.log_probs[i, side], want, **EXACT)
                scores, _ = raw_scores(model, "radd rope", p)
                cell = scores[:, :, p.rows[0], p.evidence]
                torch.testing.assert_close(found.scores[i, side], cell, **EXACT)


def test_a_tie_is_wrong():
    model = weights("radd rope")
    fact, ids = Fact("a", "B", "{a}0{b}", "{b}0{a}"), [ALPHABET.index(c) for c in "ax"]
    with torch.no_grad():
        model.lm_head.weight[:] = 0
        model.lm_head.bias[:] = 0
        model.lm_head.bias[ids] = 1  # a and x, ahead of all others and level
    m = loaded("radd rope", model)
    candidates = {"without x": ("abc",), "with x": ("abcx",)}
    found = observe(m, pairs_of(m, [fact]), candidates=candidates)
    assert found.readings[FULL][1].tolist() == [[0, 0]]
    assert found.readings["with x"][1].tolist() == [[0, 0]]
    assert found.readings["without x"][1].tolist() == [[1, 1]]
    e = torch.e
    torch.testing.assert_close(found.readings["with x"][0][0, 0].exp().item(), e / (2 * e + 2))
    torch.testing.assert_close(found.log_probs[0, 0].exp().item(), e / (2 * e + 51))  # the mask has no share


def test_saturation_is_flagged():
    model = weights("radd rope")
    with torch.no_grad():
        model.lm_head.weight[:] = 0
        model.lm_head.bias[:] = 0
        model.lm_head.bias[ALPHABET.index("a")] = 30
    m = loaded("radd rope", model)
    facts = [Fact("a", "B", "{a}0{b}", "{b}0{a}"), Fact("c", "D", "{a}0{b}", "{b}0{a}")]
    assert observe(m, pairs_of(m, facts)).saturated.tolist() == [[True, True], [False, False]]


def test_a_candidate_of_two_tokens_is_refused():
    m = loaded("radd rope")
    with pytest.raises(DataError, match="reading 'names': candidate 'ab' has 2 tokens"):
        observe(m, pairs_of(m), candidates={"names": (("c", "ab"),)})


def test_a_candidate_the_tokenizer_cannot_read_does_not_compete():
    m = loaded("radd rope")
    facts = [Fact("a", "B", "{a}0{b}", "{b}0{a}")]
    found = observe(m, pairs_of(m, facts), candidates={"with": (("a", "é", "c"),), "without": (("a", "c"),)})
    assert torch.equal(found.readings["with"][0], found.readings["without"][0])
    assert found.readings["with"][0].isfinite().all()


# --- gradient products ---


def dots(x, y):
    return torch.stack([u @ v for u, v in zip(x, y, strict=True)])


def assert_inner(got, x, y):
    """An inner product of nearly orthogonal vectors is exact relative to their lengths."""
    size = (dots(x, x) * dots(y, y)).sqrt()
    assert ((got - dots(x, y)).abs() <= 1e-10 * size + 1e-20).all()
    total = (dots(x, x).sum() * dots(y, y).sum()).sqrt()
    torch.testing.assert_close(got.sum() / total, dots(x, y).sum() / total, rtol=0, atol=1e-10)


def assert_norms(got, x):
    """Sums that cancel down to rounding (a key's bias where keys aren't rotated) may be zero or noise."""
    torch.testing.assert_close(got, dots(x, x), rtol=1e-10, atol=1e-20)


@pytest.mark.parametrize(("name", "pairing"), [*((n, None) for n in MODELS), ("radd rope", "swapped")])
def test_gradient_products_equal_plain_autograd(name, pairing):
    m, reference = loaded(name), weights(name)
    pairing = pairing or pairing_of(name)
    # strata of two, of unlike lengths: every kind of control finds a partner once, and none a second time
    facts = [FACTS[i] for i in (0, 1, 2, 6)]
    pairs = pairs_of(m, facts, pairing)
    found = observe(m, pairs, read={"gradients"}, controls=8).gradients
    names = [part.name for part in found.parts]
    assert set(found.kinds) == CONTROLS
    assert sorted(names) == sorted(gradient(reference, name, prompts(name, facts[0], 0, pairing)[0]))

    def true(p):
        g = gradient(reference, name, p)
        return [g[part] for part in names]

    met = set()
    for i, pair in enumerate(pairs):
        fact = facts[pair.fact]
        f, r = (true(p) for p in prompts(name, fact, pair.template, pairing))
        assert_inner(found.inner[i], f, r)
        assert_norms(found.forward_norm2[i], f)
        assert_norms(found.reverse_norm2[i], r)
        for k, kind in enumerate(found.kinds):
            j = int(found.partner[i, k])
            if j < 0:
                assert found.control_inner[i, k].isnan().all()
                assert found.control_norm2[i, k].isnan().all()
                continue
            met.add((pair.fact, kind))
            other = facts[pairs[j].fact]
            assert (len(other.a), len(other.b), pairs[j].template) == (len(fact.a), len(fact.b), pair.template)
            assert other is not fact
            own, theirs = (tuple(ALPHABET.index(c) for c in x.a) for x in (fact, other))
            control = {
                "same_target": prompts(name, other, pair.template, pairing, own),
                "other_target": prompts(name, fact, pair.template, pairing, theirs),
                "other_fact": prompts(name, other, pair.template, pairing),
            }[kind][1]
            c = true(control)
            assert_inner(found.control_inner[i, k], f, c)
            assert_norms(found.control_norm2[i, k], c)
    assert met == {(n, kind) for n in range(len(facts)) for kind in CONTROLS}


def test_gradient_products_equal_those_of_formed_gradients():
    """The same against the plain definition in the package."""
    m = loaded("gpt2-mini")
    pairs = pairs_of(m, FACTS[:4])
    controls = assign(pairs, 6)
    found = gradient_products(m, pairs, controls)
    want = plain_products(m, pairs, controls, found.parts)
    plain = replace(
        found,
        inner=want[:, 0],
        forward_norm2=want[:, 1],
        reverse_norm2=want[:, 2],
        control_inner=want[:, 3::2],
        control_norm2=want[:, 4::2],
    )
    assert_same_products(found, plain)


def test_cosines_follow_from_the_products():
    m = loaded("radd rope")
    g = observe(m, pairs_of(m, FACTS[:5]), read={"gradients"}, controls=8).gradients
    some = [k for k, part in enumerate(g.parts) if part.group == "value"]
    norms = g.forward_norm2[:, some].sum(1) * g.reverse_norm2[:, some].sum(1)
    torch.testing.assert_close(g.cosine(some), g.inner[:, some].sum(1) / norms.sqrt())
    for kind in CONTROLS:
        columns = [k for k, own in enumerate(g.kinds) if own == kind]
        want = []
        for i in range(len(g.inner)):
            cosines = [
                g.control_inner[i, k].sum() / (g.forward_norm2[i].sum() * g.control_norm2[i, k].sum()).sqrt()
                for k in columns
                if g.partner[i, k] >= 0
            ]
            want.append(torch.stack(cosines).mean() if cosines else torch.tensor(torch.nan).double())
        torch.testing.assert_close(g.control_cosine(kind), torch.stack(want), equal_nan=True)
    assert not g.control_cosine("same_target").isnan().all()


def test_a_gradient_that_vanishes_has_no_cosine():
    model = weights("radd rope")
    with torch.no_grad():
        model.lm_head.weight[:] = 0
    m = loaded("radd rope", model)
    g = observe(m, pairs_of(m, FACTS[:1]), read={"gradients"}).gradients
    below = [k for k, part in enumerate(g.parts) if part.group != "head"]
    assert g.cosine(below).isnan().all()
    assert g.cosine().isfinite().all()


def test_parts_name_group_and_layer():
    m = loaded("gpt2-mini")
    parts = {part.name: part for part in observe(m, pairs_of(m, FACTS[:1]), read={"gradients"}).gradients.parts}
    fused = [parts[f"blocks.1.attention.qkv.bias[{group}]"] for group in ("query", "key", "value")]
    assert [(p.group, p.layer, p.index, p.count) for p in fused] == [
        ("query", 1, 0, 3),
        ("key", 1, 1, 3),
        ("value", 1, 2, 3),
    ]
    tied = parts["embed_tokens.weight"]
    assert (tied.group, tied.layer, tied.count) == ("embedding", None, 1)
    assert "lm_head.weight" not in parts  # one parameter, counted once


def test_frozen_parameters_take_part_when_all_are_asked_for():
    free, frozen = loaded("radd absolute"), loaded("radd absolute")
    frozen.model.requires_grad_(False)
    frozen.model.blocks[1].requires_grad_(True)
    flags = {name: p.requires_grad for name, p in frozen.model.named_parameters()}
    pairs = pairs_of(free, FACTS[:3])
    want = observe(free, pairs, read={"gradients"}).gradients
    got = observe(frozen, pairs, read={"gradients"}, parameters="all").gradients
    assert got.parts == want.parts
    for column in ("inner", "forward_norm2", "reverse_norm2", "control_inner", "control_norm2"):
        torch.testing.assert_close(getattr(got, column), getattr(want, column), **EXACT, equal_nan=True)
    assert {name: p.requires_grad for name, p in frozen.model.named_parameters()} == flags
    some = observe(frozen, pairs, read={"gradients"}).gradients
    trainable = [k for k, part in enumerate(want.parts) if part.layer == 1]
    assert some.parts == tuple(want.parts[k] for k in trainable)
    torch.testing.assert_close(some.inner, want.inner[:, trainable], **EXACT)


def test_a_parameter_in_no_group_is_named():
    class Forgetful(Radd):
        groups = {pattern: group for pattern, group in Radd.groups.items() if group != "mlp"}  # noqa: RUF012

    m = loaded("radd rope", adapter=Forgetful)
    pairs = pairs_of(m, FACTS[:1])
    with pytest.raises(AdapterError, match=re.escape("'blocks.0.mlp.0.weight' is in no group")):
        observe(m, pairs, read={"gradients"})
    for block in m.model.blocks:  # what isn't asked for needs no group
        block.mlp.requires_grad_(False)
    assert observe(m, pairs, read={"gradients"}).gradients.inner.isfinite().all()
    with pytest.raises(AdapterError, match=re.escape("'blocks.0.mlp.0.weight' is in no group")):
        observe(m, pairs, read={"gradients"}, parameters="all")
    assert not m.model.blocks[0].mlp[0].weight.requires_grad


def test_no_trainable_parameter_is_an_error():
    m = loaded("radd rope")
    m.model.requires_grad_(False)
    with pytest.raises(UsageError, match="parameters='all'"):
        observe(m, pairs_of(m, FACTS[:1]), read={"gradients"})


# --- batches, twins, the caller's module ---


def tensors(found, prefix=""):
    """Every tensor of an observation, by path."""
    if isinstance(found, torch.Tensor):
        return {prefix: found}
    if is_dataclass(found):
        found = {field.name: getattr(found, field.name) for field in fields(found)}
    if isinstance(found, tuple):
        found = dict(enumerate(found))
    if not isinstance(found, dict):
        return {}
    return {k: t for key, value in found.items() for k, t in tensors(value, f"{prefix}/{key}").items()}


@pytest.mark.parametrize("name", ["radd one layer", "radd alibi", "gpt2-mini", "llama"])
def test_the_batch_size_changes_no_reading(name):
    m = loaded(name)
    pairs = pairs_of(m, FACTS[1:6])
    lengths = {len(q.input_ids) for p in pairs if p.unsupported is None for q in (p.forward, p.reverse)}
    assert len(lengths) > 2  # the batches are padded
    candidates = {"letters": CASES}
    read = {"scores", "log_probs", "alternatives"}
    single = tensors(observe(m, pairs, read=read, candidates=candidates, batch_size=1))
    assert {"/scores", "/readings/letters/0", "/alternatives"} <= set(single)
    for size in (3, 256):
        batched = tensors(observe(m, pairs, read=read, candidates=candidates, batch_size=size))
        assert set(batched) == set(single)
        for key, value in single.items():
            torch.testing.assert_close(batched[key], value, **EXACT, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", ["radd one layer", "radd absolute", "gpt2-mini", "llama"])
def test_the_batch_size_changes_no_gradient(name):
    m = loaded(name)
    pairs = pairs_of(m, [FACTS[i] for i in (1, 0, 2)])
    lengths = {len(q.input_ids) for p in pairs for q in (p.forward, p.reverse)}
    assert len(lengths) > 2  # the batches are padded
    single = observe(m, pairs, read={"gradients"}, batch_size=1).gradients
    assert single.control_inner.isfinite().any()
    for size in (3, 256):
        assert_same_products(observe(m, pairs, read={"gradients"}, batch_size=size).gradients, single)


def assert_same_products(got, want):
    assert torch.equal(got.partner, want.partner)
    for column in ("forward_norm2", "reverse_norm2", "control_norm2"):
        torch.testing.assert_close(getattr(got, column), getattr(want, column), rtol=1e-10, atol=1e-20, equal_nan=True)
    lengths = (want.forward_norm2 * want.reverse_norm2).sqrt()
    assert ((got.inner - want.inner).abs() <= 1e-10 * lengths + 1e-20).all()
    off = (got.control_inner - want.control_inner).abs()
    allowed = 1e-10 * (want.forward_norm2[:, None] * want.control_norm2).sqrt() + 1e-20
    assert (off <= allowed).logical_or(want.control_inner.isnan()).all()
    assert torch.equal(got.control_inner.isnan(), want.control_inner.isnan())


def test_more_pairs_than_a_block_holds():
    """Controls are found inside blocks, which batches keep whole: which block, and which batch, changes nothing."""
    m = loaded("radd one layer")
    names = ["".join(name) for name in itertools.product("abcdefghijklmnopqrstuv", repeat=2)]
    facts = [Fact(a, b, "{a}0{b}", "{b}0{a}") for a, b in zip(names[:40], names[100:140], strict=True)]
    pairs = pairs_of(m, facts)
    assert len(assign(pairs, 3).blocks) == 2
    single = observe(m, pairs, read={"gradients"}, batch_size=1, controls=3).gradients
    assert single.control_inner.isfinite().all()
    for size in (33, 256):
        assert_same_products(observe(m, pairs, read={"gradients"}, batch_size=size, controls=3).gradients, single)
    alone = observe(m, pairs[:1], read={"gradients"}, controls=3).gradients
    torch.testing.assert_close(alone.inner[0], single.inner[0], rtol=1e-9, atol=1e-16)


def test_the_order_of_pairs_is_kept():
    m = loaded("radd rope")
    pairs = pairs_of(m)
    found = observe(m, pairs, batch_size=2)
    back = observe(m, pairs[::-1], batch_size=2)
    assert back.pairs == tuple(pairs[::-1])
    assert back.excluded == {len(pairs) - 1 - UNASKED: found.excluded[UNASKED]}
    for key in ("scores", "log_weights", "log_probs"):
        torch.testing.assert_close(getattr(back, key).flip(0), getattr(found, key), **EXACT, equal_nan=True)


@EVERY
@pytest.mark.parametrize("scores", [True, False])
def test_capture_equals_its_twin(name, scores):
    m = loaded(name)
    batch = collate(m, [q for p in pairs_of(m) if p.unsupported is None for q in (p.forward, p.reverse)])
    traced, hooked = capture(m, batch, scores=scores), capture_with_hooks(m, batch, scores=scores)
    for field in fields(Captured):
        if field.name == "calls":  # what gradients tap
            assert not traced.calls
            assert not hooked.calls
            continue
        assert torch.equal(getattr(traced, field.name), getattr(hooked, field.name)), field.name
    layers, heads = m.config.num_hidden_layers, m.config.num_attention_heads
    assert traced.scores.shape == ((len(batch.rows), layers, heads, 1, 1) if scores else (len(batch.rows), 0, 0, 1, 1))


@EVERY
def test_capture_gradient_equals_its_twin(name):
    m = loaded(name)
    batch = collate(m, [q for p in pairs_of(m)[:3] for q in (p.forward, p.reverse)])
    stray = nn.Parameter(torch.ones(2).double())
    parameters = [*m.model.parameters(), stray]
    traced, hooked = capture_gradient(m, batch, parameters), gradient_with_hooks(m, batch, parameters)
    assert traced[-1] is None
    assert hooked[-1] is None
    for parameter, x, y in zip(parameters[:-1], traced, hooked, strict=False):
        assert torch.equal(x, y)
        assert x.shape == parameter.shape
        assert x.any()


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("radd alibi", "eager"), ("gpt2-mini", "sdpa"), ("llama", "sdpa")],
)
def test_the_callers_module_is_left_as_it_was(name, implementation):
    m, twin = loaded(name), loaded(name)
    for each in (m, twin):
        each.model.set_attn_implementation(implementation)
    model = m.model
    for part in (*model.modules(), model.config):
        for rate in {"dropout", "attention_dropout"} & set(vars(part)):
            setattr(part, rate, 0.5)
    model.train()
    model.get_input_embeddings().eval()
    model.get_output_embeddings().weight.requires_grad_(False)
    kept = torch.ones_like(next(model.parameters()))
    next(model.parameters()).grad = kept
    modes = {key: module.training for key, module in model.named_modules()}
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    values = {key: value.clone() for key, value in model.state_dict().items()}
    pairs = pairs_of(m, FACTS[:3])
    for parameters in ("trainable", "all"):
        read = {"scores", "log_probs", "gradients", "storage"}
        found = observe(m, pairs, read=read, parameters=parameters)
        assert {key: module.training for key, module in model.named_modules()} == modes
        assert {key: p.requires_grad for key, p in model.named_parameters()} == flags
        assert [key for key, p in model.named_parameters() if p.grad is not None] == [next(iter(flags))]
        assert torch.equal(kept, torch.ones_like(kept))
        assert model.config._attn_implementation == implementation
        assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
        assert torch.is_grad_enabled()
    clean = observe(twin, pairs, read=read)  # no dropout there
    for key, value in tensors(clean).items():
        torch.testing.assert_close(tensors(found)[key], value, **EXACT, equal_nan=True, msg=key)


def test_the_module_still_runs_and_can_be_copied():
    m = loaded("radd rope")
    ids = torch.tensor([[1, 2, 3, MASK]])
    with torch.no_grad():
        before = m.model(ids).logits
        observe(m, pairs_of(m, FACTS[:2]), read={"scores", "gradients"})
        assert torch.equal(m.model(ids).logits, before)
        twin = copy.deepcopy(m.model)
        twin.embed_tokens.weight.zero_()
        assert not torch.equal(twin(ids).logits, before)
        assert torch.equal(m.model(ids).logits, before)


def test_an_error_inside_leaves_the_module_as_it_was():
    m = loaded("radd rope")
    m.model.train()
    m.model.blocks[0].requires_grad_(False)
    query = replace(pairs_of(m)[0].forward, input_ids=(1, 2, 3, 10_000, 4, 5))  # no such row in the embedding
    pair = replace(pairs_of(m)[0], forward=query)
    for read in ({"scores"}, {"gradients"}):
        with pytest.raises(IndexError):
            observe(m, [pair], read=read, parameters="all")
        assert all(module.training for module in m.model.modules())
        assert not any(p.requires_grad for p in m.model.blocks[0].parameters())
        assert torch.is_grad_enabled()


# --- what can't be read ---


def test_what_was_not_asked_for_is_none():
    m = loaded("radd rope")
    some = pairs_of(m, FACTS[:2])
    found = observe(m, some, read={"log_probs"})
    assert found.log_probs.isfinite().all()
    assert (found.scores, found.log_weights, found.attendable, found.gradients, found.storage) == (None,) * 5
    found = observe(m, some, read={"storage"})
    assert found.storage.isfinite().all()
    assert (found.log_probs, found.readings, found.gradients) == (None,) * 3


def test_memory_that_runs_out_after_a_batch_was_read_mixes_nothing_up(monkeypatch):
    m = loaded("radd rope")
    pairs = pairs_of(m)
    want = observe(m, pairs, read={"scores", "log_probs", "alternatives"})
    real, calls = gradients.output_gradients, []

    def short(*args, **others):
        calls.append(None)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no more")
        return real(*args, **others)

    monkeypatch.setattr(gradients, "output_gradients", short)
    found = observe(m, pairs, read={"scores", "log_probs", "alternatives", "gradients"}, batch_size=1000)
    assert len(calls) > 4
    for key in ("scores", "log_weights", "log_probs", "alternatives"):
        torch.testing.assert_close(getattr(found, key), getattr(want, key), **EXACT, equal_nan=True)


def test_facts_that_ask_the_same_keep_their_own_rows():
    m = loaded("radd rope")
    twice = [*FACTS[:1], *FACTS[2:4], FACTS[0], *FACTS[4:5]]
    pairs = pairs_of(m, twice)
    found = observe(m, pairs, read={"scores", "log_probs", "gradients"})
    want = observe(m, pairs, read={"scores", "log_probs"}, batch_size=1)
    for key in ("scores", "log_weights", "log_probs"):
        torch.testing.assert_close(getattr(found, key), getattr(want, key), **EXACT, equal_nan=True)


def test_an_unknown_reading_or_no_pairs():
    m = loaded("radd rope")
    with pytest.raises(
        DataError,
        match="'colours' is none of alternatives, answers, gradients, knockout, log_probs, scores, span_scores, ",
    ):
        observe(m, pairs_of(m), read={"scores", "colours"})
    with pytest.raises(DataError, match="no pairs"):
        observe(m, [])


def test_storage_needs_a_circuit():
    class Closed(Radd):
        ov_circuit = None

    m = loaded("radd rope", adapter=Closed)
    with pytest.raises(CaptureError, match="declares no ov_circuit"):
        observe(m, pairs_of(m), read={"storage"})


@EVERY
def test_unsupported_pairs_keep_their_row_and_reason(name):
    m = loaded(name)
    pairs = pairs_of(m)
    found = observe(m, pairs, read={"scores", "log_probs", "gradients", "storage"}, controls=3)
    assert set(found.excluded) == {UNASKED}
    assert "the tokenizer can't read it" in found.excluded[UNASKED]
    assert not found.attendable[UNASKED].any()
    assert not found.saturated[UNASKED].any()
    assert (found.gradients.partner[UNASKED] == -1).all()
    rest = [i for i in range(len(pairs)) if i != UNASKED]
    for key, value in tensors(found).items():
        if key in ("/attendable", "/saturated", "/gradients/partner"):
            continue
        assert value[UNASKED].isnan().all(), key
        if "control" not in key and key != "/storage_mismatched":
            assert value[rest].isfinite().all(), key
    assert UNASKED not in found.gradients.partner[rest]


def test_an_observation_of_unsupported_pairs_alone_is_rows_of_nan():
    m = loaded("gpt2-mini")
    pairs = encode(m, [Fact("a", "B", "0{a}0{b}", "{b}0{a}")] * 3, "same_target")
    found = observe(m, pairs, read={"scores", "log_probs", "gradients"})
    assert all("a causal model can't see evidence" in found.excluded[i] for i in range(len(pairs)))
    assert found.log_probs.shape == (len(pairs), 2)
    assert found.log_probs.isnan().all()
    assert found.scores.isnan().all()
    assert found.gradients.inner.isnan().all()


@pytest.mark.parametrize("name", ["radd rope", "radd absolute", "llama"])
def test_a_broken_embedding_row_takes_out_the_pairs_that_use_it(name):
    clean, broken = loaded(name), loaded(name)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[ALPHABET.index("F")] = torch.nan  # of the fact de – F alone
    facts = FACTS[:5]
    pairs = pairs_of(clean, facts)
    read = {"scores", "log_probs", "gradients"}
    want, found = observe(clean, pairs, read=read), observe(broken, pairs, read=read)
    gone = [i for i, pair in enumerate(pairs) if facts[pair.fact].b == "F"]
    assert set(found.excluded) == set(gone)
    assert "non-finite attention score at layer 0" in found.excluded[gone[0]]
    rest = [i for i in range(len(pairs)) if i not in gone]
    for key, value in tensors(found).items():
        if key in ("/attendable", "/saturated") or "control" in key or "partner" in key:
            continue
        assert value[gone].isnan().all(), key
        # a target of one letter has no alternative here
        torch.testing.assert_close(value[rest], tensors(want)[key][rest], **EXACT, equal_nan=True, msg=key)
    # controls are drawn from what is left
    assert not torch.isin(found.gradients.partner, torch.tensor(gone)).any()
    asked_for = found.gradients.partner >= 0
    assert asked_for[rest].any()
    assert found.gradients.control_inner[asked_for].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["radd absolute", "llama"])
def test_a_broken_embedding_row_spoils_no_other_gradient(name, value):
    """Asked for gradients alone, nothing has been excluded before them."""
    clean, broken = loaded(name), loaded(name)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[ALPHABET.index("F")] = value
    pairs = pairs_of(clean, FACTS[:4])
    want, found = (observe(m, pairs, read={"gradients"}) for m in (clean, broken))
    gone = next(i for i, pair in enumerate(pairs) if pair.forward.text.count("F"))
    assert set(found.excluded) == {gone}
    assert "non-finite gradient of " in found.excluded[gone]
    rest = [i for i in range(len(pairs)) if i != gone]
    for column in ("inner", "forward_norm2", "reverse_norm2"):
        assert getattr(found.gradients, column)[gone].isnan().all()
        torch.testing.assert_close(
            getattr(found.gradients, column)[rest], getattr(want.gradients, column)[rest], rtol=1e-9, atol=1e-18
        )


def test_a_broken_row_that_is_not_evidence_is_found_by_the_log_probability():
    m = loaded("radd one layer")
    with torch.no_grad():
        m.model.embed_tokens.weight[ALPHABET.index("z")] = torch.nan
    facts = [Fact("a", "B", "{a}0{b}0z", "{b}0{a}"), Fact("c", "D", "{a}0{b}0y", "{b}0{a}")]
    found = observe(m, pairs_of(m, facts))
    assert found.excluded == {0: "non-finite log-probability"}
    assert found.scores[0].isnan().all()
    assert found.log_probs[1].isfinite().all()
    assert found.scores[1].isfinite().all()


class Wall(Encoding):
    """No token sees another at distance 3."""

    def bias(self, length):
        position = torch.arange(length)
        distance = (position[:, None] - position).abs()
        return torch.zeros(length, length).masked_fill(distance == 3, -torch.inf).expand(1, 2, -1, -1)


def test_a_bias_that_hides_evidence_is_no_broken_score():
    model = weights("radd rope")
    model.encoding = Wall(16, 2, 32)
    m = loaded("radd rope", model)
    facts = [Fact("a", "B", "{a}00{b}0", "{b}0{a}"), Fact("c", "D", "{a}0{b}00", "{b}0{a}")]
    found = observe(m, pairs_of(m, facts))
    assert not found.excluded
    assert not found.attendable[0, 0].any()
    assert found.attendable[0, 1].all()
    assert found.attendable[1].all()
    assert found.scores.isfinite().all()
    assert (found.log_weights[0, 0] == -torch.inf).all()
    assert found.log_probs.isfinite().all()


def test_an_undefined_bias_takes_its_pair_out():
    class Broken(Wall):
        def bias(self, length):
            return super().bias(length) * 0.0  # 0·∞

    model = weights("radd rope")
    model.encoding = Broken(16, 2, 32)
    facts = [Fact("a", "B", "{a}00{b}0", "{b}0{a}")]
    m = loaded("radd rope", model)
    found = observe(m, pairs_of(m, facts), read={"scores"})
    assert found.excluded == {0: "non-finite attention score at layer 0"}


def test_an_infinite_score_takes_its_pair_out():
    m = loaded("radd rope", weights("radd rope"))
    with torch.no_grad():
        m.model.embed_tokens.weight[m.tokenizer.convert_tokens_to_ids("B")] = torch.inf
    facts = [Fact("a", "B", "{a}00{b}0", "{b}0{a}"), Fact("c", "D", "{a}0{b}00", "{b}0{a}")]
    found = observe(m, pairs_of(m, facts))
    assert found.excluded == {0: "non-finite attention score at layer 0"}
    assert found.scores[0].isnan().all()
    assert found.log_weights[0].isnan().all()
    assert found.log_probs[0].isnan().all()
    assert found.scores[1].isfinite().all()
    assert found.log_probs[1].isfinite().all()


class BreakGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, broken):
        ctx.save_for_backward(broken)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (broken,) = ctx.saved_tensors
        return gradient.masked_fill(broken[..., None], torch.inf), None


class Fragile(Encoding):
    """No position; the gradient of one token's embedding is lost on its way back."""

    broken = None

    def embed(self, x):
        return x if self.broken is None else BreakGradient.apply(x, (x == self.broken).all(-1))


def test_a_non_finite_gradient_takes_its_pair_out():
    clean, broken = loaded("radd rope"), loaded("radd rope")
    for m in (clean, broken):
        m.model.encoding = Fragile(16, 2, 32)
    broken.model.encoding.broken = broken.model.embed_tokens.weight[ALPHABET.index("F")].detach().clone()
    facts = FACTS[:5]
    pairs = pairs_of(clean, facts)
    read = {"scores", "log_probs", "gradients"}
    want, found = observe(clean, pairs, read=read), observe(broken, pairs, read=read)
    gone = next(i for i, pair in enumerate(pairs) if facts[pair.fact].b == "F")
    assert found.excluded == {gone: "non-finite gradient of embed_tokens.weight"}
    assert found.gradients.inner[gone].isnan().all()
    assert found.gradients.control_inner[gone].isnan().all()
    rest = [i for i in range(len(pairs)) if i != gone]
    for key in ("inner", "forward_norm2", "reverse_norm2"):
        torch.testing.assert_close(getattr(found.gradients, key)[rest], getattr(want.gradients, key)[rest], **EXACT)
    torch.testing.assert_close(found.log_probs, want.log_probs)  # those are sound
