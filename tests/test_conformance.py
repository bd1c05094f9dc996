"""What `plugins check` tells of good adapters, and of each way in which one can be wrong."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rcprobe import cli, conformance, pytest_plugin
from rcprobe.adapter import Adapter
from rcprobe.conformance import check_adapter, random_pairs, report, tiny_model
from rcprobe.controls import assign
from rcprobe.errors import AdapterError
from rcprobe.plugins import registry
from rcprobe.probing import agreement
from rcprobe.probing.gradients import gradient_products
from rcprobe_plugins.models.gpt2 import Gpt2
from rcprobe_plugins.models.llada import Llada
from rcprobe_plugins.models.masked_lm import MaskedLm
from rcprobe_plugins.models.qwen import Qwen

HYBRID = {
    **Qwen.tiny_config,
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MODERN = {
    **MaskedLm.tiny_config,
    "architectures": ["ModernBertForMaskedLM"],
    "model_type": "modernbert",
    "layer_types": ["full_attention", "sliding_attention"],
    "local_attention": 32,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
}


def wrong(family):
    """The failed checks of a family: name → what was seen."""
    return {check.name: check.seen for check in check_adapter(family) if check.passed is False}


@pytest.mark.parametrize("name", registry().names("models"))
def test_every_bundled_adapter_passes(name):
    found = check_adapter(registry().get("models", name))
    assert not [check for check in found if check.passed is False]
    applied = {check.name for check in found if check.passed}
    assert applied >= {"groups", "attention", "padding", "scores", "gradient products against two backward passes"}


@pytest.mark.parametrize(("family", "config"), [(Qwen, HYBRID), (MaskedLm, MODERN)])
def test_a_hybrid_and_one_with_windows_pass_too(family, config):
    assert not wrong(family.variant({"tiny_config": config}))


def causal_config(raw):
    config = Llada.config(raw)
    config.is_causal = True
    return config


BROKEN = [
    ({"attention": "causal"}, ["attention"], "it declares causal attention, but changing the last token"),
    ({"config": staticmethod(causal_config)}, ["attention"], "it declares full attention, but changing the last"),
    ({"tiny_config": {**Llada.tiny_config, "mask_token_id": 48}}, ["mask"], "48 is outside the embedding"),
    ({"tiny_config": {**Llada.tiny_config, "mask_token_id": 0}}, ["mask"], "0 is also the padding id"),
    (
        {"groups": {name: g for name, g in Llada.groups.items() if "mlp" not in name}},
        ["groups"],
        r"parameter 'model.layers.0.mlp.gate_proj.weight' is in no group; add a pattern",
    ),
    ({"keys": {r"^(a)\.(b)\.": r"\1.\2."}}, ["keys"], "has several groups; transformers can use one a rule"),
    ({"lora_targets": (r"\.attn_out$",)}, ["declaration"], "lora_targets: .* names no linear module"),
    (
        {"ov_circuit": replace(Llada.ov_circuit, value="self_attn.values")},
        ["ov_circuit", "storage"],
        "this model has no value 'self_attn.values'",
    ),
    ({"matches": classmethod(lambda cls, config: False)}, ["matches"], "doesn't claim the adapter's own tiny_conf"),
    ({"architecture": "NoSuchLM"}, ["tiny model"], "it can't be built .*NoSuchLM.*give it `tiny`"),
]


@pytest.fixture
def without_readings(monkeypatch):
    """Two seconds an adapter, where they aren't what is tested."""
    monkeypatch.setattr(conformance, "_readings", lambda m: [])


@pytest.mark.usefixtures("without_readings")
@pytest.mark.parametrize(("broken", "names", "words"), BROKEN)
def test_what_is_wrong_is_told_in_words(broken, names, words):
    found = wrong(Llada.variant(broken))
    assert list(found) == names
    assert any(re.search(words, seen) for seen in found.values()), found


def test_readings_that_cannot_be_taken_are_told_too():
    groups = {pattern: group for pattern, group in Llada.groups.items() if "mlp" not in pattern}
    assert list(wrong(Llada.variant({"groups": groups}))) == ["groups", "readings"]


@pytest.mark.usefixtures("without_readings")
@pytest.mark.parametrize(("shift", "words"), [(0, "shift is 1 or more; it declares 0"), (2, "i − 1, and the adapter")])
def test_a_causal_models_wrong_shift(shift, words):
    found = wrong(Qwen.variant({"shift": shift}))
    assert words in found["shift"]


def test_an_adapter_without_a_small_model_is_told_how_to_give_one():
    class Bare(Adapter):
        name = "bare"

    assert wrong(Bare) == {"tiny model": wrong(Bare)["tiny model"]}
    assert "tiny_config` (a config.json in small)" in wrong(Bare)["tiny model"]


