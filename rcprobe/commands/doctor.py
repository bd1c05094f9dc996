"""``rcprobe doctor``."""

from dataclasses import asdict
from typing import Annotated

import typer

from rcprobe.commands.output import print_json, say

MARKS = {"ok": "ok", "note": "note", "broken": "BROKEN"}


def doctor_command(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Say what is installed, which devices there are, what won't work here and why, and the way out.

    The exit code is 1 where something that everything needs is broken.

    Example: rcprobe doctor
    """
    from rcprobe.doctor import examine

    found = examine()
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        width = max(len(finding.topic) for finding in found)
        for finding in found:
            say(f"{MARKS[finding.state]:<7} {finding.topic:<{width}}  {finding.seen}")
            if finding.way_out:
                say(f"{'':<{width + 8}}  → {finding.way_out}")
    if any(finding.state == "broken" for finding in found):
        raise typer.Exit(1)
