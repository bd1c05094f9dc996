"""Runs on the command line: kept, gone on with, listed, shown, repeated from a file, and estimated."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_cli import call, refused, strict

from rcprobe.commands.output import duration

RUN = ("run", "radd", "letters", "--limit", "2", "--option", "width=8", "--steps", "2", "--seeds", "2")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    assert call(*RUN, "--json", "--out", str(folder)).code is None
    return folder


def report(folder):
    return strict((folder / "report.json").read_text())


def test_the_same_command_gives_the_same_report_at_once(kept):
    done = call(*RUN, "--json", "--out", str(kept))
    assert done.code is None
    assert done.err == f"{kept} holds 4 of 4 probed steps\n"
    assert strict(done.out) == report(kept)
    assert call(*RUN, "--quiet", "--out", str(kept)).err == ""


def test_fresh_starts_over_beside_it_and_says_where(kept):
    done = call(*RUN, "--fresh", "--out", str(kept))
    assert done.code is None
    assert done.err == f"kept in {kept}-2\n"
    assert report(Path(f"{kept}-2")) == report(kept)


def test_a_run_repeats_from_its_manifest_and_flags_win(kept, tmp_path):
    manifest = str(kept / "manifest.json")
    assert call("run", "--config", manifest, "--quiet", "--out", str(tmp_path / "same")).code is None
    assert report(tmp_path / "same") == report(kept)
    assert (
        call("run", "--config", manifest, "--seeds", "1", "--steps", "1", "--quiet", "--out", str(tmp_path / "b")).code
        is None
    )
    info = report(tmp_path / "b")["info"]
    assert info["seeds"] == [0]
    assert info["train"] == {**report(kept)["info"]["train"], "steps": 1}
    assert info["options"] == {"width": 8}


def test_a_toml_file_says_it_all(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "run.toml").write_text(
        f"""
        model = "radd"
        dataset = "letters"
        metrics = ["accuracy"]
        limit = 1
        out = '{out}'
        options.width = 8
        dataset_options.length = 4
        """
    )
    assert call("run", "--config", str(tmp_path / "run.toml"), "--quiet").code is None
    found = report(out)
    assert found["info"]["facts"] == 1
    assert found["info"]["metrics"] == ["accuracy"]
    assert json.loads((out / "manifest.json").read_text())["config"]["dataset_options"] == {"length": 4}


def test_a_wrong_file_is_refused_with_the_key(tmp_path):
    (tmp_path / "run.toml").write_text('model = "radd"\ndataset = "letters"\nlimitt = 3\n')
    assert "did you mean 'limit'" in refused("run", "--config", str(tmp_path / "run.toml"))


def test_a_dry_run_says_the_cost_and_leaves_nothing(tmp_path):
    done = call(*RUN, "--dry-run", "--out", str(tmp_path / "x"))
    assert done.code is None
    assert done.err == ""
    for part in (
        "pairs",
        "4 training steps",
        "4 probes",
        "parameters",
        "time        about",
        "MiB at the peak",
        "timed",
    ):
        assert part in done.out
    assert not (tmp_path / "x").exists()
    cost = strict(call(*RUN, "--dry-run", "--json").out)
    assert (cost["steps"], cost["probes"], cost["facts"]) == (4, 4, 2)
    assert cost["pairs"]["same_target"] == {"askable": 90, "of": 90}
    assert call(*RUN, "--dry-run", "--quiet").out == ""


@pytest.mark.parametrize(("seconds", "said"), [(0.01, "1 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_times_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


# --- runs list, runs show ---


@pytest.fixture
def several(kept, tmp_path):
    """A finished run, an unfinished one, one with a cut manifest, one of a newer rcprobe, one with a failed seed."""
    for name in ("finished", "deep/unfinished", "cut", "newer", "failed"):
        shutil.copytree(kept, tmp_path / name)
    (tmp_path / "deep/unfinished/done.json").unlink()
    (tmp_path / "deep/unfinished/seed-1/done.json").unlink()
    shutil.rmtree(tmp_path / "deep/unfinished/seed-1/step-0000002")
    manifest = (kept / "manifest.json").read_text()
    (tmp_path / "cut" / "manifest.json").write_text(manifest[:99])
    (tmp_path / "newer" / "manifest.json").write_text(manifest.replace('"schema": 1', '"schema": 9'))
    marker = json.loads((kept / "seed-0" / "done.json").read_text())
    (tmp_path / "failed" / "seed-0" / "done.json").write_text(json.dumps({**marker, "failure": "it diverged"}))
    (tmp_path / "no-run").mkdir()
    return tmp_path


def test_runs_list_tells_how_far_each_is(several):
    done = call("runs", "list", str(several))
    assert done.code is None
    rows = {Path(line.split()[0]).name: line for line in done.out.splitlines()}
    assert set(rows) == {"finished", "unfinished", "cut", "newer", "failed"}
    assert "finished    4 of 4 steps, radd on letters, 2 facts" in rows["finished"]
    assert "unfinished  3 of 4 steps" in rows["unfinished"]
    assert "unreadable" in rows["cut"]
    assert "newer rcprobe" in rows["newer"]
    assert "1 of 2 seeds failed" in rows["failed"]
    found = {Path(row["run"]).name: row["state"] for row in strict(call("runs", "list", str(several), "--json").out)}
    assert found == {
        "cut": "unreadable",
        "unfinished": "unfinished",
        "failed": "finished",
        "finished": "finished",
        "newer": "unreadable",
    }


def test_runs_list_where_there_are_none(tmp_path):
    done = call("runs", "list", str(tmp_path))
    assert (done.code, done.out) == (None, "")
    assert "no runs in" in done.err
    for nowhere in ("", str(tmp_path / "nowhere")):
        assert "is no folder" in refused("runs", "list", nowhere)


def test_runs_show_says_what_was_asked_and_found(kept, several):
    done = call("runs", "show", str(kept))
    assert done.code is None
    for part in ("finished, 4 of 4 steps", "width 8", "steps 2", "torch ", "seed 1", "Signatures"):
        assert part in done.out
    partial = call("runs", "show", str(several / "deep" / "unfinished"))
    assert "seed 1       1 steps, not finished" in partial.out
    assert "Signatures" not in partial.out
    found = strict(call("runs", "show", str(several / "failed"), "--json").out)
    assert found["failures"] == {"0": "it diverged", "1": None}
    assert found["steps"] == {"0": [0, 2], "1": [0, 2]}
    assert found["manifest"]["settings"]["model"] == "radd"


@pytest.mark.parametrize("name", ["", "no-run", "cut", "newer", "../nowhere"])
def test_runs_show_of_what_cannot_be_read_is_an_error(name, several):
    done = call("runs", "show", str(several / name) if name else "")
    assert done.code == (1 if name in ("cut", "newer") else 2)  # damaged, or asked wrongly
    assert done.out == ""
    assert done.err.startswith("rcprobe: ")


def test_runs_list_needs_neither_torch_nor_pyarrow(several):
    script = f"""
