"""What `rcprobe doctor` says of a machine that works, and of each thing that can be wrong with one."""

import json
import tomllib
from importlib import metadata
from pathlib import Path

import huggingface_hub.constants
import pytest
from test_cli import call

from rcprobe import doctor, hub
from rcprobe.doctor import EXTRAS, examine
from rcprobe.packages import installed
from rcprobe.plugins import BUNDLED, load_registry

SECRET = "hf_not_to_be_shown"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One with a token and a hub that answers."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "reachable", lambda: True)


def found(topic):
    return {finding.seen: finding for finding in examine() if finding.topic == topic}


def one(topic):
    (finding,) = found(topic).values()
    return finding


def test_a_machine_that_works_is_said_to():
    done = call("doctor")
    assert done.code is None
    assert done.err == ""
    for part in (f"torch {metadata.version('torch')}", "hub it answers", "hub token set", "plugin bundled rcprobe"):
        assert part in " ".join(done.out.split())
    assert SECRET not in done.out
    assert "BROKEN" not in done.out


def test_it_can_be_read_by_programs():
    rows = json.loads(call("doctor", "--json").out)
    assert {row["state"] for row in rows} <= {"ok", "note"}
    assert {"python", "rcprobe", "devices", "memory", "cache", "hub", "plugin bundled"} <= {
        row["topic"] for row in rows
    }
    assert all(row["way_out"] for row in rows if row["state"] != "ok")
    assert SECRET not in json.dumps(rows)


def test_without_a_token_it_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "not set" in one("hub token").seen


@pytest.mark.parametrize(("offline", "words"), [(True, "HF_HUB_OFFLINE"), (False, "doesn't answer")])
def test_a_hub_out_of_reach_is_a_note(offline, words, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    assert one("hub").state == "note"
    assert words in one("hub").seen
    assert "folders" in one("hub").way_out


@pytest.mark.parametrize(
    ("version", "words"), [("0.1", "0.1, and rcprobe needs >=1.6"), (None, "not installed")], ids=["old", "missing"]
)
def test_a_package_that_is_missing_or_too_old_is_broken(version, words, monkeypatch):
    real = metadata.version

    def installed(name):
        if name != "pluggy":
            return real(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", installed)
    done = call("doctor")
    assert done.code == 1
    assert f"BROKEN pluggy {words}" in " ".join(done.out.split())
    assert "→ pip install 'pluggy>=1.6'" in done.out


def test_what_cannot_be_looked_at_is_broken_and_the_rest_is_looked_at(monkeypatch):
    def raises():
        raise OSError("libtorch.so: wrong ELF class")

    monkeypatch.setattr("torch.get_num_threads", raises)
    assert one("devices").state == "broken"
    assert "libtorch.so: wrong ELF class" in one("devices").seen
    assert one("hub").state == "ok"


def test_an_extra_that_is_missing_is_a_note_with_its_purpose(monkeypatch):
    monkeypatch.setitem(EXTRAS, "report", (("jinja2", "no_such_module"), "pages"))
    finding = one("extra report")
    assert (finding.state, finding.way_out) == ("note", "pip install 'rcprobe[report]'")
    assert finding.seen == "no_such_module not installed, so not here: pages"


def test_a_bare_folder_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "no_such_module").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed("no_such_module")
    assert installed("pluggy")
    monkeypatch.setitem(EXTRAS, "report", (("no_such_module",), "pages"))
    assert one("extra report").state == "note"


def test_a_cache_that_cannot_be_looked_into_is_a_note_with_the_way_out(monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", closed)
    (finding,) = doctor._cache()
    assert (finding.state, finding.way_out) == ("note", "set HF_HOME to a folder that can")
    assert "can't be looked into" in finding.seen


def test_every_extra_of_the_project_is_known():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"bench", "dev", "docs"}


def test_a_cache_that_cannot_be_written_or_has_no_room(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert str(tmp_path / "cache") in one("cache").seen
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: doctor.shutil._ntuple_diskusage(9, 8, 1))
    assert one("cache").state == "note"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "can't be written" in one("cache").seen
    assert "HF_HOME" in one("cache").way_out


def test_little_memory_is_a_note(monkeypatch):
    monkeypatch.setattr("rcprobe.probing.sizes.free_memory", lambda device: 2**20)
    assert (one("memory").state, one("memory").seen) == ("note", "0.0 GiB free")


def test_plugins_that_failed_are_told_with_their_error(monkeypatch):
    points = [metadata.EntryPoint(name, value, "rcprobe") for name, value in (("bundled", BUNDLED), ("bad", "no_such"))]
    names = load_registry(points)
    monkeypatch.setattr(doctor, "registry", lambda: names)
    assert "No module named 'no_such'" in one("plugin bad").seen
    assert one("plugin bad").state == "note"
    assert "RCPROBE_DISABLE_PLUGINS=bad" in one("plugin bad").way_out
    assert one("plugin bundled").state == "ok"
    names = load_registry(points[:1], ["bundled"])
    assert one("plugin bundled").state == "note"


def test_without_the_bundled_plugins_it_is_broken(monkeypatch):
    monkeypatch.setattr(doctor, "registry", lambda: load_registry([]))
    assert one("plugins").state == "broken"
