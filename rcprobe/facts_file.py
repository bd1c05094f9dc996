"""Facts from a CSV file."""

import csv
from collections.abc import Mapping
from pathlib import Path

from rcprobe.errors import DataError, UsageError
from rcprobe.facts import Dataset, Fact
from rcprobe.manifest import without_path

NEEDED = ("a", "b", "forward", "reverse")
OPTIONAL = ("a_answers", "b_answers")
SUFFIX = ".csv"


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
    facts: dict[tuple[str, str], Fact] = {}
    for line, row in rows:
        fact = _fact(path, line, row)
        before = facts.get((fact.a, fact.b))
        facts[fact.a, fact.b] = fact if before is None else _joined(before, fact)
    return Dataset(without_path(str(path)), tuple(facts.values()), options={})


def _fact(path: str | Path, line: int, row: Mapping[str, str | None]) -> Fact:
    cells = {name: (row.get(name) or "").strip() for name in (*NEEDED, *OPTIONAL)}
    if None in row:
        raise DataError(f"{path}, line {line}: more cells than columns; put quotes around text that holds a comma")
    empty = [name for name in NEEDED if not cells[name]]
    if empty:
        raise DataError(f"{path}, line {line}: {empty[0]} is empty")
    others = {name: tuple(text.strip() for text in cells[name].split("|") if text.strip()) for name in OPTIONAL}
    try:
        return Fact(cells["a"], cells["b"], cells["forward"], cells["reverse"], **others)
    except DataError as error:
        raise DataError(f"{path}, line {line}: {error}") from error


def _joined(one: Fact, other: Fact) -> Fact:
    """The same fact with the template pairs and answers of both."""
    answers = {name: tuple(dict.fromkeys(getattr(one, name) + getattr(other, name))) for name in OPTIONAL}
    return Fact(one.a, one.b, one.forward + other.forward, one.reverse + other.reverse, **answers)
