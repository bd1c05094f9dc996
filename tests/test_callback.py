import random
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import rcprobe
from rcprobe.errors import UsageError
from rcprobe_plugins.datasets.characters import character_tokenizer
from rcprobe_plugins.models.llama import Llama

# peft 0.21 asks transformers by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
FACTS = [rcprobe.Fact(c, c.upper(), "{a}00{b}", "{b}0{a}") for c in "ab"]
TOKENIZER = character_tokenizer("0abcdABCD", mask=False)


@rcprobe.metric(reads={"log_probs", "scores", "gradients"}, pairing="swapped")
def everything(seen):
    """And draws random numbers, as a stranger's metric may."""
    nothing = 0 * (torch.rand(1) + random.random() + np.random.rand())
    cosine = seen.gradients.cosine()
    return {"cosine": cosine, "reverse": seen.log_probs[:, 1] + nothing, "scores": seen.scores[:, 1]}


def llama(lora=False):
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, attention_dropout=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.3))
    return model


def loaded(model):
    return rcprobe.load(model, adapter=Llama, tokenizer=TOKENIZER)


def arguments(place, **others):
    return TrainingArguments(
        **{
            "output_dir": str(place), "max_steps": 5, "per_device_train_batch_size": 2, "learning_rate": 0.01,
            "logging_steps": 2, "report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
            "dataloader_pin_memory": False, **others,
        }
    )  # fmt: skip


def trainer_of(model, place, callbacks=(), **others):
    ids = TOKENIZER([f"{c}00{c.upper()}" for c in "abcd"])["input_ids"]
    data = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in ids]
    return Trainer(model, arguments(place, **others), train_dataset=data, callbacks=list(callbacks))


@rcprobe.metric(reads={"log_probs"}, pairing="swapped")
def plain(seen):
    return seen.log_probs[:, 0]


class Weights(TrainerCallback):
    """Keeps what the model holds after each step, as the callback before it should have seen it."""

    def __init__(self):
        self.at = {}

    def on_train_begin(self, args, state, control, model, **others):
        self.keep(0, model)

    def on_step_end(self, args, state, control, model, **others):
        self.keep(state.global_step, model)

    def keep(self, step, model):
        self.at[step] = {name: value.clone() for name, value in model.state_dict().items()}


