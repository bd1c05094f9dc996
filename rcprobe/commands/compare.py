"""``rcprobe compare``."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcprobe.commands.output import write_out
from rcprobe.errors import UsageError

if TYPE_CHECKING:
    from rcprobe.comparison import Comparison


class Format(StrEnum):
    """What a comparison can be written as."""

    HTML = "html"
    MARKDOWN = "md"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"


ENDINGS = {"html": "html", "md": "md", "latex": "tex", "csv": "csv", "json": "json"}


def compare_command(
    runs: Annotated[list[str], typer.Argument(help="The folders of two or more finished runs.", show_default=False)],
    format: Annotated[
        Format | None, typer.Option(help="A page, or tables; a table on the terminal without it.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The file to write, a page unless --format says otherwise; or a folder for it.")
    ] = None,
) -> None:
    """Set finished runs side by side: accuracy, signatures, and the differences between runs of the same facts.

    Example: rcprobe compare runs/rope runs/alibi --out compare.html
    """
    if out is not None and not out.strip():
        raise UsageError("--out: the name is empty")
    kind, path = _target(format, out)
    from rcprobe.comparison import compare

    found = compare(runs)
    if kind is None:
        from rcprobe.comparison.terminal import print_comparison

        print_comparison(found)
        return
    text = _written(found, kind)
    if path is None:
        sys.stdout.write(text)
        return
    write_out(path, text)


def _target(format: Format | None, out: str | None) -> tuple[Format | None, Path | None]:
    """What to write, and where: a folder gets ``compare`` with the format's ending."""
    if out is None:
        return format, None
    path, kind = Path(out), format or Format.HTML
    if path.is_dir() or out.endswith("/") or not path.suffix:
        return kind, path / f"compare.{ENDINGS[kind]}"
    if format is None and path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: say with --format what to write there; without it a page is, as name.html")
    return kind, path


def _written(found: "Comparison", kind: Format) -> str:
    if kind is Format.HTML:
        from rcprobe.comparison.html import page

        return page(found)
    if kind is Format.JSON:
        import json

        return json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n"
    write = {Format.MARKDOWN: found.to_markdown, Format.LATEX: found.to_latex, Format.CSV: found.to_csv}[kind]
    return write()
