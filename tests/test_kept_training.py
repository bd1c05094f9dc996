"""What a study has trained is kept whole, used again for the same training, and refused for another."""

from dataclasses import replace

import numpy as np
import pytest

from rcprobe import TrainConfig
from rcprobe.errors import RunChangedError, RunError, TrainingError
from rcprobe.loading import load
from rcprobe_plugins.studies import fast_trainer, jobs
from rcprobe_plugins.studies.jobs import Job
from rcprobe_plugins.studies.kept_training import study_folder


@pytest.fixture
def job(tmp_path, monkeypatch):
    class Unheard:
        def put(self, step):
            pass

    monkeypatch.setattr(jobs, "_steps", Unheard())
    train = TrainConfig(steps=4, probe_at=(2,))
    options = {"encoding": "rope", "width": 8}
    return Job(
        "rope", "radd", options, "letters", {"length": 4}, train, (0, 1), tmp_path / "trained" / "rope.safetensors"
    )


def test_what_is_kept_is_not_trained_again(job, monkeypatch):
    first = jobs._train(0, job)
    monkeypatch.setattr(fast_trainer, "record", None)
    again = jobs._train(0, job)
    assert len(again) == 2
    for one, other in zip(first, again, strict=True):
        assert [stop for stop, _ in one.stops] == [stop for stop, _ in other.stops]
        assert [stop.step for stop, _ in other.stops] == [0, 2, 4]
        assert other.stops[0][0].loss is None
        for (_, weights), (_, kept) in zip(one.stops, other.stops, strict=True):
            assert weights.dtype == kept.dtype
            np.testing.assert_array_equal(weights, kept)


def test_another_training_is_refused_with_what_differs(job):
    jobs._train(0, job)
    with pytest.raises(RunChangedError, match=r"train\.lr: 0\.001 there, 0\.01 now"):
        jobs._train(0, replace(job, train=replace(job.train, lr=0.01)))
    with pytest.raises(RunChangedError, match=r"options\.encoding: rope there, alibi now"):
        jobs._train(0, replace(job, options={**job.options, "encoding": "alibi"}))
    with pytest.raises(RunChangedError, match=r"dataset_options\.length: 4 there, 5 now"):
        jobs._train(0, replace(job, dataset_options={"length": 5}))


def test_a_training_that_diverged_is_kept_as_it_was(job):
    with pytest.raises(TrainingError, match="seed 0") as first:
        list(_replayed(job))
    with pytest.raises(TrainingError) as again:
        list(_replayed(job))
    assert str(again.value) == str(first.value)


def test_seeds_that_end_at_different_steps_are_kept_each(job, monkeypatch):
    """Trained one by one, a seed that diverges has fewer stops than the others."""

    def uneven(models, facts, config, seeds, progress=None):
        whole, short = (
            fast_trainer._alone(m, facts, config, seed, None) for m, seed in zip(models, seeds, strict=True)
        )
        diverged = fast_trainer.Checkpoint(2, np.nan), short.stops[1][1]
        return [whole, replace(short, stops=(short.stops[0], diverged))]

    monkeypatch.setattr(fast_trainer, "record", uneven)
    jobs._train(0, job)
    monkeypatch.setattr(fast_trainer, "record", None)
    whole, short = jobs._train(0, job)
    assert [stop.step for stop, _ in whole.stops] == [0, 2, 4]
    assert [stop.step for stop, _ in short.stops] == [0, 2]
    assert np.isnan(short.stops[1][0].loss)


def _replayed(job):
    wild = replace(job, train=TrainConfig(steps=3, lr=1e38, warmup=0, batch_size=4))
    m = load("radd", options=job.options)
    return jobs._train(0, wild)[0].replay(m, (), wild.train, 0)


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    out = tmp_path / "study"
    with study_folder(out, {}), pytest.raises(RunError, match="is writing this run"), study_folder(out, {}):
        pass


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_file_is_named_with_the_way_out(job, damage):
    jobs._train(0, job)
    job.kept.write_bytes(job.kept.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(RunError, match=r"rope\.safetensors: .*delete it to train that model again"):
        jobs._train(0, job)
