import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rcprobe.errors import RunError, UsageError
from rcprobe.files import (
    inside,
    is_locked,
    locked,
    make_folder,
    read_json,
    remove_temporaries,
    safe_name,
    strict,
    whole,
    write_bytes,
    write_json,
)
from rcprobe.step_files import write_arrays


def test_a_file_takes_its_name_only_when_it_is_whole_and_on_the_disk(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append(("rename", b.name)) or replace(a, b))
    write_bytes(tmp_path / "file", b"new")
    assert calls == [("fsync", f"file.{os.getpid()}.tmp"), ("rename", "file"), ("fsync", tmp_path.name)]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_what_fails_half_way_leaves_the_old_file_and_no_other(tmp_path):
    write_bytes(tmp_path / "file", b"old")

    def half():
        with whole(tmp_path / "file") as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; where none can be mounted, a limit on the size of files."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        yield place
        subprocess.run(["umount", str(place)], check=True)
    else:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        yield place
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_bytes(path, b"x" * 1_000_000),
        lambda path: write_arrays(path, {"x": np.ones(1_000_000)}),
        lambda path: write_json(path, {"x": "y" * 1_000_000}),
    ],
    ids=["bytes", "tensors", "json"],
)
def test_a_full_disk_is_told_with_the_way_out(write, small_disk):
    with pytest.raises(RunError, match=r"file: can't write there \(.*(space|large).*\); make room"):
        write(small_disk / "file")
    assert list(small_disk.iterdir()) == []


def test_a_read_only_file_system_is_told(tmp_path, monkeypatch):
    def read_only(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(RunError, match=r"can't write there \(Read-only file system\)"):
        write_bytes(tmp_path / "file", b"x")
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(UsageError, match=r"can't write there \(Read-only file system\)"), locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "link/x"])
def test_no_name_leads_out_of_a_folder(name, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(RunError, match="leads out of the folder"):
        inside(folder, name)
    assert inside(folder, "seed-0/model/x") == folder / "seed-0/model/x"


@pytest.mark.parametrize("text", ["../../etc/passwd", "/a", "a\\b", "naïve metric", "..", "x" * 500, "a\0b"])
def test_any_text_gives_a_name_without_a_path(text, tmp_path):
    name = safe_name(text)
    assert (tmp_path / f"00-{name}.parquet").parent == tmp_path
    assert 0 < len(name) <= 60
    assert name.replace("_", "").replace("-", "").isalnum() or set(name) <= {"_", "-"}


def test_json_is_strict_and_reads_back(tmp_path):
    value = {1: [math.nan, math.inf, np.float64(0.1), np.int64(3), True, None], "é": ("x", tmp_path)}
    write_json(tmp_path / "x.json", value)
    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert found == {"1": [None, None, 0.1, 3, True, None], "é": ["x", str(tmp_path)]} == strict(value)
    assert read_json(tmp_path / "x.json") == found


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 1'])
def test_what_is_no_object_of_json_is_named(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(RunError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_a_lock_is_for_one_and_dies_with_its_process(tmp_path):
    lock = tmp_path / "lock"
    holder = f"""
import sys, time
from pathlib import Path
from rcprobe.files import locked
with locked(Path({str(lock)!r})):
    print("held", flush=True)
    time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert is_locked(lock)
        with pytest.raises(RunError, match=f"process {process.pid} is writing this run"), locked(lock):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not is_locked(lock)
    with locked(lock):
        assert is_locked(lock)
        start = time.monotonic()
        with pytest.raises(RunError, match=str(os.getpid())), locked(lock):
            pass
        assert time.monotonic() - start < 5


def test_nothing_is_locked_where_there_is_no_lock(tmp_path):
    assert not is_locked(tmp_path / "lock")


def test_only_what_writers_left_is_removed_and_links_are_not_followed(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    for place in (outside, folder / "seed-0" / "tokenizer.7.tmp"):
        place.mkdir(parents=True)
        (place / "x.tmp").write_text("")
    (folder / "link").symlink_to(outside)
    (folder / "kept").write_text("")
    remove_temporaries(folder)
    assert sorted(p.name for p in folder.rglob("*")) == ["kept", "link", "seed-0"]
    assert (outside / "x.tmp").exists()


def test_a_folder_in_the_way_of_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't write there"):
        make_folder(tmp_path / "file" / "below")