def test_a_small_model_that_is_too_small():
    short = Llada.variant({"tiny_config": {**Llada.tiny_config, "max_sequence_length": 5}})
    with pytest.raises(AdapterError, match="holds 5 positions"):
        random_pairs(tiny_model(short))
    assert "holds 5 positions" in wrong(short)["readings"]


# --- the comparisons themselves, told of readings that are wrong ---


@pytest.fixture(scope="module")
def read():
    m = tiny_model(Llada)
    pairs = random_pairs(m)
    controls = assign(pairs, 4)
    return m, pairs, controls, gradient_products(m, pairs, controls, parameters="all", batch_size=4)


@pytest.mark.parametrize("column", ["inner", "forward_norm2", "reverse_norm2", "control_inner", "control_norm2"])
def test_a_product_that_is_off_is_named_by_its_part(read, column):
    m, pairs, controls, found = read
    assert agreement.gradients_agree(m, pairs, controls, found, 1e-5).passed
    values = getattr(found, column).clone()
    values[..., 3] *= 1.01
    check = agreement.gradients_agree(m, pairs, controls, replace(found, **{column: values}), 1e-5)
    assert check.passed is False
    assert f"those of {found.parts[3].name} differ" in check.seen


def test_a_part_that_is_lost_and_a_batch_that_differs(read):
    m, pairs, controls, found = read
    less = replace(found, inner=torch.cat([torch.zeros(len(pairs), 1), found.inner[:, 1:]], dim=1))
    assert agreement.parts_add_up(m, pairs, found, 1e-5).passed
    assert agreement.parts_add_up(m, pairs, less, 1e-5).passed is False
    assert agreement.batches_agree(m, pairs, controls, found, 1e-5).passed
    assert agreement.batches_agree(m, pairs, controls, replace(found, inner=1.1 * found.inner), 1e-5).passed is False


@pytest.mark.parametrize("change", ["log_weights", "attendable", "scores", "logits"])
def test_a_reading_of_a_batch_that_is_off(read, change, monkeypatch):
    m, pairs, _, _ = read
    queries = [query for pair in pairs for query in (pair.forward, pair.reverse)]
    plain = agreement.capture

    def off(m, batch):
        seen = plain(m, batch)
        value = getattr(seen, change)
        together = len(batch.rows) > 1
        return replace(
            seen, **{change: value if not together else ~value if value.dtype == torch.bool else 1.1 * value}
        )

    monkeypatch.setattr(agreement, "capture", off)
    check = agreement.scores_agree if change in ("log_weights", "attendable") else agreement.padding_agrees
    assert check(m, queries, 1e-5).passed is False


# --- how it is asked ---


@pytest.mark.usefixtures("without_readings")
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_says_what_was_found(as_json, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rcprobe", "plugins", "check", "llada", *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, found = capsys.readouterr().out, check_adapter(Llada)
    assert not ended.value.code
    assert out == report("llada", found) + "\n" if not as_json else len(json.loads(out)) == len(found)


@pytest.mark.usefixtures("without_readings")
def test_the_command_fails_with_the_adapter(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rcprobe", "plugins", "check", "llada"])
    monkeypatch.setattr(Llada, "attention", "causal")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert out.startswith("llada: 1 of ")
    assert out.splitlines()[1].startswith("  wrong  attention: it declares causal attention")


@pytest.mark.usefixtures("without_readings")
def test_pytest_holds_an_adapter_to_it(request, monkeypatch):
    def collected(asked):
        items = []
        config = SimpleNamespace(getoption=lambda name: asked)
        pytest_plugin.pytest_collection_modifyitems(request.session, config, items)
        return items

    assert collected(None) == []
    assert {item.name for item in collected(pytest_plugin.EVERY)} == {entry.name for entry in registry().entries}
    (item,) = collected("gpt2")
    item.runtest()
    monkeypatch.setattr(Gpt2, "shift", 0)
    with pytest.raises(pytest_plugin.FailedChecks) as caught:
        item.runtest()
    told = item.repr_failure(pytest.ExceptionInfo.from_exception(caught.value))
    assert told.splitlines()[1].startswith("  wrong  shift: a causal model's logits at i predict i + 1")
    (item,) = collected("gtp2")
    with pytest.raises(pytest_plugin.FailedChecks, match="did you mean 'gpt2'"):
        item.runtest()


def test_the_option_takes_a_name_or_none():
    parser = pytest.Parser(_ispytest=True)
    pytest_plugin.pytest_addoption(parser)
    read = parser.parse_known_args
    assert read([]).rcprobe_conformance is None
    assert read(["--rcprobe-conformance"]).rcprobe_conformance == pytest_plugin.EVERY
    assert read(["--rcprobe-conformance=llada"]).rcprobe_conformance == "llada"
