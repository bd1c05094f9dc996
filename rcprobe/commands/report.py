"""``rcprobe report``."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rcprobe.commands.output import write_out
from rcprobe.errors import UsageError


class Format(StrEnum):
    """What a report can be written as."""

    HTML = "html"
    MARKDOWN = "md"
    LATEX = "latex"
    CSV = "csv"


def report_command(
    run: Annotated[str, typer.Argument(help="The folder of a finished run.", show_default=False)],
    format: Annotated[Format | None, typer.Option(help="A page (the default), or the results as a table.")] = None,
    out: Annotated[str | None, typer.Option(help="The file to write; standard output without it.")] = None,
) -> None:
    """Write a finished run's report as a page, Markdown, LaTeX or CSV.

    Example: rcprobe report runs/alibi --format html --out alibi.html
    """
    from rcprobe.report import load_report
    from rcprobe.report.export import to_csv, to_latex, to_markdown
    from rcprobe.report.html import page

    for name, value in (("run", run), ("--out", out)):
        if value is not None and not value.strip():
            raise UsageError(f"{name}: the name is empty")
    path = None if out is None else _target(format, Path(out))
    kind = format or Format.HTML
    write = {Format.HTML: page, Format.MARKDOWN: to_markdown, Format.LATEX: to_latex, Format.CSV: to_csv}[kind]
    text = write(load_report(run))
    if path is None:
        sys.stdout.write(text)
        return
    write_out(path, text)


def _target(format: Format | None, path: Path) -> Path:
    """Where to write, looked at before seconds of drawing."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if format is None and path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {path}: say with --format what to write there; without it a page is, as name.html")
    return path
