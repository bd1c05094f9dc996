"""The command line. Nothing heavy is imported until a command needs it."""

import io
import sys
from functools import cache
from typing import Annotated, Any

import typer

from rcprobe.commands.compare import compare_command
from rcprobe.commands.models import cli as models_cli
from rcprobe.commands.output import print_json, tell_failures
from rcprobe.commands.report import report_command
from rcprobe.commands.run import run_command
from rcprobe.commands.runs import cli as runs_cli
from rcprobe.errors import RcprobeError
from rcprobe.plugins import KINDS, Entry, Origin, registry

__all__ = ["cli", "main", "print_json"]

INTERRUPTED = 130

cli = typer.Typer(
    name="rcprobe",
    help="Does a language model that learned 'A is B' answer when asked from B, and why?",
    rich_markup_mode=None,
    no_args_is_help=True,
    epilog="Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted.",
    pretty_exceptions_enable=False,
)
plugins_cli = typer.Typer(help="What is installed, and what was left out.", no_args_is_help=True, rich_markup_mode=None)
cli.add_typer(runs_cli, name="runs")
cli.add_typer(plugins_cli, name="plugins")
cli.add_typer(models_cli, name="models")


cli.command("run")(run_command)
cli.command("report")(report_command)
cli.command("compare")(compare_command)


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
    tell_failures()


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


@plugins_cli.command("check")
def plugins_check(
    name: Annotated[str, typer.Argument(help="A registered model family.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Hold a model family to what it declares, on a tiny random model, and say in words what is wrong.

    Example: rcprobe plugins check llada
    """
    from rcprobe.adapter import Adapter
    from rcprobe.conformance import check_adapter, report

    found = check_adapter(registry().checked("models", name, Adapter))
    if as_json:
        print_json([{"name": check.name, "passed": check.passed, "seen": check.seen} for check in found])
    else:
        typer.echo(report(name, found))
    tell_failures()
    if any(check.passed is False for check in found):
        raise typer.Exit(1)


def _described(entry: Entry) -> dict[str, str]:
    return {"kind": entry.kind, "name": entry.name, "target": entry.target, **_origin(entry.origin)}


def _origin(origin: Origin) -> dict[str, str]:
    return {"plugin": origin.plugin, "distribution": origin.distribution, "version": origin.version}


def _first_line(thing: Any) -> str:
    thing = getattr(thing, "function", thing)
    return ((thing.__doc__ or "").strip().splitlines() or ["(no description)"])[0]


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
