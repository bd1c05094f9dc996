"""What a study has trained, in its folder until it is finished, so that one that was stopped goes on.

One safetensors file a model: the probed weights of each seed with their losses, and what was trained as metadata.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rcprobe.errors import RunChangedError, RunError
from rcprobe.files import make_folder
from rcprobe.step_files import write_safetensors
from rcprobe.store import differences
from rcprobe.training import Checkpoint
from rcprobe_plugins.studies.fast_trainer import Recording


def keep_training(path: Path, recordings: Sequence[Recording], described: Mapping[str, Any]) -> None:
    """Write the recordings of seeds, and what was trained. Raises ``RunError``."""
    arrays = {"steps": np.array([stop.step for stop, _ in recordings[0].stops])}
    for number, recording in enumerate(recordings):
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
        steps = arrays["steps"].tolist()
        found = [
            Recording(
                tuple(
                    (Checkpoint(step, None if step == 0 else loss), weights)
                    for step, loss, weights in zip(
                        steps, arrays[f"{number}/losses"].tolist(), arrays[f"{number}/weights"], strict=True
                    )
                )
            )
            for number in range(len(there["seeds"]))
        ]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: isn't what rcprobe writes ({type(error).__name__}: {error}); delete it to train that model again"
        ) from error
    changes = differences(there, described)
    if changes:
        raise RunChangedError(
            f"{path} was trained otherwise; nothing was overwritten:\n  "
            + "\n  ".join(changes)
            + "\nname another folder, or delete that file to train this model again"
        )
    return found
