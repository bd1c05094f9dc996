"""The reference of the command line, written from the commands themselves."""

import inspect
from collections.abc import Iterator
from typing import Any

import typer
from sphinx.application import Sphinx

from rcprobe import cli

PAGE = "reference/command-line"


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below one that groups others, with the words that call it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name in sorted(inner):
        yield from commands(inner[name], f"{path} {name}")


def described(path: str, command: Any) -> str:
    """One command in Markdown: what it does, its usage, its arguments and options."""
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"## `{path}`", _text(command.help), f"```console\n$ {usage}\n```"]
    rows = [_row(parameter, context) for parameter in command.get_params(context)]
    parts.append("\n".join(["| argument or option | |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _text(help: str | None) -> str:
    """The help, with its example as code."""
    text = inspect.cleandoc(help or "")
    said, _, example = text.partition("Example: ")
    return said.strip() + (f"\n\nExample: `{' '.join(example.split())}`" if example else "")


def _row(parameter: Any, context: Any) -> str:
    names, says = parameter.get_help_record(context) or (parameter.make_metavar(context), "")
    return f"| `{names.replace('|', chr(92) + '|')}` | {says.replace('|', chr(92) + '|')} |"


def write(app: Sphinx, page: str, source: list[str]) -> None:
    """Add all commands to their page."""
    if page == PAGE:
        cli._add_plugin_commands()
        root = typer.main.get_command(cli.cli)
        source[0] += "\n" + "\n\n".join(described(path, command) for path, command in commands(root, "rcprobe")) + "\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """Write when the page is read."""
    app.connect("source-read", write)
    return {"parallel_read_safe": True}
