"""A probed step as files: rows in parquet, what is by layer and head in safetensors, the rest in JSON.

A step's folder holds ``step.json``, a parquet file for each (metric, pairing) with one row a pair, and
``tensors.safetensors`` with the columns [B, N, H], keyed ``number/column``. Its ``done.json`` is written last and
names every file with its digest: without it, the folder counts for nothing.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rcprobe.errors import RunError
from rcprobe.files import digest, inside, make_folder, read_json, safe_name, whole, write_json
from rcprobe.measured import Measured, PairTable, Step

DONE = "done.json"
STEP = "step.json"
TENSORS = "tensors.safetensors"
PAIR_COLUMNS = ("fact", "template", "cluster", "stratum", "delta_forward", "delta_reverse", "trained")
VALUE = "value."  # no metric's column can be taken for one of the pair's


def save_step(folder: Path, step: Step) -> None:
    """Write a step into its folder, the marker last. Raises ``RunError``."""
    make_folder(folder)
    tensors: dict[str, NDArray[np.float64]] = {}
    files, measured = [STEP], []
    for k, one in enumerate(step.measured):
        rows = f"{k:02d}-{safe_name(one.metric)}-{one.pairing}.parquet"
        _write_rows(folder / rows, one)
        tensors |= {f"{k}/{name}": c for name, c in one.columns.items() if c.ndim == 3}
        files.append(rows)
        measured.append({"metric": one.metric, "pairing": one.pairing, "rows": rows, "columns": list(one.columns)})
    if tensors:
        write_arrays(folder / TENSORS, tensors)
        files.append(TENSORS)
    described = {
        "seed": step.seed,
        "step": step.step,
        "loss": step.loss,
        "accuracy": step.accuracy,
        "excluded": step.excluded,
        "skipped": step.skipped,
        "coverage": step.coverage,
        "judged": step.judged,
        "measured": measured,
    }
    write_json(folder / STEP, described)
    mark_done(folder, files)


def load_step(folder: Path) -> Step:
    """A finished step, number for number. Raises ``RunError`` naming a file that is damaged or missing."""
    files = check_done(folder)["files"]
    described = read_json(folder / STEP)
    tensors = read_arrays(folder / TENSORS) if TENSORS in files else {}
    try:
        seed, step = described["seed"], described["step"]
        measured = []
        for k, one in enumerate(described["measured"]):
            table, rows = _read_rows(inside(folder, one["rows"]))
            columns = {name: rows[name] if name in rows else tensors[f"{k}/{name}"] for name in one["columns"]}
            measured.append(Measured(one["metric"], one["pairing"], seed, step, columns, table))
        return Step(
            seed,
            step,
            described["loss"],
            tuple(measured),
            {pairing: _both_ways(readings) for pairing, readings in described["accuracy"].items()},
            described["excluded"],
            described["skipped"],
            described["coverage"],
            {pairing: _counts(readings) for pairing, readings in described.get("judged", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder / STEP}: isn't what rcprobe writes ({type(error).__name__}: {error})") from error


def mark_done(folder: Path, names: list[str], **more: Any) -> None:
    """Write the marker that makes a folder count, with the digest of each file. Raises ``RunError``."""
    write_json(folder / DONE, {**more, "files": {name: digest(folder / name) for name in names}})


def check_done(folder: Path) -> dict[str, Any]:
    """A marker, after holding every file against its digest. Raises ``RunError`` naming the first that differs."""
    marker = read_json(folder / DONE)
    files = marker.get("files")
    if not isinstance(files, dict):
        raise RunError(f"{folder / DONE}: names no files")
    for name, expected in files.items():
        path = inside(folder, name)
        if digest(path) != expected:
            raise RunError(
                f"{path}: damaged: its bytes aren't those that were written; put a copy back, or give the run's "
                "command again with --fresh"
            )
    return marker


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays in safetensors, whole. Raises ``RunError``."""
    from safetensors.numpy import save_file

    # safetensors writes the memory behind an array, which isn't its content where it is a view
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_safetensors(path, lambda temporary: save_file(dense, temporary))


def write_safetensors(path: Path, save: Callable[[Path], None]) -> None:
    """Let ``save`` write a file whole; its errors of the file system become ``RunError``."""
    from safetensors import SafetensorError

    with whole(path) as temporary:
        try:
            save(temporary)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else None, str(error).rpartition("I/O error: ")[2]) from error


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read arrays in safetensors. Raises ``RunError`` naming the file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: can't be read ({error})") from error


def _write_rows(path: Path, measured: Measured) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: getattr(measured.table, name) for name in PAIR_COLUMNS}
    columns |= {VALUE + name: values for name, values in measured.columns.items() if values.ndim == 1}
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    with whole(path) as temporary:
        pq.write_table(table, temporary)


def _read_rows(path: Path) -> tuple[PairTable, dict[str, NDArray[np.float64]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read(use_threads=False)
        columns = {name: np.array(table.column(name).to_numpy()) for name in table.column_names}
        pairs = PairTable(**{name: columns.pop(name) for name in PAIR_COLUMNS})
    except (OSError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{path}: can't be read ({error})") from error
    return pairs, {name.removeprefix(VALUE): values for name, values in columns.items()}


def _both_ways(readings: Mapping[str, list[float | None]]) -> dict[str, tuple[float, float]]:
    return {name: (number(forward), number(reverse)) for name, (forward, reverse) in readings.items()}


def _counts(readings: Mapping[str, list[int]]) -> dict[str, tuple[int, int]]:
    return {name: (forward, reverse) for name, (forward, reverse) in readings.items()}


def number(value: float | None) -> float:
    """A number as JSON kept it: null is NaN."""
    return math.nan if value is None else value
