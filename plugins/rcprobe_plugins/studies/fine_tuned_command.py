"""``rcprobe reproduce tab7 | fig4 | fig6``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcprobe_plugins.studies.fine_tuned import (
    MINI_MODEL,
    Tuning,
    mini_training,
    mini_tunings,
    paper_training,
    paper_tunings,
    run_tunings,
)

if TYPE_CHECKING:
    from rcprobe.training import TrainConfig


def reproduce_tuned(
    table: str,
    seeds: int | None,
    out: Path | None,
    *,
    mini: bool,
    model: str | None,
    data: Path | None,
    dry_run: bool,
    quick: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fine-tune what a table or figure needs, print it, and with ``out`` keep it; ``dry_run`` only says what.

    Raises ``UsageError`` for flags that don't go together, and ``RcprobeError`` after all is printed and kept if a run
    failed, or of a dry run would.
    """
    from rcprobe.cli import print_json
    from rcprobe.commands.output import bars_for_people
    from rcprobe.errors import RcprobeError, UsageError

    if quick:
        raise UsageError(f"--quick is of the one-layer tables; a small {table} is --mini")
    if model is not None and not mini:
        raise UsageError(f"--model is the causal model of --mini; {table} itself has its own models")
    if mini and data is not None:
        raise UsageError("--data are the files of the paper's datasets; --mini has facts of its own")
    if data is not None and not data.is_dir():
        raise UsageError(f"--data {data}: there is no such folder")
    tunings = mini_tunings(model or MINI_MODEL) if mini else paper_tunings(table, data)
    training = mini_training() if mini else paper_training()
    count = seeds or (1 if mini else 3)
    if dry_run:
        planned = plan(tunings, training, count, out)
        if as_json:
            print_json(planned)
        elif not quiet:
            _print_plan(planned)
        lacking = [row["run"] for row in planned["runs"] if row["missing"]]
        if lacking:
            local = " (--model FOLDER names a local copy)" if mini else ""
            raise RcprobeError(f"can't be run here yet: {'; '.join(lacking)}; what is missing is said above{local}")
        return
    show = not (quiet or as_json)
    bars_for_people(show)
    tuned = run_tunings(tunings, training, count, out, show=show)

    from rcprobe.report.sheet import print_sheet, save_sheet
    from rcprobe_plugins.studies.fine_tuned_tables import panels, tab7

    key = f"{table}-mini" if mini else table
    sheet = tab7(key, tuned) if table == "tab7" else panels(key, tuned)
    if as_json:
        print_json({sheet.key: sheet.to_dict()})
    elif show:
        print_sheet(sheet)
    if out is not None:
        save_sheet(sheet, out)
    if tuned.failed:
        raise RcprobeError("not run: " + "; ".join(tuning.label for tuning in tuned.failed) + "; the notes say why")


def plan(tunings: Sequence[Tuning], training: "TrainConfig", seeds: int, folder: Path | None) -> dict[str, Any]:
    """What would be run, from configurations and data alone: no weight is read."""
    return {
        "training": {name: value for name, value in asdict(training).items() if value not in (None, ())},
        "seeds": seeds,
        "runs": [_planned(tuning, folder) for tuning in tunings],
    }


def _planned(tuning: Tuning, folder: Path | None) -> dict[str, Any]:
    from rcprobe.errors import RcprobeError
    from rcprobe.inspection import inspect
    from rcprobe.runner import load_dataset
    from rcprobe.store import MANIFEST, RunFolder

    found: dict[str, Any] = {"run": tuning.label, "model": tuning.source, "dataset": tuning.dataset}
    kept = None if folder is None else RunFolder(folder / tuning.folder)
    found["kept"] = list(kept.progress()) if kept is not None and (kept.path / MANIFEST).exists() else None
    missing = []
    try:
        seen = inspect(tuning.source)
        found |= {"parameters": seen.parameters, "adapter": seen.adapter, "lora_modules": seen.lora_modules}
    except RcprobeError as error:
        missing.append(str(error))
    try:
        found["facts"] = len(load_dataset(tuning.dataset, tuning.dataset_options).limited(tuning.limit).facts)
    except RcprobeError as error:
        missing.append(str(error))
    return {**found, "missing": missing}


def _print_plan(planned: dict[str, Any]) -> None:
    import typer

    typer.echo("training  " + ", ".join(f"{name} {value}" for name, value in planned["training"].items()))
    typer.echo(f"seeds     {planned['seeds']}")
    for row in planned["runs"]:
        typer.echo(f"\n{row['run']}")
        count = row.get("parameters")
        size = f", {count:,} parameters, {count * 2 / 1e9:.1f} GB in bfloat16" if count else ""
        typer.echo(f"  model   {row['model']}{size}")
        typer.echo(f"  data    {row['dataset']}" + (f", {row['facts']:,} facts" if "facts" in row else ""))
        if row["kept"]:
            typer.echo(f"  kept    {row['kept'][0]} of {row['kept'][1]} probed steps are there")
        for reason in row["missing"]:
            typer.echo(f"  missing {reason}")
