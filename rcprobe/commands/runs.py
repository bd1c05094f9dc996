"""``rcprobe runs``: what is kept in folders."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rcprobe.commands.output import print_json, say
from rcprobe.errors import RunError, UsageError

cli = typer.Typer(help="Runs that were kept.", no_args_is_help=True, rich_markup_mode=None)
DEPTH = 3  # runs/demo/radd-rope is found from the folder above runs


@cli.command("list")
def runs_list(
    folder: Annotated[str, typer.Argument(help="Where to look, with the folders in it.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the runs in a folder: how far each is, and what it is.

    Example: rcprobe runs list runs
    """
    if not folder.strip() or not Path(folder).is_dir():
        raise UsageError(f"{folder!r} is no folder; name one that holds runs")
    found = [_summary(path) for path in _find(Path(folder), DEPTH)]
    if as_json:
        print_json(found)
        return
    if not found:
        say(f"no runs in {folder}", err=True)
    width = max((len(row["run"]) for row in found), default=0)
    for row in found:
        say(f"{row['run']:<{width}}  {row['state']:<10}  {row['described']}")


@cli.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="A run's folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show one run: what was asked of which model, how far it is, and what it found.

    Example: rcprobe runs show runs/alibi
    """
    from rcprobe.store import RunFolder

    if not run.strip():
        raise UsageError("the run's folder has an empty name")
    kept = RunFolder(Path(run))
    manifest = kept.manifest()
    done, of = kept.progress()
    seeds = {seed: kept.seed(seed) for seed in kept.seeds()}
    if as_json:
        steps = {seed: part.numbers() for seed, part in seeds.items()}
        failures = {seed: part.failure() for seed, part in seeds.items()}
        print_json({"state": kept.state(), "steps": steps, "failures": failures, "manifest": manifest})
        return
    settings = manifest["settings"]
    say(f"{run}: {kept.state()}, {done} of {of} steps, begun {manifest.get('created')}")
    say(f"  command      {manifest.get('command')}")
    for name in (
        "model",
        "options",
        "fingerprint",
        "revision",
        "revisions",
        "adapter",
        "dtype",
        "attention",
        "device",
        "hardware",
    ):
        _row(name, settings.get(name))
    for name in ("dataset", "facts", "metrics", "train", "batch_size", "threads", "plugins", "versions"):
        _row(name, settings.get(name))
    for seed, part in seeds.items():
        failure = part.failure()
        ending = f"failed: {failure}" if failure else "finished" if part.finished() else "not finished"
        say(f"  seed {seed:<7} {len(part.numbers())} steps, {ending}")
    if kept.finished():
        from rcprobe.report import load_report
        from rcprobe.report.terminal import print_report

        print_report(load_report(kept))


def _find(folder: Path, depth: int) -> list[Path]:
    from rcprobe.store import MANIFEST

    if (folder / MANIFEST).is_file():
        return [folder]
    if not depth:
        return []
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    return [run for path in below for run in _find(path, depth - 1)]


def _summary(path: Path) -> dict[str, Any]:
    from rcprobe.store import RunFolder

    kept = RunFolder(path)
    try:
        settings = kept.manifest()["settings"]
        done, of = kept.progress()
        failed = [seed for seed in kept.seeds() if kept.seed(seed).failure()]
    except RunError as error:
        return {"run": str(path), "state": "unreadable", "described": str(error)}
    described = f"{done} of {of} steps, {settings['model']} on {settings['dataset']}, {settings['facts']} facts"
    if failed:
        described += f", {len(failed)} of {len(kept.seeds())} seeds failed"
    return {"run": str(path), "state": kept.state(), "described": described}


def _row(name: str, value: Any) -> None:
    if isinstance(value, dict):
        value = ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    if value not in (None, ""):
        say(f"  {name:<12} {value}")
