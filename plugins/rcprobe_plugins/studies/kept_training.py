"""What a study has trained, in its folder until it is finished, so that one that was stopped goes on.

trained/study.json     what was asked for; without it, a folder is not ours
trained/*.safetensors  a model: its seeds' probed weights with their losses, and what was trained as metadata
trained/lock           held by the one process that works there
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rcprobe.errors import RunChangedError, RunError
from rcprobe.files import TEMPORARY, locked, make_folder, read_json, strict, unwritable, write_json
from rcprobe.report.report import new_folder
from rcprobe.step_files import write_safetensors
from rcprobe.store import differences
from rcprobe.training import Checkpoint
from rcprobe_plugins.studies.fast_trainer import Recording

STUDY, LOCK = "study.json", "lock"


@contextmanager
def study_folder(out: Path, asked: Mapping[str, Any]) -> Iterator[Path]:
    """The folder for what a study trains, in ``out``: a new one, or that of the same study, which was stopped.

    It is removed when the block ends well. Raises ``UsageError`` where ``out`` holds anything else,
    ``RunChangedError`` where another study was stopped there, ``RunError`` where one is running.
    """
    kept = out / "trained"
    if os.path.isfile(kept / STUDY):
        _same(read_json(kept / STUDY), strict(asked), f"{out} holds another study, which isn't finished", f"{kept}")
    else:
        make_folder(new_folder(out) / kept.name)
        write_json(kept / STUDY, asked)
    with locked(kept / LOCK):
        yield kept
        _remove(kept)


def _remove(kept: Path) -> None:
    try:
        for file in sorted(kept.iterdir()):
            if file.name in (STUDY, LOCK) or file.suffix in (".safetensors", TEMPORARY):
                file.unlink()
        kept.rmdir()
    except OSError as error:
        raise RunError(unwritable(kept, error)) from error


def keep_training(path: Path, recordings: Sequence[Recording], described: Mapping[str, Any]) -> None:
    """Write the recordings of seeds, and what was trained. Raises ``RunError``."""
    arrays = {}
    for number, recording in enumerate(recordings):
        arrays[f"{number}/steps"] = np.array([stop.step for stop, _ in recording.stops])  # fewer where it diverged
        arrays[f"{number}/weights"] = np.stack([weights for _, weights in recording.stops])
        arrays[f"{number}/losses"] = np.array([np.nan if c.loss is None else c.loss for c, _ in recording.stops])
    make_folder(path.parent)
    write_safetensors(path, lambda file: save_file(arrays, file, {"described": json.dumps(described)}))


def kept_training(path: Path, described: Mapping[str, Any]) -> list[Recording] | None:
    """The recordings kept there, or None. Raises ``RunError`` for a damaged file, ``RunChangedError`` where something
    else was trained.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            there = json.loads(file.metadata()["described"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        found = [
            Recording(
                tuple(
                    (Checkpoint(step, None if step == 0 else loss), weights)
                    for step, loss, weights in zip(
                        arrays[f"{number}/steps"].tolist(),
                        arrays[f"{number}/losses"].tolist(),
                        arrays[f"{number}/weights"],
                        strict=True,
                    )
                )
            )
            for number in range(len(there["seeds"]))
        ]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: isn't what rcprobe writes ({type(error).__name__}: {error}); delete it to train that model again"
        ) from error
    _same(there, described, f"{path} was trained otherwise", f"{path.parent}")
    return found


def _same(there: Mapping[str, Any], now: Mapping[str, Any], what: str, place: str) -> None:
    changes = differences(there, now)
    if changes:
        raise RunChangedError(
            f"{what}; nothing was overwritten:\n  "
            + "\n  ".join(changes)
            + f"\nname another folder, or delete {place} to train anew"
        )
