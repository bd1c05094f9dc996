import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import rcprobe
from rcprobe import Dataset, Fact, TrainConfig
from rcprobe.errors import UsageError
from rcprobe.metrics import Metric
from rcprobe.plugins import registry
from rcprobe.probe import one_per_distance
from rcprobe.report.report import SeedRun, build

OPTIONS = {"width": 8, "max_length": 8}
SMALL = rcprobe.load_dataset("letters", {"length": 3})


@rcprobe.metric(reads={"log_probs"})
def margin(seen):
    return seen.log_probs[:, 1] - seen.log_probs[:, 0]


def test_two_seeds_train_from_weights_of_their_own():
    report = rcprobe.run(
        rcprobe.load("radd", options=OPTIONS), SMALL, train=TrainConfig(steps=3), seeds=2, metrics=["accuracy", margin]
    )
    assert [run.seed for run in report.runs] == [0, 1]
    assert report.runs[0].fingerprint != report.runs[1].fingerprint
    assert [step.step for step in report.runs[0].steps] == [0, 3]
    frame = report.frame("margin")
    assert len(frame) == 2 * 2 * 26 * 3
    assert set(frame.columns) >= {"seed", "step", "fact", "a", "b", "delta_forward", "delta_reverse", "value"}
    assert np.isfinite(frame.value).all()
    again = rcprobe.run(
        rcprobe.load("radd", options=OPTIONS), SMALL, train=TrainConfig(steps=3), seeds=2, metrics=[margin]
    )
    assert again.frame("margin").value.tolist() == frame.value.tolist()


def test_a_model_with_weights_gets_them_back_after_several_seeds():
    m = rcprobe.load("radd", options=OPTIONS)
    m.factory = None
    before = m.fingerprint()
    report = rcprobe.run(m, SMALL, train=TrainConfig(steps=2), seeds=2, metrics=["accuracy"])
    assert m.fingerprint() == before
    assert report.info["start"] == "given weights"
    assert report.runs[0].fingerprint != before
    with pytest.raises(UsageError, match="seeds=1"):
        rcprobe.run(m, SMALL, seeds=2)


def test_no_training_leaves_weights_and_mode_alone():
    m = rcprobe.load("radd", options=OPTIONS)
    m.model.train()
    before = m.fingerprint()
    rcprobe.run(m, SMALL, metrics=["attention_correlation", "gradient_alignment"], limit=3)
    assert m.fingerprint() == before
    assert m.model.training
    assert all(p.grad is None for p in m.model.parameters())


def test_a_seed_that_diverges_is_named_and_not_averaged(monkeypatch):
    m = rcprobe.load("radd", options=OPTIONS)
    make = m.factory

    def factory(seed):
        model = make(seed)
        if seed == 1:
            with torch.no_grad():
                model.lm_head.bias[3] = torch.nan
        return model

    m.factory = factory
    report = rcprobe.run(m, SMALL, train=TrainConfig(steps=2), seeds=3, metrics=["reverse_probability"])
    assert report.runs[1].failure is not None
    assert any(note.startswith("seed 1 failed: training diverged") for note in report.notes)
    assert len(report.accuracy["swapped"]["full vocabulary"]) == 2
    assert report.signatures["reverse_probability"].findings[0].estimate.n == 2


def test_a_seed_that_sticks_is_named_and_stays_in_the_average():
    """Two seeds of hand-made accuracies: one learned, one not."""
    report = rcprobe.run(
        rcprobe.load("radd", options=OPTIONS), SMALL, train=TrainConfig(steps=1), seeds=3, metrics=["accuracy"]
    )

    def with_accuracy(run, value):
        steps = [
            type(step)(
                step.seed, step.step, step.loss, step.measured, {"same_target": {"52 letters": (value, 0.0)}}, {}, {}
            )
            for step in run.steps
        ]
        return SeedRun(run.seed, tuple(steps), None, run.fingerprint)

    def judged(*values):
        runs = [with_accuracy(run, value) for run, value in zip(report.runs, values, strict=True)]
        metrics = [Metric("nothing", frozenset(), ("swapped",), lambda seen: {}, rcprobe_conditions())]
        return build(SMALL, metrics, runs, chance=1 / 52, identities={}, info={})

    found = judged(1.0, 0.95, 0.1)
    assert [note for note in found.notes if "stuck" in note] == [
        "seed 2 is stuck: forward accuracy 10% (52 letters, same_target), the bar is 90%; it stays in every average"
    ]
    assert len(found.accuracy["same_target"]["52 letters"]) == 3
    assert judged(0.05, 0.05, 0.05).notes  # all under five times chance


