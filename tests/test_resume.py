"""Killed at any moment, a run goes on with the same command, and its numbers are those of one that never stopped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import rcprobe
from rcprobe import TrainConfig, load
from rcprobe.errors import RunChangedError, RunError, UsageError
from rcprobe.report import load_report
from rcprobe.store import RunFolder
from rcprobe.training import state as training_state
from rcprobe.training import train

SMALL = rcprobe.load_dataset("letters", {"length": 3}).limited(3)
METRICS = ["storage", "reverse_probability"]
TRAIN = TrainConfig(steps=6, probe_every=2, batch_size=8)


def tiny(**options):
    return load("radd", options={"width": 8, "max_length": 4, **options})


def kill(what, number, place):
    """The trial of ``killed.py``; its forks need a process in which nothing has run."""
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(place), what, str(number)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RCPROBE_DISABLE_PLUGINS": ""},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_runs_killed_at_thirty_random_moments_end_as_if_unbroken(tmp_path):
    runs = kill("at_random", 30, tmp_path)["runs"]
    assert len(runs) == 30
    assert [run["same"] for run in runs] == [True] * 30
    assert any(run["steps"] for run in runs)  # and not all of them began anew
    assert any(run["states"] for run in runs)


def test_runs_killed_around_a_rename_end_as_if_unbroken(tmp_path):
    runs = kill("at_every_rename", 9, tmp_path)["runs"]
    assert sum(run["killed"] for run in runs) >= 3
    assert all(run["same"] for run in runs)


# --- training ---


@pytest.mark.parametrize("kept_at", [1, 2, 3, 5])
def test_training_from_a_kept_state_goes_on_bit_for_bit(kept_at, monkeypatch):
    """Optimiser, averages, dropout and draws: all in the state, at a stop (2) or between stops."""
    monkeypatch.setattr(training_state, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(training_state, "KEEP_SHARE", float("inf"))
    states = {}
    whole = tiny(dropout=0.2)
    stops = [
        (s.step, s.loss, whole.fingerprint()) for s in train(whole, SMALL.facts, TRAIN, 0, keep=states.__setitem__)
    ]
    assert sorted(states) == [1, 2, 3, 4, 5, 6]
    torch.manual_seed(99)
    rest = tiny(dropout=0.2)
    found = [(s.step, s.loss, rest.fingerprint()) for s in train(rest, SMALL.facts, TRAIN, 0, state=states[kept_at])]
    assert found == [stop for stop in stops if stop[0] >= kept_at]
    assert rest.fingerprint() == whole.fingerprint()


def test_training_leaves_the_callers_random_numbers_alone():
    m = tiny(dropout=0.2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for _ in train(m, SMALL.facts, TRAIN, 0):
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)


def test_states_are_kept_now_and_then_only(monkeypatch):
    kept = []
    for _ in train(tiny(), SMALL.facts, TRAIN, 0, keep=lambda step, state: kept.append(step)):
        pass
    assert kept == []  # six steps take less than KEEP_EVERY seconds


# --- a run ---


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    return rcprobe.run(tiny(), SMALL, metrics=METRICS, train=TRAIN, seeds=2, out=folder)


def same(report, other):
    assert report.to_dict() == other.to_dict()
    for name in (None, *METRICS):
        pd.testing.assert_frame_equal(report.frame(name), other.frame(name), check_exact=True)


class Stop(Exception):
    pass


def stopped(folder, monkeypatch, after):
    """A run that ends in an error once it has kept so many steps."""
    count = 0
    save = rcprobe.seed_folder.save_step

    def save_step(path, step):
        nonlocal count
        if count == after:
            raise Stop
        count += 1
        save(path, step)

    with monkeypatch.context() as patch:
        patch.setattr("rcprobe.seed_folder.save_step", save_step)
        with pytest.raises(Stop):
            rcprobe.run(tiny(), SMALL, metrics=METRICS, train=TRAIN, seeds=2, out=folder)


def test_a_kept_run_is_the_run_that_keeps_nothing(unbroken):
    same(rcprobe.run(tiny(), SMALL, metrics=METRICS, train=TRAIN, seeds=2), unbroken)


def test_finished_steps_are_kept_and_only_the_others_are_probed(unbroken, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stopped(folder, monkeypatch, after=5)
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("seed-*/step-*/*")}
    assert RunFolder(folder).progress() == (5, 8)
    probed = []
    step = rcprobe.Probe.step
    monkeypatch.setattr(
        rcprobe.Probe, "step", lambda self, k, loss: probed.append((self.seed, k)) or step(self, k, loss)
    )
    report = rcprobe.run(tiny(), SMALL, metrics=METRICS, train=TRAIN, seeds=2, out=folder)
    assert probed == [(1, 2), (1, 4), (1, 6)]
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    same(report, unbroken)


def test_a_finished_run_is_read_and_not_run_again(unbroken, monkeypatch):
    monkeypatch.setattr(rcprobe.Probe, "step", None)
    same(rcprobe.run(tiny(), SMALL, metrics=METRICS, train=TRAIN, seeds=2, out=unbroken.folder), unbroken)


def test_the_report_is_rebuilt_from_the_folder_alone(unbroken):
    report = rcprobe.Report.load(unbroken.folder)
    same(report, unbroken)
    assert report.dataset.facts == SMALL.facts
    assert report.dataset.readings == SMALL.readings
    for name, signature in unbroken.signatures.items():
        assert repr(report.signatures[name]) == repr(signature)  # NaN differs from itself, its text doesn't
    assert repr(report.accuracy) == repr(unbroken.accuracy)


def test_a_resumed_single_seed_leaves_the_model_trained(tmp_path):
    first, second = tiny(), tiny()
    asked = {"metrics": METRICS, "train": TRAIN, "out": tmp_path / "run"}
    report = rcprobe.run(first, SMALL, **asked)
    rcprobe.run(second, SMALL, **asked)
    assert second.fingerprint() == first.fingerprint() == report.runs[0].fingerprint
    assert load(tmp_path / "run" / "seed-0" / "model").fingerprint() == first.fingerprint()


def test_a_diverged_seed_is_not_trained_again(tmp_path, monkeypatch):
    def broken():
        m = tiny()
        with torch.no_grad():
            m.model.lm_head.bias[3] = torch.nan
        return m

    asked = {"metrics": METRICS, "train": TRAIN, "out": tmp_path / "run"}
    first = rcprobe.run(broken(), SMALL, **asked)
    assert "diverged" in first.runs[0].failure
    (tmp_path / "run" / "done.json").unlink()  # killed before the report was complete
    monkeypatch.setattr("rcprobe.runner._train", None)
    again = rcprobe.run(broken(), SMALL, **asked)
    assert again.to_dict() == first.to_dict()
    assert load_report(tmp_path / "run").runs[0].failure == first.runs[0].failure


# --- another run ---


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"train": TrainConfig(steps=6, probe_every=2, batch_size=8, lr=0.5)}, "train.lr: 0.001 there, 0.5 now"),
        ({"seeds": 3}, r"seeds: \[0, 1\] there, \[0, 1, 2\] now"),
        ({"metrics": ["storage"]}, "metrics: .* there, "),
        ({"batch_size": 7}, "batch_size: auto there, 7 now"),
        ({"limit": 2}, "facts: 3 there, 2 now"),
    ],
)
def test_other_settings_are_refused_with_the_difference(change, shown, unbroken):
    before = {p: p.read_bytes() for p in unbroken.folder.rglob("*") if p.is_file()}
    asked = {"metrics": METRICS, "train": TRAIN, "seeds": 2, "out": unbroken.folder, **change}
    with pytest.raises(RunChangedError, match=shown):
        rcprobe.run(tiny(), SMALL, **asked)
    assert {p: p.read_bytes() for p in unbroken.folder.rglob("*") if p.is_file() and p.name != "lock"} == {
        p: data for p, data in before.items() if p.name != "lock"
    }


def test_another_model_plugin_or_library_is_refused_with_the_difference(unbroken, monkeypatch):
    asked = {"metrics": METRICS, "train": TRAIN, "seeds": 2, "out": unbroken.folder}
    other = tiny()
    with torch.no_grad():
        other.model.lm_head.bias[0] += 1
    with pytest.raises(RunChangedError, match=r"fingerprint: \w{12}… there, \w{12}… now"):
        rcprobe.run(other, SMALL, **asked)
    with pytest.raises(RunChangedError, match=r"options\.width: 8 there, 16 now"):
        rcprobe.run(tiny(width=16), SMALL, **asked)
    changed = [type(SMALL.facts[0])("z", "Z", "{a}{b}", "{b}{a}"), *SMALL.facts[1:]]
    with pytest.raises(RunChangedError, match="facts_digest"):
        rcprobe.run(tiny(), changed, **asked)
    real = rcprobe.manifest.metadata.version
    rcprobe.manifest.versions.cache_clear()
    monkeypatch.setattr("rcprobe.manifest.metadata.version", lambda name: "9" if name == "torch" else real(name))
    with pytest.raises(RunChangedError, match=r"versions\.torch: .* there, 9 now"):
        rcprobe.run(tiny(), SMALL, **asked)
    rcprobe.manifest.versions.cache_clear()


def test_a_plugin_of_another_version_is_refused(unbroken, monkeypatch):
    monkeypatch.setattr("rcprobe.plugins.Origin.version", "0.0.1")
    with pytest.raises(RunChangedError, match=r"plugins\.rcprobe: 0\.1\.0 there, 0\.0\.1 now"):
        rcprobe.run(tiny(), SMALL, metrics=METRICS, train=TRAIN, seeds=2, out=unbroken.folder)


def test_fresh_starts_beside_and_deletes_nothing(unbroken):
    before = {p.name for p in unbroken.folder.rglob("*")}
    asked = {"metrics": METRICS, "limit": 1, "out": unbroken.folder, "fresh": True}
    assert rcprobe.run(tiny(), SMALL, **asked).folder == unbroken.folder.with_name("unbroken-2")
    assert rcprobe.run(tiny(), SMALL, **asked).folder == unbroken.folder.with_name("unbroken-3")
    assert {p.name for p in unbroken.folder.rglob("*")} == before


def test_never_resuming_refuses_a_folder_with_a_run(unbroken):
    with pytest.raises(UsageError, match="nothing was overwritten"):
        rcprobe.run(tiny(), SMALL, metrics=METRICS, train=TRAIN, seeds=2, out=unbroken.folder, resume="never")


# --- damage ---


@pytest.mark.parametrize("harm", ["cut", "changed", "removed"])
@pytest.mark.parametrize(
    "name",
    [
        "dataset.json",
        "report.json",
        "seed-0/done.json",
        "seed-1/step-0000002/step.json",
        "seed-1/step-0000002/00-storage-swapped.parquet",
        "seed-1/step-0000002/tensors.safetensors",
        "seed-1/step-0000002/done.json",
        "seed-0/model/model.safetensors",
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_guessed(name, harm, unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    file = folder / name
    data = file.read_bytes()
    if harm == "removed":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if harm == "cut" else data[:-20] + b"x" * 20)
    with pytest.raises(RunError, match=str(file)):
        load_report(folder)
    asked = {"metrics": METRICS, "train": TRAIN, "seeds": 2, "out": folder}
    if (name, harm) == ("seed-0/done.json", "removed"):  # a seed that isn't finished, as far as anybody can see
        same(rcprobe.run(tiny(), SMALL, **asked), unbroken)
        return
    with pytest.raises(RunError, match=str(file)):
        rcprobe.run(tiny(), SMALL, **asked)


def test_a_damaged_state_is_named_with_the_way_out(tmp_path, monkeypatch, unbroken):
    monkeypatch.setattr(training_state, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(training_state, "KEEP_SHARE", float("inf"))
    folder = tmp_path / "run"
    stopped(folder, monkeypatch, after=3)
    (state,) = folder.glob("seed-0/state-*/state.safetensors")
    state.write_bytes(state.read_bytes()[:-1] + b"!")
    asked = {"metrics": METRICS, "train": TRAIN, "seeds": 2, "out": folder}
    with pytest.raises(RunError, match=f"{state}: damaged.*delete {state.parent}"):
        rcprobe.run(tiny(), SMALL, **asked)
    shutil.rmtree(state.parent)
    same(rcprobe.run(tiny(), SMALL, **asked), unbroken)


def test_an_unfinished_run_gives_no_report(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stopped(folder, monkeypatch, after=2)
    with pytest.raises(RunError, match="unfinished, 2 of 8 steps"):
        load_report(folder)


def test_a_run_of_a_newer_rcprobe_is_refused(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 2}))
    for use in (load_report, lambda folder: rcprobe.run(tiny(), SMALL, out=folder)):
        with pytest.raises(RunError, match="newer rcprobe"):
            use(folder)


def test_a_run_that_filled_the_disk_goes_on_once_there_is_room(tmp_path, unbroken):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    asked = {"metrics": METRICS, "train": TRAIN, "seeds": 2, "out": disk / "run"}
    try:
        with pytest.raises(RunError, match=r"can't write there \(No space left on device.*\); make room"):
            rcprobe.run(tiny(), SMALL, **asked)
        done, _ = RunFolder(disk / "run").progress()
        assert 0 < done < 8
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        same(rcprobe.run(tiny(), SMALL, **asked), unbroken)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
