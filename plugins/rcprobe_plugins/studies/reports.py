"""Jobs on all cores under one display, and a report of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rcprobe.report import Report, SeedRun
    from rcprobe_plugins.studies.jobs import Job


def run_reports(jobs: "Sequence[Job]", show: bool = False) -> "list[Report]":
    """Each job's report; ``show`` draws progress where standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from rcprobe_plugins.studies.jobs import run_jobs

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<24}", markup=False),  # an encoding may be called [x]
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (show and console.is_terminal), transient=True) as bar:
        tasks = [bar.add_task(job.label, total=1.0) for job in jobs]
        runs = run_jobs(jobs, lambda number, share: bar.update(tasks[number], completed=share))
    return [_report(job, found) for job, found in zip(jobs, runs, strict=True)]


def _report(job: "Job", runs: "list[SeedRun]") -> "Report":
    from rcprobe.loading import load
    from rcprobe.metrics import resolve_metrics
    from rcprobe.runner import load_dataset
    from rcprobe.summary import summarise

    m = load(job.model, options=job.options, seed=job.seeds[0])
    dataset = load_dataset(job.dataset, job.dataset_options)
    return summarise(m, dataset, resolve_metrics(None), runs, train=job.train)
