import json
from dataclasses import fields

import pytest

import rcprobe
from rcprobe.config import KEYS, TRAIN_KEYS, RunConfig, read_config
from rcprobe.errors import UsageError


def write(tmp_path, text, name="run.toml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_every_setting_can_be_given_and_is_known_where_it_goes(tmp_path):
    assert set(KEYS) == {f.name for f in fields(RunConfig)}
    assert set(TRAIN_KEYS) == {f.name for f in fields(rcprobe.TrainConfig)}
    path = write(
        tmp_path,
        """
        model = "radd"
        dataset = "letters"
        metrics = ["storage"]
        seeds = 3
        limit = 4
        batch_size = 5
        device = "cpu"
        dtype = "float32"
        out = "runs/x"
        options.encoding = "alibi"
        [dataset_options]
        length = 6
        [train]
        steps = 9
        lr = 1
        betas = [0.8, 0.9]
        probe_at = [3]
        """,
    )
    config = read_config(path)
    assert config.training() == rcprobe.TrainConfig(steps=9, lr=1.0, betas=(0.8, 0.9), probe_at=(3,))
    assert (config.model, config.seeds, config.options, config.dataset_options) == (
        "radd",
        3,
        {"encoding": "alibi"},
        {"length": 6},
    )


def test_flags_win_and_join_tables():
    config = RunConfig(model="a", seeds=3, options={"x": 1, "y": 2}, train={"steps": 5, "lr": 0.1})
    found = config.with_flags({"model": None, "seeds": 4, "options": {"y": 3}, "train": {"steps": 6}, "limit": None})
    assert (found.model, found.seeds, found.options) == ("a", 4, {"x": 1, "y": 3})
    assert found.train == {"steps": 6, "lr": 0.1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("limitt = 3", "did you mean 'limit'"),
        ("[train]\nstep = 3", "did you mean 'train.steps'"),
        ("[training]\nsteps = 3", "did you mean 'train'"),
        ('seeds = "five"', "seeds is 'five'; it must be a whole number"),
        ("seeds = true", "whole number"),
        ("seeds = 1.5", "whole number"),
        ("model = 3", "a text"),
        ("metrics = [1]", "a list of texts"),
        ('metrics = "storage"', "a list of texts"),
        ('[train]\nlr = "fast"', "train.lr is 'fast'; it must be a number"),
        ("[train]\nprobe_at = [0.5]", "a list of whole numbers"),
        ("train = 3", "a table"),
        ("model = \n", "line 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(text, reason, tmp_path):
    with pytest.raises(UsageError, match=reason) as told:
        read_config(write(tmp_path, text))
    assert "run.toml" in str(told.value)


def test_training_without_steps_is_refused(tmp_path):
    with pytest.raises(UsageError, match="steps is missing"):
        read_config(write(tmp_path, "[train]\nlr = 0.1")).training()
    assert RunConfig().training() is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "can't be read"),
        ("[]", "isn't a run's manifest"),
        ("{}", "isn't a run's manifest"),
        ('{"config": null}', "Python"),
    ],
)
def test_a_manifest_without_a_configuration_is_refused(text, reason, tmp_path):
    with pytest.raises(UsageError, match=reason):
        read_config(write(tmp_path, text, "manifest.json"))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_config(tmp_path / "run.toml")


def test_the_configuration_in_a_manifest_is_one(tmp_path):
    m = rcprobe.load("radd", options={"width": 8, "max_length": 4}, dtype="float64")
    facts = rcprobe.load_dataset("letters", {"length": 3})
    train = rcprobe.TrainConfig(steps=2, probe_at=(1,), seed=4)
    rcprobe.run(m, facts, metrics=["accuracy"], limit=2, train=train, seeds=2, out=tmp_path / "run")
    config = read_config(tmp_path / "run" / "manifest.json")
    assert config.training() == train
    assert config == RunConfig(
        model="radd",
        dataset="letters",
        options={"width": 8, "max_length": 4},
        dataset_options={"length": 3},
        metrics=["accuracy"],
        train=config.train,
        seeds=2,
        limit=2,
        device="cpu",
        dtype="float64",
    )
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]["train"]["seed"] == 4
