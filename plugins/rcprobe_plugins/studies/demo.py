"""``rcprobe demo``: the question, three tiny models, an answer in about a minute."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rcprobe.report import Report, SeedRun
    from rcprobe_plugins.studies.jobs import Job

MODELS = {
    "masked diffusion, RoPE": ("radd", {"encoding": "rope", "width": 32}),
    "masked diffusion, ALiBi": ("radd", {"encoding": "alibi", "width": 32}),
    "causal, GPT-2 style": ("gpt2-mini", {"encoding": "absolute", "width": 32}),
}


def command(
    seeds: Annotated[int, typer.Option(help="Seeds of each model; a verdict needs 5.")] = 5,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="A new folder for each model's report.json and values.csv.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train three one-layer models on letter pairs, forward only; ask them backwards; say what was found.

    Example: rcprobe demo --seeds 8 --out runs/demo
    """
    from rcprobe.cli import print_json
    from rcprobe.errors import UsageError
    from rcprobe.report.report import new_folder

    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: use 1 or more")
    folder = new_folder(out) if out is not None else None
    reports = run_demo(seeds, steps, show=not (quiet or as_json))
    if folder is not None:
        for report in reports.values():
            report.save(folder / f"{report.info['model']}-{report.info['options']['encoding']}")
    if as_json:
        print_json({label: report.to_dict() for label, report in reports.items()})
    elif not quiet:
        from rcprobe_plugins.studies.demo_output import print_demo

        print_demo(reports)


def run_demo(seeds: int, steps: int, show: bool = False) -> "dict[str, Report]":
    """The demo's reports by the model's label."""
    from rcprobe_plugins.studies.jobs import Job, run_jobs, start_server

    start_server()  # it imports beside us

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from rcprobe.training import TrainConfig

    train = TrainConfig(steps=steps, lr=3e-3)
    jobs = [
        Job(model, options, "letters", {"length": 6}, train, tuple(range(seeds))) for model, options in MODELS.values()
    ]
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (show and console.is_terminal), transient=True) as bar:
        tasks = [bar.add_task(label, total=1.0) for label in MODELS]
        runs = run_jobs(jobs, lambda number, share: bar.update(tasks[number], completed=share))
    return {label: _report(job, found) for label, job, found in zip(MODELS, jobs, runs, strict=True)}


def _report(job: "Job", runs: "list[SeedRun]") -> "Report":
    from rcprobe.loading import load
    from rcprobe.probe import resolve_metrics
    from rcprobe.runner import load_dataset
    from rcprobe.summary import summarise

    m = load(job.model, options=job.options, seed=job.seeds[0])
    dataset = load_dataset(job.dataset, job.dataset_options)
    return summarise(m, dataset, resolve_metrics(None), runs, train=job.train)
