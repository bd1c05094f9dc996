"""Rows of a file, each with the line it stands on: CSV, TSV, JSON lines, parquet."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rcprobe.errors import DataError, UsageError

Row = tuple[int, Mapping[str, Any]]


def read_rows(path: str | Path) -> list[Row]:
    """(line, cells by column) of every row, in the file's order. Line 1 of a CSV file is its header.

    Raises ``UsageError`` for a file that isn't there or isn't of its suffix's kind, ``DataError`` naming the line that
    can't be read.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UsageError(f"{path}: can't read {path.suffix or 'a file without a suffix'}; use {', '.join(READERS)}")
    try:
        return list(READERS[path.suffix](path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: can't be read ({reason})") from error


def _separated(separator: str) -> Callable[[Path], Iterator[Row]]:
    def read(path: Path) -> Iterator[Row]:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, delimiter=separator)
            try:
                for row in reader:
                    if None in row:
                        raise DataError(
                            f"{path}:{reader.line_num}: more cells than columns; put quotes around text that holds a "
                            "separator"
                        )
                    yield reader.line_num, row
            except csv.Error as error:
                raise DataError(f"{path}:{reader.line_num}: {error}") from error

    return read


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: a {type(row).__name__}; each line must be an object")
            yield number, row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: no parquet file ({error})") from error
    yield from enumerate(table.to_pylist(), start=1)


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
