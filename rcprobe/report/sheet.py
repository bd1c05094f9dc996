"""A study's result: an answer, tables and figures of several runs, printed and as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rcprobe.files import strict, write_bytes, write_json
from rcprobe.report.export import latex_table
from rcprobe.report.figures import installed, write_figures
from rcprobe.report.html import drawn, rendered
from rcprobe.report.panels import FigureData
from rcprobe.report.tables import csv_text


@dataclass(frozen=True)
class Grid:
    """A table of texts. Of the first ``once`` columns, what is as in the row above is left empty."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    once: int = 0

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headings):
                raise ValueError(f"{self.title}: a row of {len(row)} cells under {len(self.headings)} headings")


@dataclass(frozen=True)
class Sheet:
    """What a study found: ``values`` are its numbers, one row each, in full precision; ``key`` names its files."""

    key: str
    title: str
    answer: tuple[str, ...]
    grids: tuple[Grid, ...]
    values: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    figures: tuple[FigureData, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The sheet without its figures, ready for strict JSON: undefined numbers are None."""
        said = {"title": self.title, "answer": list(self.answer), "notes": list(self.notes)}
        return strict({**said, "values": [dict(row) for row in self.values]})  # type: ignore[no-any-return]


def even(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Rows of different kinds under one set of columns; what a row lacks is None."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return tuple({name: row.get(name) for name in columns} for row in rows)


def print_sheet(sheet: Sheet, console: Console | None = None) -> None:
    """Print tables, notes, and the answer last."""
    console = console or Console(highlight=False, emoji=False)
    console.print(sheet.title, style="bold", soft_wrap=True, markup=False)
    for grid in sheet.grids:
        _print_grid(grid, console)
    for note in sheet.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    for line in sheet.answer:
        console.print(line, style="bold", soft_wrap=True, markup=False)


def _print_grid(grid: Grid, console: Console) -> None:
    """A table, or row after row in words where the terminal is too narrow for its longest words."""
    widths = _widths(grid, console.width)
    if widths:
        table = Table(title=grid.title, title_justify="left", pad_edge=False)
        for heading, width in zip(grid.headings, widths, strict=True):
            table.add_column(escape(heading), overflow="fold", width=width)
        for row in grid.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        return
    console.print(grid.title, style="italic", markup=False, emoji=False)
    above = ("",) * len(grid.headings)
    for row in grid.rows:
        same = next((i for i, cell in enumerate(row[: grid.once]) if cell), grid.once)
        whole = above[:same] + row[same:]
        told = (f"{name} {cell}" for name, cell in zip(grid.headings, whole, strict=True) if cell)
        console.print(Padding(Text("; ".join(told).replace("\n", " ")), (0, 0, 0, 2)))
        above = whole


def _widths(grid: Grid, room: int) -> list[int]:
    """How wide each column is where none breaks a word; nothing where that is wider than ``room``."""
    columns = list(zip(grid.headings, *grid.rows, strict=True))
    least = [max((cell_len(word) for text in texts for word in text.split()), default=1) for texts in columns]
    whole = [max((cell_len(line) for text in texts for line in text.split("\n")), default=1) for texts in columns]
    spare = room - sum(least) - (3 * len(columns) - 1)  # rules, and a blank on both sides of each
    if spare < 0:
        return []
    wanted = sum(whole) - sum(least)
    share = min(spare / wanted, 1.0) if wanted else 0.0
    return [word + int(share * (line - word)) for word, line in zip(least, whole, strict=True)]


def save_sheet(sheet: Sheet, folder: Path) -> None:
    """Write values as CSV and JSON, tables as LaTeX and, where matplotlib is installed, the page and figures as SVG."""
    write_bytes(folder / f"{sheet.key}.csv", csv_text(sheet.values).encode())
    write_json(folder / f"{sheet.key}.json", sheet.to_dict())
    write_bytes(folder / f"{sheet.key}.tex", to_latex(sheet).encode())
    if installed():
        write_bytes(folder / f"{sheet.key}.html", page(sheet).encode())
        figures = folder / f"{sheet.key}-figures"
        figures.mkdir(exist_ok=True)  # a study that goes on writes its sheet again
        write_figures(sheet.figures, figures, ("svg",))


def to_latex(sheet: Sheet) -> str:
    """Every table of the sheet, each naming the packages it needs; answer and notes as comments."""
    said: Sequence[str] = (*sheet.answer, *sheet.notes)
    made = []
    for grid in sheet.grids:
        made.append(latex_table(grid.title, grid.headings, grid.rows, said))
        said = ()
    return "\n".join(made)


def page(sheet: Sheet) -> str:
    """The sheet as one page that needs no other file.

    Raises ``MissingExtraError`` without matplotlib and jinja2.
    """
    return rendered("sheet", sheet=sheet, figures=[drawn(data) for data in sheet.figures])
