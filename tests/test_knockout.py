"""Knocked-out attention against a second computation: attention written out, one unpadded prompt at a time."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from conformance.families import FACTS as STATEMENTS
from conformance.families import FAMILIES, build
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import rcprobe
from rcprobe.errors import CaptureError
from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel
from rcprobe.metrics import resolve_metrics
from rcprobe.probing import knockout
from rcprobe.probing.knockout import control_tokens, knock_out, passes
from rcprobe.queries import encode
from rcprobe_plugins.datasets.characters import character_tokenizer
from rcprobe_plugins.models.gpt2_mini import Gpt2Mini
from rcprobe_plugins.models.llama import Llama
from rcprobe_plugins.models.radd import Radd

ALPHABET = "0abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
MODELS = {
    "radd rope": (Radd, {"encoding": "rope", "depth": 2}),
    "radd alibi": (Radd, {"encoding": "alibi", "depth": 2}),
    "gpt2-mini": (Gpt2Mini, {"depth": 2}),
    "llama, grouped": (Llama, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "llama": (Llama, {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 3}),
}
EVERY = pytest.mark.parametrize("name", MODELS)
EXACT = {"rtol": 0, "atol": 1e-10, "equal_nan": True}
FACTS = (
    rcprobe.Fact("ab", "C", "xy{a}00{b}0", "{b}0{a}uv"),
    rcprobe.Fact("m", "NOP", "0w{a}000{b}", "zv0u{b}00{a}0000"),
    rcprobe.Fact("q", "RS", "{a}{b}", "{b}{a}"),  # nothing else in the prompt: no control
)
BY_HAND = "by hand"


@cache
def model_of(name):
    family, options = MODELS[name]
    torch.manual_seed(0)
    model = family.build({**family.tiny, **options, "alphabet": ALPHABET}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    tokenizer = character_tokenizer(ALPHABET, mask=family.objective == "masked")
    return LoadedModel(model.eval(), family(), tokenizer, name)


def pairs_of(m, facts=FACTS):
    return encode(m, facts, "same_target" if m.adapter.objective == "masked" else "swapped")


def queries_of(m):
    return [query for pair in pairs_of(m) for query in (pair.forward, pair.reverse)]


@cache
def swept(name):
    m = model_of(name)
    return knock_out(m, queries_of(m), 30)


# --- the second computation ---


def attention_with_a_mask_added(masks):
    """An attention function that adds ``masks[layer]`` [H, L, L] to the scores and writes everything out."""

    def attend(module, query, key, value, attention_mask, scaling=1.0, position_bias=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = torch.einsum("bhid,bhjd->bhij", query, key) * scaling
        if position_bias is not None:
            scores = scores + position_bias
        if module.is_causal:
            scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
        scores = scores + masks[module.layer_idx]
        weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
        return torch.einsum("bhij,bhjd->bihd", weights, value), weights

    return attend


@torch.no_grad()
def log_prob(m, query, tokens=(), layers=(), heads=()):
    """log p of the target where the rows can't see ``tokens`` in the given layers and heads."""
    config, length = m.model.config, len(query.input_ids)
    depth, width = config.num_hidden_layers, config.num_attention_heads
    masks = torch.zeros(depth, width, length, length, dtype=torch.float64)
    for layer in layers:
        for head in heads:
            for row in query.rows:
                masks[layer, head, row, list(tokens)] = -torch.inf
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(BY_HAND, attention_with_a_mask_added(masks))
    config._attn_implementation = BY_HAND
    try:
        logits = m.model(torch.tensor([query.input_ids]), use_cache=False).logits[0, list(query.rows)]
    finally:
        config._attn_implementation = before
    if m.mask_id is not None:
        logits[:, m.mask_id] = -torch.inf
    return logits.log_softmax(-1)[range(len(query.rows)), query.target_ids].sum()


