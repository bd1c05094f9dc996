"""How commands speak: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from rcprobe.plugins import Failure, registry
from rcprobe.visible import visible


def print_json(value: Any) -> None:
    """Print strict JSON in ASCII, which holds half characters too: an undefined number is null, never NaN."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def say(text: object, *, err: bool = False) -> None:
    """Print lines of text, hidden characters spelt out: a terminal obeys those in names from outside."""
    typer.echo("\n".join(map(visible, str(text).split("\n"))), err=err)


def tell_failures(told: Sequence[Failure] = ()) -> None:
    """Say on standard error which plugins, or which of their hooks, were left out, but those that were told."""
    for failure in [failure for failure in registry().failures if failure not in told]:
        say(f"left out: {failure.origin}: {failure.reason}", err=True)


def bars_for_people(show: bool) -> None:
    """Transformers and the hub draw progress bars into pipes too: none where nobody looks or asked for any."""
    if show and sys.stderr.isatty():
        return
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    disable_progress_bars()


def write_out(path: Path, text: str) -> None:
    """Write a file that was asked for by name, and say so. Raises ``UsageError`` where that can't be."""
    from rcprobe.errors import RunError, UsageError
    from rcprobe.files import make_folder, write_bytes

    try:
        make_folder(path.parent)
        write_bytes(path, text.encode())
    except RunError as error:
        raise UsageError(str(error)) from error
    say(f"wrote {path}", err=True)


def duration(seconds: float) -> str:
    """A time as people say it: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
