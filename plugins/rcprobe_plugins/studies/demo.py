"""``rcprobe demo``: the question, three tiny models, an answer in about a minute."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rcprobe.report import Report

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
    if as_json:
        print_json({label: report.to_dict() for label, report in reports.items()})
    elif not quiet:
        from rcprobe_plugins.studies.demo_output import print_demo

        print_demo(reports)
    if folder is not None:
        for report in reports.values():
            report.save(folder / f"{report.info['model']}-{report.info['options']['encoding']}")


def run_demo(seeds: int, steps: int, show: bool = False) -> "dict[str, Report]":
    """The demo's reports by the model's label."""
    from rcprobe_plugins.studies.jobs import Job, start_server

    start_server()  # it imports beside us

    from rcprobe.training import TrainConfig
    from rcprobe_plugins.studies.reports import run_reports

    train = TrainConfig(steps=steps, lr=3e-3)
    jobs = [
        Job(label, model, options, "letters", {"length": 6}, train, tuple(range(seeds)))
        for label, (model, options) in MODELS.items()
    ]
    return dict(zip(MODELS, run_reports(jobs, show), strict=True))
