"""The command line. Nothing heavy is imported until a command needs it."""

import errno
import io
import sys
from functools import cache

import typer

from rcprobe.commands.compare import compare_command
from rcprobe.commands.doctor import doctor_command
from rcprobe.commands.models import cli as models_cli
from rcprobe.commands.output import print_json, say
from rcprobe.commands.plugins import cli as plugins_cli
from rcprobe.commands.report import report_command
from rcprobe.commands.run import run_command
from rcprobe.commands.runs import cli as runs_cli
from rcprobe.errors import RcprobeError
from rcprobe.plugins import registry

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
cli.add_typer(runs_cli, name="runs")
cli.add_typer(plugins_cli, name="plugins")
cli.add_typer(models_cli, name="models")
cli.command("run")(run_command)
cli.command("report")(report_command)
cli.command("compare")(compare_command)
cli.command("doctor")(doctor_command)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without δ or ─ still gets its report
    try:
        _add_plugin_commands()
        code = cli(standalone_mode=False)
        sys.stdout.flush()  # what it can't hold is told here, not after the end
    except RcprobeError as error:
        say(f"rcprobe: {error}", err=True)
        code = error.exit_code
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]
        code = error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        if error.filename is None:
            sys.stdout = io.StringIO()  # what it still holds couldn't be written at the end either
        if error.errno == errno.ENOSPC:  # a reader that has gone, like head, need not be told
            say(f"rcprobe: {error.filename or 'standard output'} can't be written (no space left)", err=True)
        code = 1
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