@EVERY
def test_falls_equal_those_of_attention_written_out(name):
    m, found = model_of(name), swept(name)
    config = m.model.config
    layers, heads = range(config.num_hidden_layers), range(config.num_attention_heads)
    assert found.heads.shape == (6, 2, len(layers), len(heads))
    moved = 0
    for i, query in enumerate(queries_of(m)):
        whole = log_prob(m, query)
        for kind, tokens in enumerate((query.evidence_positions, control_tokens(m, query))):
            if not tokens:
                assert found.everywhere[i, 1].isnan()
                assert found.heads[i, 1].isnan().all()
                continue
            everywhere = whole - log_prob(m, query, tokens, layers, heads)
            torch.testing.assert_close(found.everywhere[i, kind], everywhere, **EXACT)
            for layer in layers:
                one = whole - log_prob(m, query, tokens, [layer], heads)
                torch.testing.assert_close(found.layers[i, kind, layer], one, **EXACT)
                for head in heads:
                    one = whole - log_prob(m, query, tokens, [layer], [head])
                    torch.testing.assert_close(found.heads[i, kind, layer, head], one, **EXACT)
                    moved += abs(one) > 1e-6
    assert moved > 10


@EVERY
def test_falls_depend_on_neither_batch_nor_padding(name):
    m, found = model_of(name), swept(name)
    for i, size in ((0, 64), (3, 1 if name == "llama" else 5)):
        alone = knock_out(m, queries_of(m)[i : i + 1], size)
        for part in ("everywhere", "layers", "heads"):
            torch.testing.assert_close(getattr(alone, part)[0], getattr(found, part)[i], **EXACT)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_knocked_out(name):
    m = build(name, FAMILIES[name].ties[0], torch.float32)
    pairs = encode(m, STATEMENTS[2:], "swapped")
    found = knock_out(m, [query for pair in pairs for query in (pair.forward, pair.reverse)], 40)
    assert found.heads.shape[1:] == (2, 1 if name == "qwen3.5" else 2, 4)
    assert found.everywhere[:, 0].isfinite().all()
    assert found.everywhere[:, 1].isfinite().any()
    assert (found.heads[:, 0, -1].abs() > 1e-7).any(dim=0).all()  # each head of the last layer is really cut


# --- the control ---


def located(rows, evidence, length, ids=None):
    return Query("forward", "", "", "", ids or (1,) * length, (1,) * len(rows), rows, evidence)


@pytest.mark.parametrize(
    ("rows", "evidence", "length", "chosen"),
    [
        ((4,), (6,), 9, (2,)),  # as far, on the other side
        ((4,), (2,), 9, (6,)),
        ((1,), (4,), 9, (3,)),  # the other side has 0 alone, farther off; of 3 and 5 the one further left
        ((4,), (6, 7), 9, (2, 1)),
        ((3, 4), (0,), 9, (6,)),
        ((0,), (1,), 2, ()),
    ],
)
def test_the_control_is_the_nearest_in_distance(rows, evidence, length, chosen):
    m = model_of("radd rope")
    found = control_tokens(m, located(rows, evidence, length))
    assert found == chosen


def test_the_control_is_no_mask_no_special_token_and_nothing_unseen():
    masked, causal = model_of("radd rope"), model_of("gpt2-mini")
    ids = (1, 1, masked.mask_id, 1, 1, 1, 1)
    assert control_tokens(masked, located((4,), (6,), 7, ids)) == (1,)
    assert control_tokens(causal, located((3,), (2,), 6)) == (1,)  # 4 is as far away, and not to be seen
    tokenizer = type("WithEnds", (), {"bos_token_id": 9, "eos_token_id": None})()
    begun = replace(causal, tokenizer=tokenizer)
    assert control_tokens(begun, located((3,), (1,), 4, (9, 1, 1, 1))) == (2,)
    assert control_tokens(begun, located((3,), (1,), 4, (1, 1, 9, 1))) == ()


def test_the_first_token_of_a_causal_model_draws_attention_whatever_it_is():
    masked, causal = model_of("radd rope"), model_of("gpt2-mini")
    assert control_tokens(causal, located((2,), (1,), 3)) == ()  # no control
    assert control_tokens(causal, located((4,), (0,), 5)) == ()  # nothing is like it
    assert control_tokens(causal, located((5,), (0, 1), 6)) == ()
    assert control_tokens(masked, located((2,), (1,), 3)) == (0,)


