"""Several processes that train together do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import together
import torch

import rcprobe
from rcprobe.training.processes import Processes, speaks


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*started, str(Path(__file__).with_name("together.py")), str(place)],
        capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads((place / f"{n}.json").read_text()) for n in (0, 1)], place


def test_they_end_with_the_weights_of_one(two, tmp_path):
    found, _ = two
    alone = together.trained(tmp_path / "alone")
    for each in found:
        for name in ("weights", "reverse"):
            torch.testing.assert_close(
                torch.tensor(each["whole"][name]), torch.tensor(alone[name]), rtol=1e-9, atol=1e-11
            )
        assert each["whole"]["losses"][1:] == pytest.approx(alone["losses"][1:], rel=1e-6)
    assert found[0]["whole"] == found[1]["whole"]


def test_they_go_on_together_where_they_stopped(two):
    found, _ = two
    for each in found:
        assert each["gone on"] == each["whole"]


def test_one_of_them_writes(two):
    _, place = two
    assert (place / "whole" / "done.json").exists()
    assert sorted(p.name for p in (place / "whole" / "seed-0").iterdir()) == [
        "batch.json", "done.json", "model", "step-0000000", "step-0000003", "step-0000006",
    ]  # fmt: skip


def test_a_batch_too_small_to_be_shared_is_refused(two):
    found, _ = two
    assert "a batch of 1 statements can't be shared by 2 processes" in found[0]["refused"]


def test_one_process_has_everything():
    (part,) = Processes().share([torch.arange(4)], 1)
    assert part[0].tolist() == [0, 1, 2, 3]
    mine = [Processes(n, 2).share([torch.arange(5)], 2) for n in (0, 1)]
    assert sorted(int(v) for parts in mine for part in parts for v in part[0]) == [0, 1, 2, 3, 4]


def test_a_probe_in_one_process_of_several_waits_for_nobody(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    probe = rcprobe.Probe(together.model(), rcprobe.load_dataset("letters", {"length": 3}).limited(2), ["accuracy"])
    assert probe.step(0).accuracy["swapped"]
    assert not torch.distributed.is_initialized()
    monkeypatch.setenv("RANK", "1")
    assert not speaks()
