"""What `plugins check` tells of encodings, datasets, metrics and decoders: of good ones and of each way to be wrong."""

import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_cli import call, refused

import rcprobe
from rcprobe import contracts
from rcprobe.contracts import CHECKS, check, check_dataset, check_decoder, check_encoding, check_metric
from rcprobe.errors import PluginError
from rcprobe.plugins import registry

FACTS = tuple(rcprobe.Fact(a, b, "{a} of {b}", "{b} has {a}") for a, b in (("Oslo", "Norway"), ("Rome", "Italy")))


def wrong(found):
    """The failed checks: name → what was seen."""
    return {one.name: one.seen for one in found if one.passed is False}


@pytest.mark.parametrize("entry", [e for e in registry().entries if e.kind != "models"], ids=lambda e: e.name)
def test_everything_bundled_keeps_its_contract(entry):
    found = CHECKS[entry.kind](entry.name)
    assert found
    assert not wrong(found)
    reads_files = entry.kind == "datasets" and entry.name not in ("letters", "capitals", "elements")
    assert any(one.passed for one in found) != reads_files


# --- datasets ---


def twice(first, second):
    """A function that gives one dataset, then another, and so on."""
    turns = itertools.cycle((first, second))
    return lambda: next(turns)


DATA = rcprobe.Dataset("good", FACTS)
BAD_DATASETS = {
    "takes anything": (lambda **options: DATA, "options", "takes any option (options)"),
    "gives facts alone": (lambda: FACTS, "facts", "gave a tuple, not an rcprobe.Dataset"),
    "changes": (twice(DATA, rcprobe.Dataset("good", FACTS[:1])), "repeatable", "other facts"),
    "forgets candidates": (
        lambda: rcprobe.Dataset("bad", FACTS, readings={"cities": (("Oslo", "Rome"),)}),
        "readings",
        "cities: 'Norway' is among no candidates",
    ),
    "misplaces a slot": (
        lambda: rcprobe.Dataset("bad", (rcprobe.Fact("a", "b", "{b} {a}", "{b} {a}"),)),
        "dataset",
        "put {a}",
    ),
    "holds half a character": (
        lambda: rcprobe.Dataset("bad", (*FACTS, rcprobe.Fact("\ud800", "b", "{a} {b}", "{b} {a}"))),
        "queries",
        "1 of 3 pairs can't be asked of a causal model (swapped): forward query, the tokenizer can't read it",
    ),
    "raises": (lambda: {}["no"], "dataset", "KeyError: 'no'"),
    "is empty": (lambda: rcprobe.Dataset("bad", ()), "dataset", "is empty"),
}


@pytest.mark.parametrize(("make", "name", "words"), BAD_DATASETS.values(), ids=BAD_DATASETS)
def test_what_is_wrong_with_a_dataset(make, name, words):
    assert words in wrong(check_dataset(make))[name]


def test_a_dataset_that_needs_something_is_not_judged():
    (found,) = check_dataset(lambda path: DATA)
    assert found.passed is None
    assert "can't be made without path" in found.seen


# --- metrics ---


def metric_of(function, **declared):
    return rcprobe.metric(**{"reads": {"log_probs"}, **declared})(function)


def fine(seen):
    return seen.log_probs[:, 0]


def drawn(seen):
    return seen.log_probs[:, 0] + torch.rand(len(seen.pairs))


def zero_for_undefined(seen):
    return seen.log_probs[:, 0].nan_to_num()


def one_number(seen):
    return seen.log_probs.mean()


def infinite(seen):
    return seen.log_probs[:, 0] / 0


def unread(seen):
    return seen.scores[:, 0]


def array(seen):
    return seen.log_probs[:, 1].numpy()


def raising(seen):
    return {}["no"]