# --- what can't be cut ---


def test_a_row_that_is_left_with_nothing_has_no_value():
    m = model_of("gpt2-mini")
    query = queries_of(m)[5]  # RSq: the row stands on the evidence, and sees nothing else
    assert query.row in query.evidence_positions
    assert swept("gpt2-mini").everywhere[5].isnan().all()
    assert not swept("gpt2-mini").everywhere[:4, 0].isnan().any()


def test_a_window_that_hides_the_evidence_has_no_value():
    m = build("gemma3", True)
    pair = encode(m, STATEMENTS[:1], "swapped")[0]
    found = knock_out(m, [pair.forward], 40)
    assert found.layers[0, 0, 0].isnan()  # a window of 4 tokens
    assert found.heads[0, 0, 0].isnan().all()
    assert found.layers[0, 0, 1].isfinite()
    assert found.everywhere[0, 0].isfinite()


def test_attention_that_is_not_seen_is_refused_by_name(monkeypatch):
    m = model_of("llama")
    monkeypatch.setattr("rcprobe.probing.cut.SOFTMAX", ())
    m.model.set_attn_implementation("eager")
    try:
        with pytest.raises(CaptureError, match=r"llama: 0 of 3 attention calls were seen.*'eager'.*load the model"):
            knock_out(m, queries_of(m)[:1], 4)
    finally:
        m.model.set_attn_implementation("sdpa")


# --- through observe, the metric and its judgement ---


def test_pairs_that_cannot_be_asked_have_no_value():
    m = model_of("gpt2-mini")
    facts = [FACTS[0], rcprobe.Fact("é", "Z", "{a}0{b}", "{b}0{a}")]
    seen = rcprobe.observe(m, encode(m, facts, "swapped"), read={"knockout"}, batch_size=5)
    torch.testing.assert_close(seen.knockout.everywhere[0], swept("gpt2-mini").everywhere[:2], **EXACT)
    assert seen.knockout.everywhere[1].isnan().all()
    backwards = rcprobe.observe(m, encode(m, facts, "same_target"), read={"knockout"})  # nothing can be asked
    assert backwards.knockout.everywhere.isnan().all()
    assert len(backwards.excluded) == 2


@EVERY
def test_the_metric_gives_what_was_read(name):
    m = model_of(name)
    metric = resolve_metrics(["route_knockout"])[0]
    assert metric.check
    assert metric.on_request
    columns = metric.measure(rcprobe.observe(m, pairs_of(m), read=set(metric.reads), batch_size=9))
    found = swept(name)
    for way in (0, 1):
        for kind in (0, 1):
            column = f"{('forward', 'reverse')[way]} {('evidence', 'control')[kind]}"
            same = {"actual": torch.tensor(columns[column]), "expected": found.everywhere[way::2, kind]}
            torch.testing.assert_close(**same, **EXACT)
            torch.testing.assert_close(
                torch.tensor(columns[f"{column} layer 1"]), found.layers[way::2, kind, 1], **EXACT
            )
            torch.testing.assert_close(torch.tensor(columns[f"{column} by head"]), found.heads[way::2, kind], **EXACT)


def test_passes_are_counted(monkeypatch):
    m, run, prompts = model_of("llama"), knockout._run, []
    monkeypatch.setattr(
        knockout, "_run", lambda m, queries, cuts: prompts.append(len(queries)) or run(m, queries, cuts)
    )
    knock_out(m, queries_of(m)[:1], 4)
    assert prompts[0] == 1  # to see how many layers and heads there are
    assert sum(prompts[1:]) == passes((3, 2)) == 3 + 2 * 3 + 2 * 3 * 2
    assert max(prompts) == 4
    assert passes((1, 1)) == 3
    assert passes((1, 4)) == 3 + 2 * 4
    assert passes((3, 1)) == 3 + 2 * 3
