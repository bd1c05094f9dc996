"""A comparison on a terminal."""

from typing import TYPE_CHECKING

from rich.console import Console

from rcprobe.comparison import grids
from rcprobe.comparison.export import sheet
from rcprobe.report.sheet import Sheet, print_sheet

if TYPE_CHECKING:
    from rcprobe.comparison.comparison import Comparison

ROWS = 40  # of differences; beyond them only those that hold


def print_comparison(found: "Comparison", console: Console | None = None) -> None:
    """Print accuracy, signatures, differences, what isn't compared, and the answer last."""
    made = sheet(found, "below")
    tables, notes = list(made.grids), list(made.notes)
    whole = grids.differences(found)
    if len(whole.rows) > ROWS:
        apart = [c for c in found.contrasts if c.found in ("higher", "lower")]
        tables = [grids.differences(found, apart) if table.title == whole.title else table for table in tables]
        hidden = len(whole.rows) - len(apart)
        notes.append(f"{hidden} differences that don't hold aren't shown; --format md, csv or html has them all")
    print_sheet(Sheet(made.key, made.title, made.answer, tuple(tables), (), tuple(notes)), console)
