"""The command line. Nothing heavy is imported until a command needs it."""

import io
import json
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from rcprobe.errors import RcprobeError, UsageError
from rcprobe.plugins import KINDS, Entry, Origin, registry

INTERRUPTED = 130

cli = typer.Typer(
    name="rcprobe",
    help="Does a language model that learned 'A is B' answer when asked from B, and why?",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
plugins_cli = typer.Typer(help="What is installed, and what was left out.", no_args_is_help=True, rich_markup_mode=None)
cli.add_typer(plugins_cli, name="plugins")
models_cli = typer.Typer(help="What would be done with a checkpoint.", no_args_is_help=True, rich_markup_mode=None)
cli.add_typer(models_cli, name="models")


@cli.command("run")
def run_command(
    model: Annotated[str, typer.Argument(help="A registered model, a folder, or a hub id.", show_default=False)],
    dataset: Annotated[str, typer.Argument(help="A registered dataset.", show_default=False)],
    steps: Annotated[int | None, typer.Option(help="Train on forward statements for so many steps first.")] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Only the first so many facts.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="A model option, as name=value; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for report.json and values.csv.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Probe a model with a dataset's facts, trained first if asked.

    Example: rcprobe run radd letters --steps 1500 --seeds 5 --option encoding=alibi
    """
    import rcprobe
    from rcprobe.report.terminal import print_report

    data = rcprobe.load_dataset(dataset).limited(limit)
    loaded = rcprobe.load(model, options=_options(option or []), device=device, dtype=dtype)
    train = rcprobe.TrainConfig(steps=steps) if steps is not None else None
    report = rcprobe.run(loaded, data, train=train, seeds=seeds, out=out, progress=not (quiet or as_json))
    if as_json:
        print_json(report.to_dict())
    elif not quiet:
        print_report(report)
    _tell_failures()


@plugins_cli.command("list")
def plugins_list(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List every registered name, and every plugin that was left out with the reason.

    Example: rcprobe plugins list
    """
    names = registry()
    if as_json:
        failures = [{**_origin(f.origin), "reason": f.reason} for f in names.failures]
        print_json({"entries": [_described(e) for e in names.entries], "failures": failures})
        return
    for kind in KINDS:
        entries = [entry for entry in names.entries if entry.kind == kind]
        if entries:
            typer.echo(f"{kind}:")
        for entry in entries:
            typer.echo(f"  {entry.name:<24} {entry.origin.distribution} {entry.origin.version}")
    _tell_failures()


@plugins_cli.command("show")
def plugins_show(
    name: Annotated[str, typer.Argument(help="A registered name.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what a name stands for and where it comes from.

    Example: rcprobe plugins show letters
    """
    names = registry()
    entries = [entry for entry in names.entries if entry.name == name]
    if not entries:
        from rcprobe.errors import UnknownNameError

        raise UnknownNameError("plugin entry", name, {entry.name for entry in names.entries})
    shown = [{**_described(entry), "description": _first_line(names.get(entry.kind, name))} for entry in entries]
    if as_json:
        print_json(shown)
        return
    for row in shown:
        typer.echo(f"{row['name']} ({row['kind'].removesuffix('s')}): {row['description']}")
        typer.echo(f"  from     {row['distribution']} {row['version']}, plugin {row['plugin']!r}")
        typer.echo(f"  defined  {row['target']}")


@models_cli.command("inspect")
def models_inspect(
    model: Annotated[str, typer.Argument(help="A folder or a hub id.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="The commit, branch or tag of a hub id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Say which adapter takes a checkpoint, why, and what it would do, from the configuration alone.

    Example: rcprobe models inspect GSAI-ML/LLaDA-8B-Base
    """
    from rcprobe.inspection import inspect

    found = inspect(model, revision)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))
    _tell_failures()


def _tell_failures() -> None:
    """Say on standard error which plugins, or which of their hooks, were left out."""
    for failure in registry().failures:
        typer.echo(f"left out: {failure.origin}: {failure.reason}", err=True)


def print_json(value: Any) -> None:
    """Print strict JSON: an undefined number is null, never NaN."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def _described(entry: Entry) -> dict[str, str]:
    return {"kind": entry.kind, "name": entry.name, "target": entry.target, **_origin(entry.origin)}


def _origin(origin: Origin) -> dict[str, str]:
    return {"plugin": origin.plugin, "distribution": origin.distribution, "version": origin.version}


def _first_line(thing: Any) -> str:
    thing = getattr(thing, "function", thing)
    return ((thing.__doc__ or "").strip().splitlines() or ["(no description)"])[0]


def _options(pairs: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UsageError(f"--option {pair!r} is not of the form name=value")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without δ or ─ still gets its report
    try:
        _add_plugin_commands()
        code = cli(standalone_mode=False)
    except RcprobeError as error:
        typer.echo(f"rcprobe: {error}", err=True)
        code = error.exit_code
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        typer.echo("rcprobe: interrupted", err=True)
    sys.exit(code)


@cache
def _add_plugin_commands() -> None:
    """Let each plugin add commands under names that are free."""
    names = registry()
    for origin in names.origins:
        if not names.implements(origin, "register_commands"):
            continue
        own = typer.Typer()
        names.call(origin, "register_commands", cli=own)
        for command in own.registered_commands:
            name = command.name or typer.main.get_command_name(getattr(command.callback, "__name__", ""))
            if name in _taken():
                names.blame(origin, f"command {name!r} is already taken")
            else:
                cli.registered_commands.append(command)
        for group in own.registered_groups:
            if group.name in _taken():
                names.blame(origin, f"command {group.name!r} is already taken")
            else:
                cli.registered_groups.append(group)


def _taken() -> set[str | None]:
    return {command.name for command in cli.registered_commands} | {group.name for group in cli.registered_groups}
