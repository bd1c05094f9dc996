"""A model's history: checkpoints in folders or on the hub, probed one after the other."""

import gc
import json
import shutil
import weakref

import pytest
import torch
from test_cli import call

import rcprobe
from rcprobe import TrainConfig, revisions
from rcprobe.errors import RunChangedError, UsageError
from rcprobe.model_files import save_model
from rcprobe.revisions import steps_of
from rcprobe.training import train

LETTERS = rcprobe.load_dataset("letters", {"length": 3}).limited(3)
OPTIONS = {"width": 8, "max_length": 8}
METRICS = ("accuracy", "reverse_probability", "storage")
TRAIN = TrainConfig(steps=4, probe_every=2)
NAMES = ["ckpt-0", "ckpt-2", "ckpt-4"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Where a training left its checkpoints."""
    folder = tmp_path_factory.mktemp("saved")
    m = rcprobe.load("radd", options=OPTIONS)
    for stop in train(m, LETTERS.facts, TRAIN, 0):
        save_model(m, folder / f"ckpt-{stop.step}")
    return folder


@pytest.fixture
def no_page(monkeypatch):
    """Drawing its figures is most of what keeping so small a run costs."""
    monkeypatch.setattr("rcprobe.report.figures.installed", lambda: False)


def history(model, names=NAMES, metrics=("reverse_probability",), **others):
    return rcprobe.run(model, LETTERS, metrics=metrics, progress=False, **others, revisions=names)


def found(report):
    """All that was measured and judged."""
    return report.frame().to_csv(), report.to_dict()["signatures"], report.accuracy, report.runs[0].fingerprint


def test_a_history_says_what_the_run_says_that_trained_it(saved, tmp_path, no_page):
    m = rcprobe.load("radd", options=OPTIONS)
    trained = rcprobe.run(m, LETTERS, metrics=METRICS, train=TRAIN, progress=False)
    report = history(saved, metrics=METRICS, out=tmp_path / "run")
    assert [step.step for step in report.runs[0].steps] == [0, 2, 4]
    assert found(report) == found(trained)
    assert len(set(report.frame("reverse_probability").groupby("step").reverse.sum())) == 3
    said = "the steps are revisions of the model, which were trained elsewhere: 0 is ckpt-0, 2 is ckpt-2, 4 is ckpt-4"
    assert said in report.notes
    assert [text.partition(", sha256 ")[0] for text in report.info["revisions"].values()] == [
        "step 0",
        "step 2",
        "step 4",
    ]
    assert found(rcprobe.Report.load(tmp_path / "run")) == found(trained)


def test_a_history_goes_on_where_it_was_stopped_and_loads_only_what_is_left(saved, tmp_path, monkeypatch, no_page):
    whole, loaded, become = history(saved), [], revisions.become

    def spied(m, revision):
        loaded.append(revision.name)
        if len(loaded) == 3:
            raise KeyboardInterrupt
        become(m, revision)

    monkeypatch.setattr("rcprobe.runner.become", spied)
    with pytest.raises(KeyboardInterrupt):
        history(saved, out=tmp_path / "run")
    assert found(history(saved, out=tmp_path / "run")) == found(whole)
    assert loaded == [*NAMES, "ckpt-4"]
    assert found(history(saved, out=tmp_path / "run")) == found(whole)  # read, not run again
    assert len(loaded) == 4
    with pytest.raises(RunChangedError, match=r"revisions\.ckpt-0: step 0, sha256 .* there, none now"):
        history(saved, NAMES[1:], out=tmp_path / "run")
    torch.manual_seed(0)
    changed = shutil.copytree(saved, tmp_path / "changed")
    m = rcprobe.load(changed / "ckpt-2")
    m.model.lm_head.bias.data += 1
    save_model(m, changed / "ckpt-2")
    with pytest.raises(RunChangedError, match=r"revisions\.ckpt-2"):
        history(changed, out=tmp_path / "run")


def test_a_loaded_model_is_read_as_it_was_and_left_with_the_last(saved, monkeypatch):
    m = rcprobe.load(saved / "ckpt-0", dtype="float64")
    report = history(m, ["ckpt-0", "ckpt-4"])  # beside it
    last = rcprobe.load(saved / "ckpt-4", dtype="float64")
    assert m.fingerprint() == last.fingerprint() == report.runs[0].fingerprint
    assert report.info["dtype"] == "float64"
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(m.model(input_ids=ids).logits, last.model(input_ids=ids).logits)


def test_one_model_at_a_time_is_in_memory(saved, monkeypatch):
    m = rcprobe.load(saved / "ckpt-0")
    before, alive, load = [weakref.ref(m.model.lm_head)], [], revisions.load

    def spied(*args, **others):
        alive.append([module() for module in before if module() is not None])
        loaded = load(*args, **others)
        before.append(weakref.ref(loaded.model.lm_head))
        return loaded

    monkeypatch.setattr(revisions, "load", spied)
    gc.disable()  # what is freed isn't freed by chance
    try:
        history(m, metrics=["gradient_alignment"])
    finally:
        gc.enable()
    assert alive == [[], [], []]


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["step1000", "step2000"], [1000, 2000]),
        (["step-0000300", "step-0004000"], [300, 4000]),
        (["2024/step7", "2025/step9"], [7, 9]),
        (["step2000", "step1000"], [1, 2]),
        (["base", "instruct"], [1, 2]),
        (["step1000", "main"], [1, 2]),
        (["a1", "b1"], [1, 2]),
        (["stage1-step1000", "stage2-step2000"], [1, 2]),
    ],
)
def test_steps_bear_the_numbers_of_names_that_ascend(names, steps):
    assert steps_of(names) == steps


def test_what_is_missing_or_another_model_is_named_before_anything_is_probed(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("rcprobe.runner._probe", lambda *_: pytest.fail("probed"))
    with pytest.raises(UsageError, match=r"revision 'ckpt-9': no such folder in .*, nor beside it"):
        history(saved, [*NAMES, "ckpt-9"])
    with pytest.raises(UsageError, match="'ckpt-2' is named twice"):
        history(saved, ["ckpt-2", "ckpt-2"])
    with pytest.raises(UsageError, match="none is named"):
        history(saved, [])
    with pytest.raises(UsageError, match="leave out what trains"):
        history(saved, train=TRAIN)
    with pytest.raises(UsageError, match="'radd' is built anew"):
        history("radd")
    with pytest.raises(UsageError, match="several seeds of one set of weights"):
        history(saved, seeds=2)
    others = shutil.copytree(saved, tmp_path / "others")
    config = json.loads((others / "ckpt-2" / "config.json").read_text())
    (others / "ckpt-2" / "config.json").write_text(json.dumps({**config, "width": 16}))
    with pytest.raises(UsageError, match="'ckpt-2' is another model than 'ckpt-0': its width is 16, not 8"):
        history(others)
    (others / "ckpt-2" / "config.json").write_text(json.dumps({**config, "model_type": "gpt2-mini"}))
    with pytest.raises(UsageError, match="its model_type is 'gpt2-mini', not 'radd'"):
        history(others)
    tokenizer = json.loads((others / "ckpt-4" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"a": 1, "0": 2}
    (others / "ckpt-4" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match="'ckpt-4' has another tokenizer than 'ckpt-0'"):
        history(others, ["ckpt-0", "ckpt-4"])
    (others / "ckpt-4" / "tokenizer.json").unlink()
    monkeypatch.undo()
    assert found(history(others, ["ckpt-0", "ckpt-4"])) == found(history(saved, ["ckpt-0", "ckpt-4"]))


def test_revisions_of_the_hub_are_fetched_and_their_commits_kept(saved, tmp_path, monkeypatch, no_page):
    """A hub whose snapshots lie where its client would put them."""
    here = found(history(saved, ["ckpt-0", "ckpt-4"]))
    places = {"step0": saved / "ckpt-0", "step4": saved / "ckpt-4"}
    commits = {name: shutil.copytree(at, tmp_path / name / ("c" * 39 + name[-1])) for name, at in places.items()}
    for module in ("rcprobe.checkpoint", "rcprobe.loading", "rcprobe.revisions"):
        monkeypatch.setattr(f"{module}.local_folder", lambda source, how: commits[how.revision])
    read = revisions.raw_config
    for module in ("rcprobe.loading", "rcprobe.revisions"):
        monkeypatch.setattr(f"{module}.raw_config", lambda source, revision: read(str(commits[revision])))
    report = history("somebody/model", ["step0", "step4"], out=tmp_path / "run")
    assert [step.step for step in report.runs[0].steps] == [0, 4]
    assert report.info["revisions"]["step4"] == f"step 4, commit {'c' * 39}4"
    assert report.info["revision"] is None
    config = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]
    assert config is None or (config["revisions"], "revision" in config) == (["step0", "step4"], False)
    assert found(report) == here


def test_the_command_keeps_repeats_and_estimates_a_history(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(saved.parent)
    run = str(tmp_path / "run")
    asked = ("letters", "--data-option", "length=3", "--limit", "2", "--metric", "reverse_probability")
    names = ("--revisions", "ckpt-0,ckpt-4")
    done = call("run", saved.name, *asked, *names, "--quiet", "--out", run)
    assert done.code is None, done.err
    report = rcprobe.Report.load(run)
    assert [step.step for step in report.runs[0].steps] == [0, 4]
    assert report.frame("reverse_probability").reverse.notna().all()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["stops"] == [0, 4]
    assert manifest["config"]["revisions"] == ["ckpt-0", "ckpt-4"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "revisions=[&#39;ckpt-0&#39;, &#39;ckpt-4&#39;]" in page
    assert "step 4, sha256" in page
    again = call("run", "--config", str(tmp_path / "run" / "manifest.json"), "--out", str(tmp_path / "2"), "--quiet")
    assert again.code is None, again.err
    assert found(rcprobe.Report.load(tmp_path / "2")) == found(report)
    cost = json.loads(call("run", saved.name, *asked, *names, "--dry-run", "--json").out)
    assert cost["probes"] == 2
    assert "revisions: 2" in page
    assert "revisions: 2" in call("runs", "show", run).out
    assert f"no such folder in {saved.name}, nor" in call("run", saved.name, *asked, "--revisions", "ckpt-0,no").err
    for wrong, reason in ((("--steps", "3"), "leave out what trains"), (("--revision", "x"), "give one of the two")):
        refused = call("run", saved.name, *asked, *names, *wrong)
        assert refused.code == 2
        assert reason in refused.err
