import json
import os
import shutil
import subprocess
import sys

import pytest

import rcprobe
from rcprobe import Dataset, Fact
from rcprobe.errors import RunChangedError, RunError, UsageError
from rcprobe.measured import Step
from rcprobe.store import RunFolder, differences, fresh_folder, open_run

FACTS = Dataset(
    "pairs",
    (
        Fact("é\x7f", "B", ("{a}{b}", "{a} {b}"), ("{b}{a}", "{b} {a}"), a_answers="x"),
        Fact("c", "D", "{a}{b}", "{b}{a}"),
    ),
    {"two": (("é", "c"), ("B", "D"))},
    "seed",
    {"length": 3},
)
MANIFEST = {"schema": 1, "stops": [0, 5], "config": None, "settings": {"seeds": [0, 1], "train": {"lr": 0.1}}}


def begun(path):
    with open_run(path) as kept:
        kept.begin(MANIFEST, FACTS)
    return kept


def step(number, seed=0):
    return Step(seed, number, None, (), {}, {}, {})


def test_a_new_run_has_its_manifest_and_its_facts(tmp_path):
    kept = begun(tmp_path / "runs" / "x")
    assert kept.manifest() == MANIFEST
    assert kept.dataset() == FACTS
    assert kept.state() == "unfinished"
    assert kept.progress() == (0, 4)


def test_a_step_counts_with_its_marker_and_a_seed_that_failed_has_no_more_to_come(tmp_path):
    kept = begun(tmp_path / "x")
    kept.seed(0).save_step(step(0))
    kept.seed(0).save_step(step(5))
    kept.seed(1).save_step(step(0, seed=1))
    (kept.path / "seed-0" / "step-0000005" / "done.json").unlink()
    assert kept.seed(0).numbers() == [0]
    assert kept.progress() == (2, 4)
    kept.seed(1).finish("it diverged", "f", [0], 9)
    assert kept.progress() == (2, 3)
    assert kept.seed(1).failure() == "it diverged"
    assert (kept.seed(0).failure(), kept.seed(0).finished()) == (None, False)


def test_the_batch_size_is_settled_once(tmp_path):
    """Free memory decides it, and another batch size gives other last digits."""
    seed = begun(tmp_path / "x").seed(0)
    assert seed.batch_size(lambda: 32) == 32
    assert seed.batch_size(lambda: 64) == 32
    (seed.path / "batch.json").write_text("{}")
    with pytest.raises(RunError, match=r"batch\.json"):
        seed.batch_size(lambda: 1)


def test_names_that_are_not_ours_are_no_steps(tmp_path):
    kept = begun(tmp_path / "x")
    for name in ("step-abc", "step--1", "steps"):
        (kept.path / "seed-0" / name).mkdir(parents=True)
        (kept.path / "seed-0" / name / "done.json").write_text("{}")
    assert kept.seed(0).numbers() == []


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    kept = begun(tmp_path / "x")
    (tmp_path / "elsewhere").mkdir()
    (kept.path / "seed-0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="leads out"):
        kept.seed(0)
    (kept.path / "seed-1").mkdir()
    (kept.path / "seed-1" / "step-0000000").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="leads out"):
        kept.seed(1).save_step(step(0, seed=1))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", "dataset.json"], ["lock", "dataset.json.7.tmp"]])
def test_a_folder_left_before_the_manifest_was_there_is_taken_up(left, tmp_path):
    for name in left:
        (tmp_path / name).write_text("{")
    assert begun(tmp_path).dataset() == FACTS
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("there", [["notes.txt"], ["dataset.json"], ["lock", "report.json"]])
def test_a_folder_with_other_files_is_refused_and_left_alone(there, tmp_path):
    for name in there:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="nothing was overwritten"):
        begun(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(there, "mine")


@pytest.mark.parametrize("place", ["", " ", "/proc/x", "{file}", "{file}/below"])
def test_a_place_where_nothing_can_be_written_is_refused(place, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match=r"can't write|empty name"):
        begun(place.format(file=tmp_path / "file"))


def test_a_read_only_file_system_is_refused_and_can_be_read(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path)], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        begun(path / "x")
        subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
        for name in ("x", "new"):
            with pytest.raises(UsageError, match=r"can't write there \(Read-only file system\)"):
                begun(path / name)
        assert RunFolder(path / "x").dataset() == FACTS
        assert RunFolder(path / "x").state() == "unfinished"
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_folder_without_permission_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="can't write"):
        begun(tmp_path / "x")


