"""Facts from a CSV file."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rcprobe.errors import DataError, UsageError
from rcprobe.facts import Dataset, Fact
from rcprobe.manifest import without_path

NEEDED = ("a", "b", "forward", "reverse")
OPTIONAL = ("a_answers", "b_answers")
SUFFIX = ".csv"
Cells = Mapping[str, str]


def read_facts(path: str | Path) -> Dataset:
    """The facts of a file with the columns a, b, forward and reverse, as ``Fact`` has them; one row a template pair.

    Rows of the same a and b are template pairs of one fact. ``a_answers`` and ``b_answers`` hold other right answers
    with | between them. Raises ``UsageError`` for a file that can't be read or lacks a column, ``DataError`` naming
    the line for a row that is no fact.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
            columns = tuple(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: can't be read as a CSV file of facts ({reason})") from error
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise UsageError(
            f"{path}: no column {missing[0]!r}; it has {', '.join(columns) or 'none'}, and needs {', '.join(NEEDED)} "
            "(forward: a statement with {a} before {b}; reverse: one with {b} before {a})"
        )
    unknown = [name for name in columns if name not in (*NEEDED, *OPTIONAL)]
    if unknown:
        raise UsageError(f"{path}: column {unknown[0]!r} means nothing here; known: {', '.join(NEEDED + OPTIONAL)}")
    facts: dict[tuple[str, str], list[Cells]] = {}
    for line, row in rows:
        cells = _cells(path, line, row)
        facts.setdefault((cells["a"], cells["b"]), []).append(cells)
    return Dataset(without_path(str(path)), tuple(_fact(rows) for rows in facts.values()), options={})


def _cells(path: str | Path, line: int, row: Mapping[str, str | None]) -> Cells:
    """A row's cells, which make a fact."""
    cells = {name: (row.get(name) or "").strip() for name in (*NEEDED, *OPTIONAL)}
    if None in row:
        raise DataError(f"{path}, line {line}: more cells than columns; put quotes around text that holds a comma")
    empty = [name for name in NEEDED if not cells[name]]
    if empty:
        raise DataError(f"{path}, line {line}: {empty[0]} is empty")
    try:
        _fact([cells])
    except DataError as error:
        raise DataError(f"{path}, line {line}: {error}") from error
    return cells


def _fact(rows: Sequence[Cells]) -> Fact:
    """One fact of all rows that speak of it."""
    return Fact(
        rows[0]["a"],
        rows[0]["b"],
        forward=tuple(row["forward"] for row in rows),
        reverse=tuple(row["reverse"] for row in rows),
        a_answers=_answers(row["a_answers"] for row in rows),
        b_answers=_answers(row["b_answers"] for row in rows),
    )


def _answers(cells: Iterable[str]) -> tuple[str, ...]:
    texts = (text.strip() for cell in cells for text in cell.split("|"))
    return tuple(dict.fromkeys(text for text in texts if text))