BAD_METRICS = {
    "raises": (metric_of(raising), "metric", "KeyError at test_contracts.py:"),
    "reads what isn't": (metric_of(fine, reads={"log_prob"}), "reads", "'log_prob', which is none of a"),
    "draws": (metric_of(drawn), "repeatable", "measured twice, other values"),
    "makes up": (metric_of(zero_for_undefined), "undefined", "column 'value' has a number for a pair that couldn't"),
    "gives one number": (metric_of(one_number), "metric", "has shape (); it needs one value a pair"),
    "is infinite": (metric_of(infinite), "metric", "infinite value"),
    "reads what it didn't declare": (metric_of(unread), "metric", "what its reads ("),
    "judges what it doesn't give": (
        metric_of(fine, conditions=(rcprobe.Condition("gain", "mean", ("gain",), 0.0, "nats"),)),
        "metric",
        "a condition needs column 'gain'",
    ),
    "gives an array": (metric_of(array), "metric", "column 'value' is a ndarray; return tensors"),
}


@pytest.mark.parametrize(("metric", "name", "words"), BAD_METRICS.values(), ids=BAD_METRICS)
def test_what_is_wrong_with_a_metric(metric, name, words):
    assert words in wrong(check_metric(metric))[name]


def test_a_metric_is_registered_under_the_name_of_its_function():
    assert (
        "registered as 'other', and its results are called 'fine'"
        in wrong(check_metric(metric_of(fine), "other"))["name"]
    )


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (("correlation", ("a",)), "columns is ('a',); a correlation takes a tuple of 2 names"),
        (("mean", ("a", "b", "c")), "a mean takes a tuple of 1 or 2 names"),
        (("mean", "value"), "columns is 'value'"),
        (("median", ("a",)), "statistic is 'median'; use mean, effect_size, correlation"),
    ],
)
def test_a_condition_that_cannot_be_judged_is_refused_where_it_is_written(condition, told):
    with pytest.raises(PluginError, match=re.escape(told)):
        rcprobe.Condition("one", *condition, 0.0, "nats")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"conditions": rcprobe.Condition("one", "mean", ("value",), 0.0, "nats")},
            "it needs a tuple of rcprobe.Condition",
        ),
        ({"pairing": "same"}, "pairing is 'same'; use same_target or swapped"),
    ],
)
def test_a_metric_is_refused_where_it_is_written(given, told):
    with pytest.raises(PluginError, match=re.escape(told)):
        metric_of(fine, **given)


def test_without_a_small_model_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(contracts, "_tiny", lambda: None)
    (found,) = check_metric(metric_of(fine))
    assert found.passed is None


# --- encodings ---


class Plain(rcprobe.Encoding):
    reads_distance_only, values_carry_position = False, False

    def __init__(self, width, heads, max_length):
        super().__init__(width, heads, max_length)
        self.table = torch.randn(max_length, width)

    def embed(self, x):
        return x + self.table[: x.shape[1]].to(x)


class Undeclared(rcprobe.Encoding):
    reads_distance_only = True


class OtherwiseDeclared(rcprobe.Encoding):
    reads_distance_only, values_carry_position = False, False


class OneHead(rcprobe.Encoding):
    reads_distance_only, values_carry_position = False, False

    def bias(self, length):
        return torch.arange(length).expand(1, 1, length, length).clone().triu()


class WithoutDefault(OtherwiseDeclared):
    def __init__(self, width, heads, max_length, slope):
        super().__init__(width, heads, max_length)


BAD_ENCODINGS = {
    Undeclared: ("encoding", "lacks a declaration: set values_carry_position"),
    OtherwiseDeclared: ("behaviour", "it declares reads_distance_only = False, but a mirrored sequence gives"),
    OneHead: ("behaviour", "heads 2: bias gives shape (1, 1, 16, 16)"),
    WithoutDefault: ("encoding", "its option 'slope' needs a default"),
    Plain: ("state", "would have another encoding: keep what is drawn in a parameter or a buffer"),
}


@pytest.mark.parametrize("kind", BAD_ENCODINGS)
def test_what_is_wrong_with_an_encoding(kind):
    name, words = BAD_ENCODINGS[kind]
    assert words in wrong(check_encoding(kind))[name]