import sys
from rcprobe.cli import main
sys.argv = ["rcprobe", "runs", "list", {str(several)!r}]
try:
    main()
except SystemExit:
    sys.exit(", ".join({{"torch", "pyarrow", "pandas"}} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- stopping ---


WATCHED = """
import signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background ignores it
from importlib import metadata
import rcprobe
from rcprobe.cli import main
from rcprobe.plugins import registry

watch = types.ModuleType("watch")

@rcprobe.hookimpl
def step_finished(step):
    print("probed", file=sys.stderr, flush=True)

watch.step_finished = step_finished
sys.modules["watch"] = watch
registry().add(metadata.EntryPoint("watch", "watch", "rcprobe"))
sys.argv = ["rcprobe", *"run radd letters --limit 1 --option width=8 --steps 1000000 --out".split(), sys.argv[1]]
main()
"""


def test_ctrl_c_ends_a_run_at_once_and_it_goes_on(tmp_path):
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        overdue = threading.Timer(120, running.kill)
        overdue.start()
        try:
            assert running.stderr.readline() == "probed\n"  # training starts now
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        finally:
            overdue.cancel()
            running.kill()
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "interrupted" in err
    assert re.search(r"run holds [01] of 2 probed steps; the same command goes on with it$", err, re.MULTILINE)
    assert "unfinished" in call("runs", "list", str(tmp_path)).out


def test_a_piped_run_prints_nothing_but_its_report(kept):
    command = [sys.executable, "-m", "rcprobe", "run", str(kept / "seed-0" / "model"), "letters", "--limit", "1"]
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
