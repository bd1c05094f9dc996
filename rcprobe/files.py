"""Files that are there whole or not at all, and a lock that dies with its process."""

import errno
import hashlib
import json
import math
import numbers
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rcprobe.errors import RunError, UsageError

TEMPORARY = ".tmp"
PATIENCE = 0.5  # seconds: somebody who only looks holds the lock for an instant


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` when the block ends well.

    Its bytes are on the disk before its name is, and its name before the block is left. If anything fails, ``path``
    is as it was. Raises ``RunError`` where the file system refuses, a full disk among the reasons.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise RunError(unwritable(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole. Raises ``RunError``."""
    with whole(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON whole: an undefined number is null. Raises ``RunError``."""
    write_bytes(path, (json.dumps(strict(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of JSON. Raises ``RunError`` naming the file if it is missing, cut short or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path}: can't be read ({reason})") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds a {type(value).__name__}, not an object with names")
    return value


def strict(value: Any) -> Any:
    """A value as strict JSON holds it: None for a number that isn't finite, and its text for what JSON doesn't know."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises ``RunError`` naming the file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path}: can't be read ({error.strerror})") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, so that it survives a crash. Raises ``RunError``."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            flush_folder(folder.parent)
    except OSError as error:
        raise RunError(unwritable(path, error)) from error


def remove_temporaries(folder: Path) -> None:
    """Delete what writers left half done in a folder and below; links are not followed. Raises ``RunError``."""
    try:
        for where, folders, files in os.walk(folder):
            for name in files:
                if name.endswith(TEMPORARY):
                    (Path(where) / name).unlink()
            for name in [name for name in folders if name.endswith(TEMPORARY)]:
                shutil.rmtree(Path(where) / name)
                folders.remove(name)
    except OSError as error:
        raise RunError(unwritable(folder, error)) from error


def safe_name(text: str) -> str:
    """A text as a part of a file's name: letters, digits, dash and underscore, at most 60, whatever it held."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:60]


def inside(folder: Path, name: str) -> Path:
    """The path of a name in a folder. Raises ``RunError`` if it leads out of the folder, through a link or ``..``."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{folder}: {name!r} leads out of the folder; nothing there was read or written")
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file alone; the system lets go of it when the process ends, however it ends.

    Raises ``RunError`` if another process holds it, naming its number; ``UsageError`` where it can't be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(unwritable(path.parent, error)) from error
    try:
        _take(descriptor, path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    else:
        return False
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> str:
    """What to tell of a path that the file system refuses."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way_out = "; make room and give the same command again, what is finished is kept" if full else ""
    return f"{path}: can't write there ({error.strerror or error}){way_out}"


def flush_folder(folder: Path) -> None:
    """Put a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems can't, and don't need to
            raise
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    import fcntl  # only where a run is kept: Windows lacks it

    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunError(f"{path}: this file system can't lock files ({error.strerror})") from error
            if time.monotonic() > until:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
                raise RunError(
                    f"{path.parent}: process {holder} is writing this run; wait for it, or name another folder"
                ) from error
        time.sleep(0.05)
