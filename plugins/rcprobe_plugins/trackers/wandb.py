"""Weights & Biases: ``RCPROBE_PLUGINS=rcprobe_plugins.trackers.wandb`` sends it what a run measures, a run a seed.

Its own variables say where to and how: ``WANDB_PROJECT`` (rcprobe, if unset), ``WANDB_MODE=offline`` and so on.
"""

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from rcprobe.errors import MissingExtraError
from rcprobe.hookspecs import hookimpl
from rcprobe.packages import installed

if TYPE_CHECKING:
    from rcprobe.measured import Step
    from rcprobe.report import Report
    from rcprobe_plugins.trackers.sessions import Sessions

if not installed("wandb"):
    raise MissingExtraError("the tracker of Weights & Biases", "wandb", "wandb")  # it is left out, and listed so


@hookimpl
def step_finished(step: "Step") -> None:
    """Send a step's numbers."""
    from rcprobe_plugins.trackers.scalars import scalars

    _runs().at(step).log(scalars(step), step=step.step)


@hookimpl
def run_finished(report: "Report") -> None:
    """Send how the run was made and its verdicts, and end it."""
    from rcprobe_plugins.trackers.scalars import verdicts

    for seed in report.runs:
        run = _runs().of(seed.seed)
        run.config.update(dict(report.info))
        run.summary.update({f"verdict, {name}": verdict for name, verdict in verdicts(report).items()})
    _runs().end()


@cache
def _runs() -> "Sessions[Any]":
    from rcprobe_plugins.trackers.sessions import Sessions

    return Sessions(_open, lambda run: run.finish())


def _open(run: str, seed: int) -> Any:
    import wandb

    project = os.environ.get("WANDB_PROJECT", "rcprobe")
    return wandb.init(project=project, group=run, name=f"seed {seed}", reinit="create_new")
