"""TensorBoard: ``RCPROBE_PLUGINS=rcprobe_plugins.trackers.tensorboard`` writes what a run measures to its event files.

One folder a seed, in ``tensorboard/`` and the time of the first step; ``TENSORBOARD_LOGGING_DIR`` names another place.
"""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rcprobe.errors import MissingExtraError
from rcprobe.hookspecs import hookimpl
from rcprobe.packages import installed

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

    from rcprobe.measured import Step
    from rcprobe.report import Report
    from rcprobe_plugins.trackers.sessions import Sessions

if not installed("tensorboard"):
    raise MissingExtraError("the tracker of TensorBoard", "tensorboard", "tensorboard")  # it is left out, and listed so

FOLDER = "TENSORBOARD_LOGGING_DIR"


@hookimpl
def step_finished(step: "Step") -> None:
    """Write a step's numbers."""
    from rcprobe_plugins.trackers.scalars import scalars

    writer = _writers().at(step)
    for name, value in scalars(step).items():
        writer.add_scalar(name, value, step.step)
    writer.flush()


@hookimpl
def run_finished(report: "Report") -> None:
    """Write the verdicts beside each seed's numbers."""
    from rcprobe_plugins.trackers.scalars import verdicts

    for run in report.runs:
        writer = _writers().of(run.seed)
        for name, verdict in verdicts(report).items():
            writer.add_text(f"verdict/{name}", verdict)
    _writers().end()


@cache
def _writers() -> "Sessions[SummaryWriter]":
    from rcprobe_plugins.trackers.sessions import Sessions

    return Sessions(_open, lambda writer: writer.close())


def _open(run: str, seed: int) -> "SummaryWriter":
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(Path(os.environ.get(FOLDER, "tensorboard")) / run / f"seed {seed}")
