"""``rcprobe models``: what would be done with a checkpoint."""

from typing import Annotated

import typer

from rcprobe.commands.output import print_json, say, tell_failures

cli = typer.Typer(help="What would be done with a checkpoint.", no_args_is_help=True, rich_markup_mode=None)


@cli.command("inspect")
def models_inspect(
    model: Annotated[str, typer.Argument(help="A folder, a GGUF file or a hub id.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="The commit, branch or tag of a hub id.")] = None,
    adapter: Annotated[str | None, typer.Option(help="A registered family to read it as.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Say which adapter takes a checkpoint, why, and what it would do, from the configuration alone.

    Example: rcprobe models inspect GSAI-ML/LLaDA-8B-Base
    """
    from rcprobe.inspection import inspect

    found = inspect(model, revision, adapter)
    if as_json:
        print_json(found.to_dict())
    else:
        say(str(found))
    tell_failures()
