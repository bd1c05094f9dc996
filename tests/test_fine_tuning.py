"""Fine-tuning: low-rank adapters, precision, parts of a batch, what may be masked, the choice of a rate."""

import json
from dataclasses import replace

import pytest
import torch
import typer
from peft import PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

import rcprobe
from rcprobe import Fact, TrainConfig, load
from rcprobe.commands import run
from rcprobe.config import FINE_TUNING
from rcprobe.errors import AdapterError, DataError, TrainingError, UsageError
from rcprobe.estimate import estimate
from rcprobe.metrics import resolve_metrics
from rcprobe.training import choice, train
from rcprobe.training import state as training_state
from rcprobe.training.choice import best_rate, forward_log_prob, said, try_rates
from rcprobe.training.method import adapted
from rcprobe.training.statements import forward_statements, maskable_tokens
from rcprobe.training.trainer import checkpointing
from rcprobe_plugins.models.a2d import convert

LETTERS = rcprobe.load_dataset("letters", {"length": 4}).limited(3)
FACTS = [Fact(c, c.upper(), ("{a}0{b}", "{a}00{b}"), ("{b}0{a}", "{b}00{a}")) for c in "abcd"]
LORA = TrainConfig(steps=4, method="lora", rank=2, alpha=4, lr=0.01, ema=0.0, batch_size=8, probe_every=2)
SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
RADD = {"width": 8, "max_length": 8}


def llama():
    return load("llama", options=SMALL)