KINDS = {
    "accumulated": {"gradient_accumulation_steps": 3},
    "bf16": {"bf16": True},
    "lora, checkpointed": {"lora": True, "bf16": True, "activation_checkpointing": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_with_it_and_what_it_reads_is_what_a_probe_outside_reads(kind, tmp_path):
    options = dict(KINDS[kind])
    lora = options.pop("lora", False)

    def trained(probed):
        model, kept = llama(lora), Weights()
        callbacks = [rcprobe.ProbeCallback(loaded(model), FACTS, every=4, metrics=[everything])] if probed else []
        trainer = trainer_of(model, tmp_path, [*callbacks, kept], **options)
        trainer.train()
        drawn = (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random())
        losses = [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
        return losses, kept.at, drawn, callbacks

    losses, weights, drawn, _ = trained(False)
    found, seen, after, (callback,) = trained(True)
    assert found == losses
    assert after == drawn
    assert seen.keys() == weights.keys()
    assert all(torch.equal(seen[k][name], value) for k in weights for name, value in weights[k].items())

    report = callback.report()
    (run,) = report.runs
    assert [step.step for step in run.steps] == [0, 4, 5]
    assert [step.loss for step in run.steps] == [None, losses[1][1], None]
    outside = loaded(llama(lora))
    outside.model.load_state_dict(weights[5])
    again = rcprobe.Probe(outside, FACTS, [everything]).measure(5)
    (one,), (other,), (first,) = run.steps[-1].measured, again.measured, run.steps[0].measured
    assert run.steps[-1].accuracy == again.accuracy
    for name, values in one.columns.items():
        assert np.isfinite(values).all()
        assert (values == other.columns[name]).all()
        assert (values != first.columns[name]).any()


def test_mode_gradients_and_randomness_stay_as_they_were(tmp_path):
    model = llama()
    found = []

    class Check(TrainerCallback):
        def on_step_end(self, args, state, control, model, **others):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            model.model.layers[1].eval()
            before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
            callback._take(state)
            after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
            found.append(torch.equal(before[0], after[0]) and before[1:] == after[1:])
            found.append(all((p.grad == 1).all() and p.requires_grad for p in model.parameters()))
            found.append([module.training for module in model.model.layers] == [True, False])

    callback = rcprobe.ProbeCallback(loaded(model), FACTS, metrics=[everything])
    trainer = trainer_of(model, tmp_path, [Check(), callback], max_steps=2)
    trainer.train()
    assert found == [True] * 6
    assert [step.step for step in callback.probe.steps] == [0, 1, 2]
    assert not callback.probe.steps[-1].skipped


def test_named_steps_are_probed_and_the_report_bears_the_trainings_seed(tmp_path):
    model = llama()
    callback = rcprobe.ProbeCallback(loaded(model), FACTS, at=[3], metrics=[plain])
    with pytest.raises(UsageError, match="nothing was probed yet"):
        callback.report()
    trainer_of(model, tmp_path, [callback], seed=7).train()
    report = callback.report()
    assert [(run.seed, [step.step for step in run.steps]) for run in report.runs] == [(7, [0, 3, 5])]
    assert report.runs[0].fingerprint == loaded(model).fingerprint()
    assert set(report.frame().seed) == {7}


@pytest.mark.parametrize("best", [False, True])
def test_a_training_that_stops_early_is_probed_where_it_stopped(best, tmp_path, monkeypatch):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            control.should_training_stop = state.global_step == 2
            return control

        def on_epoch_end(self, args, state, control, **others):
            args.load_best_model_at_end, state.best_model_checkpoint = best, "checkpoint-1" if best else None

    monkeypatch.setattr(Trainer, "_load_best_model", lambda self: None)
    model = llama()
    callback = rcprobe.ProbeCallback(loaded(model), FACTS, metrics=[plain])
    trainer_of(model, tmp_path, [callback, Stop()]).train()
    assert [step.step for step in callback.probe.steps] == ([0] if best else [0, 2])


def test_a_training_goes_on_from_its_checkpoint_and_no_other_is_mixed_in(tmp_path):
    model = llama()
    callback = rcprobe.ProbeCallback(loaded(model), FACTS, every=2, metrics=[plain])
    trainer = trainer_of(model, tmp_path, [callback], max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.args.max_steps = 4
    trainer.train(resume_from_checkpoint=True)
    assert [step.step for step in callback.probe.steps] == [0, 2, 4]
    with pytest.raises(UsageError, match="has probed a training as far as step 4, and this one begins at step 0"):
        trainer.train()


def test_other_processes_than_the_first_probe_nothing(tmp_path, monkeypatch):
    model = llama()
    callback = rcprobe.ProbeCallback(loaded(model), FACTS, metrics=[plain])
    trainer = trainer_of(model, tmp_path, [callback], max_steps=1)
    monkeypatch.setattr(Trainer, "is_world_process_zero", lambda self: False)
    trainer.train()
    assert not callback.probe.steps


def test_what_cannot_be_is_refused_by_name(tmp_path):
    model, other = llama(), llama()
    with pytest.raises(UsageError, match="every is 0; use 1 or more"):
        rcprobe.ProbeCallback(loaded(model), FACTS, every=0)
    with pytest.raises(UsageError, match="at names step -1"):
        rcprobe.ProbeCallback(loaded(model), FACTS, at=[2, -1])
    late = rcprobe.ProbeCallback(loaded(model), FACTS, at=[6], metrics=[plain])
    with pytest.raises(UsageError, match="at names step 6, training has 5"):
        trainer_of(model, tmp_path, [late]).train()
    strange = rcprobe.ProbeCallback(loaded(other), FACTS, metrics=[plain])
    with pytest.raises(UsageError, match="trains a LlamaForCausalLM, and ProbeCallback was given another LlamaForC"):
        trainer_of(model, tmp_path, [strange]).train()
    adapted = get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UsageError, match=r"trains a PeftModel, and .* given a LlamaForCausalLM .*load\(trainer\.model"):
        trainer_of(adapted, tmp_path, [strange]).train()
    for parts in ({"fsdp": True}, {"deepspeed": {"zero_optimization": {"stage": 3}}}):
        trainer = trainer_of(model, tmp_path, [rcprobe.ProbeCallback(loaded(model), FACTS, metrics=[plain])])
        for name, value in parts.items():
            setattr(trainer.args, name, value)
        with pytest.raises(UsageError, match="whole weights in one process"):
            trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_the_pages_example_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs" / "your-own-trainer.md").read_text()
    block = page.split("<!-- the tests run this block -->\n```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/your-own-trainer.md", "exec"), {})
    steps = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert [step for step, _ in steps] == ["0", "20", "40"]
    assert float(steps[2][1]) < float(steps[1][1])
    assert (tmp_path / "report" / "report.json").exists()