# --- decoders ---

BAD_DECODERS = {
    "commits nothing": (
        lambda state: torch.tensor([], dtype=torch.long),
        "choice",
        "it chose []; it needs one or more",
    ),
    "commits twice": (lambda state: torch.tensor([0, 0]), "choice", "it chose [0, 0]"),
    "commits elsewhere": (lambda state: state.positions[-1:] + 1, "choice", "it chose [1]"),
    "draws elsewhere": (
        lambda state: torch.randperm(len(state.positions))[:1],
        "repeatable",
        "draw from the state's generator alone",
    ),
    "changes the tokens": (
        lambda state: state.tokens.fill_(9) * 0 + torch.arange(len(state.tokens)),
        "state",
        "changed",
    ),
    "wants attention": (lambda state: state.attention.sum((0, 1, 2)).topk(1).indices, "decoder", "AttributeError"),
}


@pytest.mark.parametrize(("choose", "name", "words"), BAD_DECODERS.values(), ids=BAD_DECODERS)
def test_what_is_wrong_with_a_decoder(choose, name, words):
    torch.manual_seed(0)
    assert words in wrong(check_decoder(rcprobe.decoder()(choose)))[name]


def test_a_decoder_that_declares_attention_gets_it():
    @rcprobe.decoder(attention=True)
    def attended(state):
        return state.attention.sum((0, 1, 2)).topk(1).indices

    assert not wrong(check_decoder(attended))


# --- how it is asked ---


def test_a_name_of_several_kinds_is_checked_as_each(monkeypatch):
    names = registry()
    twin = replace(names.entry("decoders", "sequential"), name="rope")
    monkeypatch.setattr(names, "entries", [*names.entries, twin])
    assert list(check("rope")) == ["encodings", "decoders"]
    told = call("plugins", "check", "rope").out
    assert "rope (encoding): every check" in told
    assert "rope (decoder): every check" in told


def test_the_command_tells_kind_and_check_and_fails_with_them(monkeypatch):
    done = call("plugins", "check", "alibi")
    assert done.code is None
    assert done.out.startswith(
        "alibi: every check that applies passed\n  ok     declarations: both are made; options: slope"
    )
    rows = json.loads(call("plugins", "check", "sequential", "--json").out)
    assert {row["kind"] for row in rows} == {"decoders"}
    assert call("plugins", "check", "table").out.startswith("table: nothing could be checked\n  –      facts: it can't")
    monkeypatch.setattr("rcprobe_plugins.encodings.alibi.Alibi.reads_distance_only", False)
    done = call("plugins", "check", "alibi")
    assert done.code == 1
    assert "wrong  behaviour: heads 1: it declares reads_distance_only = False" in done.out
    assert "'alibi'" in refused("plugins", "check", "alibbi")


class Unbuilt(registry().get("models", "radd")):
    """A family that can't be built."""

    @classmethod
    def build(cls, options):
        """Fail."""
        raise RuntimeError("its files are gone")


class Unrun(registry().get("models", "radd")):
    """A family that is built and can't be run."""

    @classmethod
    def build(cls, options):
        """Give what takes no tokens."""
        model = super().build(options)
        model.forward = lambda *_, **__: 1 / 0
        return model


def test_a_strangers_broken_models_fail_nobody_elses_plugin(monkeypatch):
    families = {"gone": None, "unbuilt": Unbuilt, "unrun": Unrun, "radd": registry().get("models", "radd")}

    def checked(kind, name, wanted):
        if families[name] is None:
            raise PluginError("no such module")
        return families[name]

    fake = SimpleNamespace(names=lambda kind: list(families), checked=checked)
    monkeypatch.setattr(contracts, "registry", lambda: fake)
    found = check_metric(registry().get("metrics", "reverse_probability"))
    assert not wrong(found)
    assert any(one.passed for one in found)
