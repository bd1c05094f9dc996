"""Trackers: TensorBoard's event files as TensorBoard reads them, a stand-in for wandb, and ones that fail.

The stand-in has what the tracker calls, no more; with wandb 0.31 itself, offline, the same was seen to work.
"""

import json
import os
import shutil
import sys

import numpy as np
import pytest

import rcprobe
from rcprobe.measured import Measured, Step
from rcprobe.plugins import registry
from rcprobe_plugins.trackers.scalars import scalars, verdicts
from rcprobe_plugins.trackers.sessions import Sessions

FAKE = """
import json, os

class Run:
    def __init__(self, **told):
        self.told = told
        self.config, self.summary = {}, {}
        self.rows = []

    def log(self, numbers, step):
        self.rows.append({"step": step, **numbers})

    def finish(self):
        with open(os.environ["FAKE_WANDB"], "a") as file:
            kept = {"told": self.told, "config": self.config, "summary": self.summary, "rows": self.rows}
            file.write(json.dumps(kept) + "\\n")

def init(**told):
    return Run(**told)
"""
TENSORBOARD, WANDB = "rcprobe_plugins.trackers.tensorboard", "rcprobe_plugins.trackers.wandb"


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """``tracked(names…)`` runs a small model with these trackers on and gives its report."""
    site = tmp_path / "site"
    (site / "wandb-0.0.dist-info").mkdir(parents=True)
    (site / "wandb-0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 0.0\n")
    (site / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_WANDB", str(tmp_path / "wandb.jsonl"))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)

    def run(*names):
        forget()
        monkeypatch.setenv("RCPROBE_PLUGINS", ",".join(names))
        letters = rcprobe.load_dataset("letters", {"length": 3}).limited(3)
        m = rcprobe.load("radd", options={"width": 8})
        train = rcprobe.TrainConfig(steps=2, probe_every=1)
        metrics = ["accuracy", "reverse_probability"]
        return rcprobe.run(m, letters, metrics=metrics, train=train, seeds=2, progress=False)

    yield run
    forget()


def forget():
    registry.cache_clear()
    for name in (TENSORBOARD, WANDB, "wandb"):
        sys.modules.pop(name, None)


def mean(report, seed, step):
    """The mean of reverse_probability's column ``reverse``, from the report's own rows."""
    rows = report.frame("reverse_probability")
    return float(rows[(rows.seed == seed) & (rows.step == step)]["reverse"].mean())


def test_off_unless_named(tracked, tmp_path):
    tracked()
    assert {path.name for path in tmp_path.iterdir()} == {"site"}


def test_tensorboard_reads_every_step_of_every_seed(tracked, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = tracked(TENSORBOARD)
    assert registry().failures == []
    (run,) = (tmp_path / "tensorboard").iterdir()
    for seed in (0, 1):
        events = EventAccumulator(str(run / f"seed {seed}")).Reload()
        points = events.Scalars("reverse_probability, swapped/reverse")
        assert [point.step for point in points] == [0, 1, 2]
        assert [point.value for point in points] == pytest.approx([mean(report, seed, s) for s in range(3)], rel=1e-6)
        (told,) = events.Tensors("verdict/reverse_probability/text_summary")
        assert report.signatures["reverse_probability"].verdict in told.tensor_proto.string_val[0].decode()
        assert len(events.Scalars("loss")) == 2  # there is none before the first step


def test_wandb_is_sent_the_same(tracked, tmp_path):
    report = tracked(WANDB)
    assert registry().failures == []
    runs = [json.loads(line) for line in (tmp_path / "wandb.jsonl").read_text().splitlines()]
    assert [run["told"]["name"] for run in runs] == ["seed 0", "seed 1"]
    assert len({run["told"]["group"] for run in runs}) == 1
    assert {run["told"]["project"] for run in runs} == {"rcprobe"}
    for seed, run in enumerate(runs):
        assert [row["step"] for row in run["rows"]] == [0, 1, 2]
        assert run["rows"][2]["reverse_probability, swapped/reverse"] == pytest.approx(mean(report, seed, 2))
        assert run["config"]["model"] == "radd"
        assert run["summary"]["verdict, reverse_probability"].startswith(
            report.signatures["reverse_probability"].verdict
        )


def test_one_that_fails_stops_neither_the_run_nor_the_other(tracked, tmp_path, monkeypatch):
    (tmp_path / "full").write_text("no folder")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "full"))
    report = tracked(TENSORBOARD, WANDB)
    assert [len(run.steps) for run in report.runs] == [3, 3]
    assert {failure.origin.plugin for failure in registry().failures} == {TENSORBOARD}
    assert any("step_finished raised" in failure.reason for failure in registry().failures)
    assert len((tmp_path / "wandb.jsonl").read_text().splitlines()) == 2


def test_one_whose_package_is_missing_is_left_out_with_the_way_out(tracked, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: None if name == "wandb" else found(name, *at))
    tracked(WANDB)
    (failure,) = registry().failures
    assert registry().state(failure.origin) == "left out"
    assert "pip install 'rcprobe[wandb]'" in failure.reason


def test_a_bare_folder_of_its_name_is_no_package(tracked, tmp_path):
    shutil.rmtree(tmp_path / "site")
    (tmp_path / "site" / "wandb").mkdir(parents=True)  # as wandb itself makes one where it is run
    tracked(WANDB)
    (failure,) = registry().failures
    assert "pip install 'rcprobe[wandb]'" in failure.reason


def test_naming_one_imports_nothing_heavy():
    import subprocess

    script = f"import sys, {TENSORBOARD}; sys.exit(bool({{'torch', 'tensorboard', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], env={**os.environ}, check=False).returncode == 0


def test_undefined_values_are_not_sent():
    columns = {"whole": np.array([1.0, np.nan, 3.0]), "none": np.full(2, np.nan)}
    measured = Measured("m", "swapped", 0, 4, columns, None)
    accuracy = {"swapped": {"full vocabulary": (0.5, float("nan"))}}
    step = Step(0, 4, None, (measured,), accuracy, {}, {})
    assert scalars(step) == {"accuracy, swapped/forward, full vocabulary": 0.5, "m, swapped/whole": 2.0}


def test_verdicts_of_what_was_not_measured(tracked):
    report = tracked()
    assert set(verdicts(report)) == set(report.signatures)


def test_steps_that_go_back_are_another_run():
    opened = []
    closed = []
    sessions = Sessions(lambda run, seed: opened.append((run, seed)) or len(opened), closed.append)

    def step(seed, number):
        return sessions.at(Step(seed, number, None, (), {}, {}, {}))

    assert [step(0, 0), step(1, 0), step(0, 5), step(1, 5)] == [1, 2, 1, 2]
    assert step(0, 0) == 3
    assert closed == [1, 2]  # of a run that was aborted nothing is left open
    assert opened[0][0] == opened[1][0] != opened[2][0]
    sessions.end()
    assert closed == [1, 2, 3]
    assert step(0, 9) == 4