def test_each_pairing_is_judged_by_its_own_forward_queries():
    """Filling in b after a may be learned, and a before b not, though training showed both in one order."""
    metrics = [registry().get("metrics", "gradient_alignment")]
    (run,) = rcprobe.run(rcprobe.load("radd", options=OPTIONS), SMALL, train=TrainConfig(steps=1), metrics=metrics).runs
    known = {"same_target": {"52 letters": (0.0, 0.0)}, "swapped": {"52 letters": (0.94, 0.0)}}
    steps = tuple(replace(step, accuracy=known) for step in run.steps)
    found = build(SMALL, metrics, [replace(run, steps=steps)], chance=1 / 49152, identities={}, info={})
    verdicts = {signature.pairing: signature.verdict for signature in found.signatures.values()}
    assert verdicts == {"same_target": "not trained", "swapped": "undefined"}  # one seed is too few
    notes = [note for note in found.notes if "stuck" in note]
    assert notes == [
        "seed 0 is stuck: forward accuracy 0% (52 letters, same_target), the bar is 0.01%; it stays in every average"
    ]


def rcprobe_conditions():
    return (rcprobe.Condition("x", "mean", ("x",), 0.0, ""),)


def test_out_is_strict_json_and_never_overwrites(tmp_path):
    m = rcprobe.load("radd", options=OPTIONS)
    rcprobe.run(m, SMALL, metrics=["reverse_probability"], limit=2, out=tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved["info"]["model"] == "radd"
    assert saved["signatures"]["reverse_probability"]["verdict"] in ("undefined", "not trained")
    with pytest.raises(UsageError, match="nothing was overwritten"):
        rcprobe.run(m, SMALL, out=tmp_path / "run")


def test_a_report_without_a_run_is_saved_into_a_new_folder_alone(tmp_path):
    report = rcprobe.run(rcprobe.load("radd", options=OPTIONS), SMALL, metrics=["accuracy"], limit=2)
    assert report.folder is None
    report.save(tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.html", "report.json", "values.csv"]
    with pytest.raises(UsageError, match="nothing was overwritten"):
        report.save(tmp_path / "new")


@pytest.mark.parametrize("asked", [{"seeds": 0}, {"limit": 0}])
def test_senseless_requests_are_refused_before_work(asked):
    with pytest.raises(UsageError, match=next(iter(asked))):
        rcprobe.run("radd", "letters", **asked)
    with pytest.raises(UsageError, match="empty"):
        rcprobe.run("radd", [])
    with pytest.raises(UsageError, match="did you mean 'letters'"):
        rcprobe.run("radd", "lettres")
    with pytest.raises(UsageError, match="width"):
        rcprobe.load_dataset("letters", {"width": 3})


def test_pairs_that_cannot_be_asked_are_counted_with_their_reason():
    facts = [*SMALL.facts[:2], Fact("é", "E", "{a}{b}", "{b}{a}")]
    report = rcprobe.run(rcprobe.load("radd", options=OPTIONS), facts, metrics=["attention_correlation"])
    (reason, count), *_ = report.excluded["same_target"].items()
    assert "can't read" in reason
    assert count == 1
    frame = report.frame("attention_correlation")
    assert frame[frame.fact == 2].forward.isna().all()
    assert not frame[frame.fact == 0].forward.isna().any()


def test_a_probe_serves_somebody_elses_loop():
    m = rcprobe.load("radd", options=OPTIONS)
    probe = rcprobe.Probe(m, list(SMALL.facts), ["reverse_probability"])
    first = probe.step(0)
    with torch.no_grad():
        m.model.lm_head.bias[1] += 1.0
    second = probe.step(1)
    assert [step.step for step in probe.steps] == [0, 1]
    assert not np.allclose(first.measured[0].columns["reverse"], second.measured[0].columns["reverse"])


def test_gradients_are_read_once_a_fact_and_distance():
    m = rcprobe.load("radd", options=OPTIONS)
    pairs = rcprobe.encode(m, rcprobe.load_dataset("letters", {"length": 5}).facts)
    few = one_per_distance(pairs)
    assert len(few) == 26 * 4
    assert len({(pair.fact, pair.distances) for pair in few}) == len(few)


def test_chance_is_that_of_the_first_reading(monkeypatch):
    seen = {}

    def spy(*args, chance, **others):
        seen["chance"] = chance
        return build(*args, chance=chance, **others)

    monkeypatch.setattr("rcprobe.summary.build", spy)
    rcprobe.run(rcprobe.load("radd", options=OPTIONS), SMALL, metrics=["accuracy"], limit=2)
    assert seen["chance"] == pytest.approx(1 / 52)
    plain = Dataset("plain", SMALL.facts[:2])
    rcprobe.run(rcprobe.load("radd", options=OPTIONS), plain, metrics=["accuracy"])
    assert seen["chance"] == pytest.approx(1 / 54)
    assert math.isfinite(seen["chance"])