def test_two_processes_cannot_write_one_run(tmp_path):
    holder = f"""
from rcprobe.store import open_run
with open_run({str(tmp_path / "x")!r}):
    print("held", flush=True)
    input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", holder], text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        assert RunFolder(tmp_path / "x").state() == "running"
        with pytest.raises(RunError, match=f"process {process.pid} is writing this run"):
            begun(tmp_path / "x")
        process.kill()
    begun(tmp_path / "x")


def test_the_same_settings_go_on_and_others_are_shown(tmp_path):
    begun(tmp_path / "x")
    begun(tmp_path / "x")
    other = {**MANIFEST, "settings": {"seeds": (0, 1), "train": None}}
    with (
        pytest.raises(RunChangedError, match=r"train: \{'lr': 0.1\} there, none now") as told,
        open_run(tmp_path / "x") as kept,
    ):
        kept.begin(other, FACTS)
    assert "--fresh" in str(told.value)
    assert "seeds" not in str(told.value)


def test_differences_name_what_is_nested():
    there = {"a": 1, "train": {"lr": 0.1, "steps": 5}, "conditions": {"x": [1]}, "digest": "0" * 64}
    now = {"a": 1, "train": {"lr": 0.1, "steps": 6}, "conditions": {"y": [1]}, "digest": "1" * 64, "new": "n" * 99}
    assert differences(there, now) == [
        "train.steps: 5 there, 6 now",
        "digest: 000000000000… there, 111111111111… now",
        f"new: none there, {'n' * 28}…{'n' * 28} now",
    ]


def test_fresh_names_are_free_and_nothing_is_lost(tmp_path):
    assert fresh_folder(tmp_path / "x") == tmp_path / "x"
    assert fresh_folder(tmp_path / "x") == tmp_path / "x"  # empty still
    (tmp_path / "x" / "file").write_text("")
    (tmp_path / "x-2").write_text("a file")
    assert fresh_folder(tmp_path / "x") == tmp_path / "x-3"
    with pytest.raises(UsageError, match="can't write there"):
        fresh_folder(tmp_path / "x-2" / "below")


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("", "can't be read"),
        ('{"schema": 1', "can't be read"),
        ("{}", "isn't a manifest"),
        ('{"schema": "1", "settings": {}}', "isn't a manifest"),
        ('{"schema": 7, "settings": {}}', "newer rcprobe .schema 7"),
        ('{"schema": 1, "settings": {}}', "names no seeds"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(manifest, reason, tmp_path):
    begun(tmp_path)
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(RunError, match=reason):
        RunFolder(tmp_path).manifest()
    with pytest.raises(RunError, match=reason):
        begun(tmp_path)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(RunError, match="no run is kept there"):
        RunFolder(tmp_path).check()


# --- the manifest ---


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    place = tmp_path_factory.mktemp("my-home")
    facts = rcprobe.load_dataset("letters", {"length": 3})
    m = rcprobe.load("radd", options={"width": 8, "max_length": 4})
    train = rcprobe.TrainConfig(steps=1)
    rcprobe.run(m, facts, metrics=["reverse_probability"], limit=2, train=train, out=place / "run")
    shutil.copytree(place / "run" / "seed-0" / "model", place / "secret-place" / "my-model")
    report = rcprobe.run(
        str(place / "secret-place" / "my-model"), facts, metrics=["reverse_probability"], limit=2, out=place / "again"
    )
    return place, report


def test_the_manifest_says_all_that_repeats_a_run(kept):
    place, _ = kept
    manifest = RunFolder(place / "run").manifest()
    settings = manifest["settings"]
    assert {"versions", "seeds", "fingerprint", "adapter", "plugins", "dtype", "attention", "batch_size"} <= set(
        settings
    )
    assert {"device", "revision", "train", "threads", "hardware", "tokenizer", "facts_digest"} <= set(settings)
    assert manifest["schema"] == 1
    assert manifest["config"]["dataset_options"] == {"length": 3}
    assert manifest["config"]["limit"] == 2
    assert manifest["command"]


def test_nothing_that_is_kept_names_a_place_on_this_machine(kept):
    place, report = kept
    assert report.info["model"] == "my-model"
    for path in place.rglob("*"):
        if path.is_file():
            assert str(place).encode() not in path.read_bytes(), path
            assert b"secret-place" not in path.read_bytes(), path


def test_nothing_that_is_kept_is_a_pickle(kept):
    place, _ = kept
    kinds = {path.suffix for path in place.rglob("*") if path.is_file() and path.name != "lock"}
    assert kinds == {".json", ".parquet", ".safetensors", ".csv", ".html"}


def test_objects_of_the_callers_have_no_configuration(tmp_path):
    @rcprobe.metric(reads={"log_probs"})
    def margin(seen):
        return seen.log_probs[:, 1] - seen.log_probs[:, 0]

    letters = rcprobe.load_dataset("letters", {"length": 3})
    m = rcprobe.load("radd", options={"width": 8, "max_length": 4})
    rcprobe.run(m, letters.facts[:2], metrics=["accuracy"], out=tmp_path / "facts")
    rcprobe.run(m, letters, metrics=[margin], limit=1, out=tmp_path / "metric")
    rcprobe.run(m, letters.limited(1), metrics=["accuracy"], out=tmp_path / "limited")
    for name in ("facts", "metric", "limited"):
        assert json.loads((tmp_path / name / "manifest.json").read_text())["config"] is None


@pytest.mark.parametrize(
    ("argv", "kept"),
    [
        (
            ["/usr/bin/rcprobe", "run", "/home/me/model", "letters", "--out", "runs/x"],
            "rcprobe run model letters --out runs/x",
        ),
        (["/x/rcprobe/__main__.py", "run", "--out=/home/me/x"], "rcprobe run --out=x"),
        (["rcprobe", "run", "~/model", "--option", "path=/a/b"], "rcprobe run model --option path=b"),
        (["/home/me/train.py", "--password", "1234"], "train.py"),
        (["/x/other/__main__.py", "--token=1"], "__main__.py"),
        ([""], ""),
    ],
)
def test_the_command_is_kept_without_paths_and_of_other_programs_without_arguments(argv, kept):
    assert rcprobe.manifest.command(argv) == kept