def weights_of(m):
    return {name: value.clone() for name, value in m.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- low-rank adapters ---


def test_only_adapters_are_trained_and_the_weights_under_them_stay():
    m = llama()
    before = weights_of(m)
    with adapted(m, LORA, 0, keep=True):
        assert isinstance(m.model, PeftModel)
        trained = {name for name, p in m.model.named_parameters() if p.requires_grad}
        start = weights_of(m)
        for _ in train(m, LETTERS.facts, LORA, 0):
            pass
    after = weights_of(m)
    assert len(trained) == 2 * 14  # A and B on seven modules of two layers
    assert {name for name in start if not torch.equal(start[name], after[name])} == trained
    base = m.model.get_base_model().state_dict()
    found = {name.replace(".base_layer", ""): value for name, value in base.items() if "lora_" not in name}
    assert same(before, found)


def test_a_seed_draws_its_own_adapters_and_draws_them_again():
    def first(seed):
        m = llama()
        torch.manual_seed(123)
        kept = torch.get_rng_state()
        with adapted(m, LORA, seed, keep=True):
            assert torch.equal(torch.get_rng_state(), kept)
            return weights_of(m)

    assert same(first(3), first(3))
    assert not same(first(3), first(4))


def test_a_model_that_is_not_to_keep_its_adapters_is_what_it_was():
    m = llama()
    next(iter(m.model.parameters())).requires_grad_(False)  # the embedding, frozen by its owner
    model, before = m.model, weights_of(m)
    frozen = [not p.requires_grad for p in m.model.parameters()]
    with adapted(m, LORA, 0, keep=False):
        assert isinstance(m.wrapped._module, PeftModel)
    with pytest.raises(KeyboardInterrupt), adapted(m, LORA, 0, keep=True):
        raise KeyboardInterrupt  # a run that ends early leaves no half-trained adapters behind
    assert m.model is model
    assert same(before, weights_of(m))
    assert [not p.requires_grad for p in m.model.parameters()] == frozen
    assert m.wrapped._module is model


def test_targets_that_name_nothing_and_families_without_any_are_refused():
    with pytest.raises(UsageError, match="'no_such' names no linear module of this model, which has q_proj, k_proj"):
        rcprobe.run(llama(), LETTERS, metrics=[], train=replace(LORA, targets=("no_such",)), progress=False)
    bare = load("gpt2-mini", options=RADD)
    bare.adapter.lora_targets = ()
    with pytest.raises(UsageError, match="declares no lora_targets"):
        rcprobe.run(bare, LETTERS, metrics=[], train=LORA, progress=False)


def test_a_model_with_adapters_is_trained_on_by_the_full_method_alone():
    m = llama()
    rcprobe.run(m, LETTERS, metrics=[], train=LORA, progress=False)
    with pytest.raises(UsageError, match="has low-rank adapters already"):
        rcprobe.run(m, LETTERS, metrics=[], train=LORA, progress=False)
    before = weights_of(m)
    rcprobe.run(m, LETTERS, metrics=[], train=replace(LORA, method="full"), progress=False)
    changed = {name for name, value in weights_of(m).items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_a_model_without_a_weight_to_train_is_refused():
    m = load("radd", options=RADD)
    m.model.requires_grad_(False)
    with pytest.raises(UsageError, match="every weight is frozen"):
        next(train(m, FACTS, TrainConfig(steps=1), 0))


def test_a_run_keeps_adapters_that_load_puts_on_the_model_again(tmp_path):
    m = llama()
    m.model.save_pretrained(tmp_path / "base")
    m.tokenizer.save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base")
    rcprobe.run(base, LETTERS, metrics=["accuracy"], train=LORA, out=tmp_path / "run", progress=False)
    kept = tmp_path / "run" / "seed-0" / "model"
    assert sorted(p.name for p in kept.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "rcprobe.json",
    ]
    assert str(tmp_path) not in (kept / "adapter_config.json").read_text()
    again = load(tmp_path / "base", peft=kept)
    assert again.fingerprint() == base.fingerprint()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, base.model(input_ids=ids).logits)
    # the same command on a finished run gives the weights back
    third = load(tmp_path / "base")
    rcprobe.run(third, LETTERS, metrics=["accuracy"], train=LORA, out=tmp_path / "run", progress=False)
    assert third.fingerprint() == base.fingerprint()


def test_several_seeds_leave_the_model_without_adapters(tmp_path):
    m = load(saved(tmp_path))
    before = weights_of(m)
    report = rcprobe.run(m, LETTERS, metrics=["accuracy"], train=LORA, seeds=2, progress=False)
    assert not isinstance(m.model, PeftModel)
    assert same(before, weights_of(m))
    assert len({run.fingerprint for run in report.runs}) == 2


def saved(place):
    m = llama()
    m.model.save_pretrained(place / "saved")
    m.tokenizer.save_pretrained(place / "saved")
    return place / "saved"


@pytest.mark.parametrize("kept_at", [1, 2, 3])
def test_training_of_adapters_goes_on_from_a_kept_state_bit_for_bit(kept_at, monkeypatch):
    monkeypatch.setattr(training_state, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(training_state, "KEEP_SHARE", float("inf"))
    states, whole, rest = {}, llama(), llama()
    with adapted(whole, LORA, 5, keep=True):
        stops = [(s.step, s.loss) for s in train(whole, LETTERS.facts, LORA, 5, keep=states.__setitem__)]
    assert all("base_layer" not in name for name in states[kept_at])  # what is frozen isn't kept again
    with adapted(rest, LORA, 5, keep=True):
        found = [(s.step, s.loss) for s in train(rest, LETTERS.facts, LORA, 5, state=states[kept_at])]
    assert found == [stop for stop in stops if stop[0] >= kept_at]
    assert rest.fingerprint() == whole.fingerprint()


# --- how a step is computed ---


@pytest.mark.parametrize("objective", ["t-dce", "bert-mlm"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(objective):
    def trained(accumulate):
        m = load("radd", options=RADD, dtype="float64")
        with torch.no_grad():
            for p in m.model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        config = TrainConfig(steps=3, batch_size=7, accumulate=accumulate, ema=0.0, objective=objective, clip=0.01)
        losses = [stop.loss for stop in train(m, FACTS, config, 0)]
        return losses[-1], torch.cat([p.detach().flatten() for p in m.model.parameters()])

    (one, whole), (other, parts) = trained(1), trained(3)
    assert other == pytest.approx(one, rel=1e-12)
    assert (whole - parts).abs().max() < 1e-12


def test_half_precision_computes_in_it_and_keeps_the_weights():
    def trained(precision):
        m = load("radd", options=RADD)
        loss = [s.loss for s in train(m, FACTS, TrainConfig(steps=2, precision=precision, ema=0.0), 0)][-1]
        assert {p.dtype for p in m.model.parameters()} == {torch.float32}
        return loss

    assert trained("bfloat16") == pytest.approx(trained(None), rel=0.02)
    assert trained("bfloat16") != trained(None)


def test_checkpointing_changes_no_number_and_is_off_afterwards():
    def trained(wanted):
        m = llama()
        loss = [s.loss for s in train(m, FACTS, TrainConfig(steps=2, checkpointing=wanted, ema=0.0), 0)][-1]
        assert not m.model.is_activation_checkpointing
        return loss, m.fingerprint()

    assert trained(True) == trained(False)
    m = llama()
    with checkpointing(m, True):
        assert m.model.is_activation_checkpointing


def test_a_model_that_has_no_checkpointing_says_so():
    with pytest.raises(UsageError, match="has no gradient checkpointing"):
        list(train(load("radd", options=RADD), FACTS, TrainConfig(steps=1, checkpointing=True), 0))


# --- what may be masked ---


def test_a_completion_is_what_stands_from_the_second_entity_on():
    m = load("radd", options=RADD)
    facts = [Fact("a", "A", ("0{a}0{b}0", "{a}{b}"), ("{b}{a}", "{b}{a}"))]
    _, real = forward_statements(m, facts)
    found = maskable_tokens(m, facts, TrainConfig(steps=1, maskable="completion"), real)
    assert found.tolist() == [[False, False, False, True, True], [False, True, False, False, False]]
    taught = [Fact("a", "A", "{a}{b}", "{b}{a}", taught=("a00",))]
    _, real = forward_statements(m, taught)
    with pytest.raises(DataError, match="'completion' needs both entities"):
        maskable_tokens(m, taught, TrainConfig(steps=1, maskable="completion"), real)


def test_short_statements_cost_no_more_than_their_length():
    """Each batch is as long as its longest statement, and the loss is that of its statements alone."""
    m = load("radd", options=RADD)
    seen = []
    m.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    for _ in train(m, FACTS, TrainConfig(steps=12, batch_size=1), 0):
        pass
    assert {shape[1] for shape in seen} == {3, 4}


# --- the learning rate ---


def test_the_rate_is_chosen_by_forward_answers_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(
        choice, "observe", lambda m, pairs, read: asked.extend(pairs) or rcprobe.observe(m, pairs, read=read)
    )
    m = load("radd", options=RADD)
    before = weights_of(m)
    tried = try_rates(m, LETTERS, TrainConfig(steps=30, lr_grid=(1e-5, 1e-2), warmup=0, ema=0.0))
    assert same(before, weights_of(m))
    assert best_rate(tried) == 1e-2
    assert tried[1e-2] > tried[1e-5]
    assert asked
    assert all(pair.reverse == pair.forward and pair.forward.direction == "forward" for pair in asked)
    assert "1e-05" in said(tried)
    assert "0.01" in said(tried)


def test_the_forward_answer_is_that_of_trained_facts():
    m = load("gpt2-mini", options=RADD)
    facts = rcprobe.Dataset("some", (FACTS[0], replace(FACTS[1], trained=False)))
    ids = [m.tokenizer.convert_tokens_to_ids(list(text)) for text in ("a0A", "a00A")]
    expected = []
    for row in ids:
        logits = m.model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
        expected.append(float(logits[-2, row[-1]].detach()))
    assert forward_log_prob(m, facts) == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_a_grid_where_every_rate_diverges_is_an_error():
    with pytest.raises(TrainingError, match=r"diverged at every learning rate .*1 diverged, 2 diverged"):
        best_rate({1.0: None, 2.0: None})


def test_a_run_says_which_rate_it_took_and_keeps_the_choice(tmp_path, monkeypatch):
    config = TrainConfig(steps=3, lr_grid=(1e-4, 1e-2), batch_size=8)
    m = load("radd", options=RADD)
    report = rcprobe.run(m, LETTERS, metrics=["accuracy"], train=config, out=tmp_path / "run", progress=False)
    kept = json.loads((tmp_path / "run" / "learning_rates.json").read_text())
    assert set(map(float, kept)) == {1e-4, 1e-2}
    assert report.info["train"]["lr"] == float(max(kept, key=kept.get))
    assert any("reverse queries had no part in it" in note for note in report.notes)
    monkeypatch.setattr(choice, "train", None)  # a second call doesn't try again
    again = rcprobe.run(
        load("radd", options=RADD), LETTERS, metrics=["accuracy"], train=config, out=tmp_path / "run", progress=False
    )
    assert again.to_dict() == report.to_dict()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "lorra"}, "method is 'lorra'; use one of full, lora"),
        ({"precision": "float16"}, "precision is 'float16'; use one of bfloat16"),
        ({"maskable": "some"}, "maskable is 'some'"),
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"accumulate": 65}, "accumulate is 65, and a batch has 64"),
        ({"lr_grid": (0.1, -1.0)}, "every lr of lr_grid must be positive"),
    ],
)
def test_settings_out_of_range_are_named(wrong, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(steps=1, **wrong)


# --- asked for ---


def test_an_estimate_counts_the_trainings_of_the_grid_and_leaves_the_model_alone():
    m = llama()
    model, before = m.model, weights_of(m)
    metrics = resolve_metrics(["accuracy"])
    cost = estimate(m, LETTERS, metrics, replace(LORA, lr_grid=(1e-3, 1e-2)), seeds=3)
    assert cost.steps == (3 + 2) * LORA.steps
    assert cost.parameters > sum(p.numel() for p in model.parameters())  # with the adapters
    assert m.model is model
    assert same(before, weights_of(m))


def test_the_flag_train_sets_what_fine_tuning_starts_from_and_other_flags_win(monkeypatch):
    seen = []
    monkeypatch.setattr(run, "_run", lambda asked, **_: seen.append(asked.training()))
    cli = typer.Typer()
    cli.command()(run.run_command)
    for flags in (
        ["--train", "lora"],
        ["--train", "full", "--steps", "7", "--lr", "0.1"],
        ["--train", "lora", "--lr", "0.1", "--lr", "0.2"],
    ):
        result = CliRunner().invoke(cli, ["radd", "letters", *flags])
        assert result.exit_code == 0, result.output
    lora, full, grid = seen
    assert (lora.method, lora.steps, lora.lr, lora.ema) == ("lora", FINE_TUNING["steps"], FINE_TUNING["lr"], 0.0)
    assert (full.method, full.steps, full.lr) == ("full", 7, 0.1)
    assert grid.lr_grid == (0.1, 0.2)


# --- what a reader found ---


def test_a_wrong_training_begins_no_folder(tmp_path):
    m = llama()
    for wrong in (replace(LORA, targets=("no_such",)), replace(LORA, batch_size=1, accumulate=1, objective="t-dce")):
        with pytest.raises((AdapterError, UsageError)):
            rcprobe.run(m, LETTERS, metrics=[], train=wrong, out=tmp_path / "run", progress=False)
        assert not (tmp_path / "run" / "manifest.json").exists()
    rcprobe.run(m, LETTERS, metrics=["accuracy"], train=LORA, out=tmp_path / "run", progress=False)


def test_full_training_in_half_precision_is_refused_with_the_way_out():
    m = load("radd", options=RADD, dtype="bfloat16")
    with pytest.raises(UsageError, match="dtype float32"):
        rcprobe.run(m, LETTERS, metrics=[], train=TrainConfig(steps=1), progress=False)


def test_a_grid_that_was_stopped_goes_on_after_the_rates_it_has(monkeypatch):
    m = load("radd", options=RADD)
    config = TrainConfig(steps=2, lr_grid=(1e-4, 1e-3), ema=0.0)
    kept = []
    whole = try_rates(m, LETTERS, config, keep=lambda found: kept.append(dict(found)))
    assert [len(found) for found in kept] == [1, 2]
    trained = []
    monkeypatch.setattr(choice, "train", lambda *a: trained.append(a) or train(*a))
    assert try_rates(m, LETTERS, config, tried=kept[0]) == whole
    assert len(trained) == 1


def test_an_interrupted_grid_leaves_the_weights_and_a_broken_answer_is_none(monkeypatch):
    m = load("radd", options=RADD)
    before = weights_of(m)
    config = TrainConfig(steps=3, lr_grid=(1e-2, 1e-3), ema=0.0, warmup=0)
    monkeypatch.setattr(choice, "forward_log_prob", lambda *_: float("nan"))
    assert try_rates(m, LETTERS, config) == {1e-2: None, 1e-3: None}

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(choice, "forward_log_prob", stop)
    with pytest.raises(KeyboardInterrupt):
        try_rates(m, LETTERS, config)
    assert same(before, weights_of(m))
    assert not m.model.training


def test_adapters_of_a_grown_tied_model_are_kept_alone(tmp_path):
    base = load("llama", options={**SMALL, "tie_word_embeddings": True})
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    m = convert(load(tmp_path / "base"), shift=1)
    rcprobe.run(m, LETTERS, metrics=["accuracy"], train=LORA, out=tmp_path / "run", progress=False)
    kept = load_file(tmp_path / "run" / "seed-0" / "model" / "adapter_model.safetensors")
    assert kept
    assert all("lora_" in name for name in kept)
    assert "config" not in json.loads((tmp_path / "run" / "manifest.json").read_text()) or (
        json.loads((tmp_path / "run" / "manifest.json").read_text())["config"] is None
    )


def test_no_gradient_lies_about_after_training():
    m = load("radd", options=RADD)
    for _ in train(m, FACTS, TrainConfig(steps=2, probe_every=1), 0):
        assert all(p.grad is None for p in m.model.parameters())


def test_a_rate_on_the_command_line_wins_over_a_grid_in_a_file():
    assert run._training(None, [0.1]) == {"lr": 0.1, "lr_grid": []}
