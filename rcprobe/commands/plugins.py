"""``rcprobe plugins``: what is installed, whether it keeps its contract, and a new one to start from."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from rcprobe.commands.output import print_json, say, tell_failures
from rcprobe.errors import PluginError, UnknownNameError, UsageError
from rcprobe.plugins import KINDS, Entry, Origin, registry

cli = typer.Typer(help="What is installed, and what was left out.", no_args_is_help=True, rich_markup_mode=None)


class Kind(StrEnum):
    """What a plugin can add, in the singular."""

    MODEL = "model"
    DATASET = "dataset"
    METRIC = "metric"
    ENCODING = "encoding"
    DECODER = "decoder"


@cli.command("list")
def plugins_list(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List every plugin with its state, and every registered name; what was left out, with the reason.

    Example: rcprobe plugins list
    """
    names = registry()
    if as_json:
        failures = [{**_origin(f.origin), "reason": f.reason} for f in names.failures]
        plugins = [_origin(origin) for origin in names.known()]
        print_json({"plugins": plugins, "entries": [_described(e) for e in names.entries], "failures": failures})
        return
    say("plugins:")
    for origin in names.known():
        say(f"  {origin.plugin:<24} {origin.package:<24} {names.state(origin)}")
    for kind in KINDS:
        entries = [entry for entry in names.entries if entry.kind == kind]
        if entries:
            say(f"{kind}:")
        for entry in entries:
            say(f"  {entry.name:<24} {entry.origin.package}")
    tell_failures()


@cli.command("show")
def plugins_show(
    name: Annotated[str, typer.Argument(help="A registered name, or a plugin's own.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what a name stands for, where it comes from, and whether it works.

    Example: rcprobe plugins show letters
    """
    names = registry()
    origins = [origin for origin in names.known() if name in (origin.plugin, origin.distribution)]
    shown = [_looked_at(entry) for entry in names.entries if entry.name == name]
    if not shown and not origins:
        known = {entry.name for entry in names.entries} | {origin.plugin for origin in names.known()}
        tell_failures()
        raise UnknownNameError("plugin entry", name, known)
    shown += [_plugin(origin) for origin in origins]
    if as_json:
        print_json(shown)
    else:
        for row in shown:
            _print(row)
    if any(row["error"] for row in shown):
        raise typer.Exit(1)


@cli.command("check")
def plugins_check(
    name: Annotated[str, typer.Argument(help="A registered name.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Hold what is registered under a name to its contract, in small, and say in words what is wrong.

    Example: rcprobe plugins check llada
    """
    from rcprobe.conformance import report
    from rcprobe.contracts import check

    try:
        found = check(name)
    finally:
        tell_failures()  # a name may be missing because its plugin was left out
    told = list(registry().failures)
    if as_json:
        rows = [(kind, one) for kind, checks in found.items() for one in checks]
        print_json([{"kind": k, "name": one.name, "passed": one.passed, "seen": one.seen} for k, one in rows])
    else:
        for kind, checks in found.items():
            say(report(name if len(found) == 1 else f"{name} ({kind.removesuffix('s')})", checks))
    tell_failures(told)
    if any(one.passed is False for checks in found.values() for one in checks):
        raise typer.Exit(1)


@cli.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Of the plugin and its package: an identifier.", show_default=False)],
    kind: Annotated[Kind, typer.Option(help="What it adds.", show_default=False)],
    out: Annotated[str | None, typer.Option(help="A new or empty folder (the name, with dashes).")] = None,
) -> None:
    """Start a plugin: a package that installs, is typed, and passes its own test.

    Example: rcprobe plugins new my_metric --kind metric --out my-metric
    """
    from rcprobe.scaffold import new_plugin

    if out is not None and not out.strip():
        raise UsageError("--out: the name is empty")
    for path in new_plugin(name, kind, out):
        say(path)


def _looked_at(entry: Entry) -> dict[str, Any]:
    """An entry, and what is found where it points."""
    row = _described(entry)
    try:
        thing = registry().get(entry.kind, entry.name)
        if entry.kind == "encodings":
            from rcprobe.encoding import Encoding, encoding_options

            encoding_options(entry.name, registry().checked(entry.kind, entry.name, Encoding))
        return {**row, "description": _first_line(thing)}
    except PluginError as error:
        return {**row, "description": "", "state": "broken", "error": str(error)}


def _plugin(origin: Origin) -> dict[str, Any]:
    """A plugin itself, and the names that it registers."""
    mine = [entry.name for entry in registry().entries if entry.origin == origin]
    said = f"registers {', '.join(mine)}" if mine else "registers no name"
    return {"kind": "plugin", "name": origin.plugin, "target": origin.value, **_origin(origin), "description": said}


def _print(row: dict[str, Any]) -> None:
    say(f"{row['name']} ({row['kind'].removesuffix('s')}): {row['description']}")
    package = f"{row['distribution']} {row['version']}".rstrip()
    say(f"  from     {package}, plugin {row['plugin']!r}")
    say(f"  defined  {row['target']}")
    say(f"  state    {row['state']}{': ' if row['error'] else ''}{row['error'] or ''}")


def _described(entry: Entry) -> dict[str, Any]:
    return {"kind": entry.kind, "name": entry.name, "target": entry.target, **_origin(entry.origin)}


def _origin(origin: Origin) -> dict[str, Any]:
    names = registry()
    where = {"plugin": origin.plugin, "distribution": origin.distribution, "version": origin.version}
    return {**where, "state": names.state(origin), "error": names.reasons(origin) or None}


def _first_line(thing: Any) -> str:
    thing = getattr(thing, "function", getattr(thing, "choose", thing))
    return ((thing.__doc__ or "").strip().splitlines() or ["(no description)"])[0]
