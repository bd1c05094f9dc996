"""A report in a run's folder: written for other programs, read back number for number."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rcprobe.errors import PluginError, RunError
from rcprobe.files import read_json, whole, write_bytes, write_json
from rcprobe.metrics import Condition
from rcprobe.progress import Progress
from rcprobe.report.report import Report, SeedRun
from rcprobe.signatures import Finding, Signature
from rcprobe.statistics import Estimate
from rcprobe.step_files import number
from rcprobe.store import REPORT, RunFolder
from rcprobe.transfer import Prediction

VALUES = "values.csv"
PAGE = "report.html"
ROWS = 50_000  # written at once: a large report takes many seconds


def save_report(report: Report, folder: Path, progress: Progress | None = None) -> None:
    """Write ``report.json``, ``values.csv`` and, where matplotlib is installed, ``report.html``, each whole.

    ``progress`` hears of rows of values. Raises ``RunError``.
    """
    from rcprobe.report.figures import installed

    write_json(folder / REPORT, report.to_dict())
    frame = report.frame()
    with whole(folder / VALUES) as temporary, temporary.open("w", newline="") as file:
        for start in range(0, max(len(frame), 1), ROWS):
            frame[start : start + ROWS].to_csv(file, header=start == 0, index=False)
            if progress is not None:
                progress(min(start + ROWS, len(frame)), len(frame))
    if installed():
        from rcprobe.report.html import page

        write_bytes(folder / PAGE, page(replace(report, folder=folder)).encode())


def load_report(folder: str | Path | RunFolder) -> Report:
    """The report of a finished run. Raises ``RunError`` if it isn't finished, or naming a file that is damaged.

    The verdicts are those that were given when the run finished; nothing is judged anew.
    """
    kept = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
    kept.check()
    runs = []
    for seed in kept.seeds():
        result = kept.seed(seed).result()
        runs.append(SeedRun(seed, result.steps, result.failure, result.fingerprint, result.batch_size))
    found = read_json(kept.path / REPORT)
    try:
        return Report(
            kept.dataset(),
            tuple(runs),
            {name: _signature(signature) for name, signature in found["signatures"].items()},
            {pairing: _accuracy(readings) for pairing, readings in found["accuracy"].items()},
            found["excluded"],
            tuple(found["notes"]),
            found["info"],
            kept.path,
            tuple(Prediction(**_defined(prediction)) for prediction in found.get("transfer", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, PluginError) as error:
        raise RunError(f"{kept.path / REPORT}: isn't what rcprobe writes ({type(error).__name__}: {error})") from error


def _signature(found: Mapping[str, Any]) -> Signature:
    return Signature(**{**found, "findings": tuple(_finding(finding) for finding in found["findings"])})


def _finding(found: Mapping[str, Any]) -> Finding:
    condition = Condition(**{**found["condition"], "columns": tuple(found["condition"]["columns"])})
    rest = {name: value for name, value in found.items() if name not in ("condition", "estimate")}
    return Finding(condition, Estimate(**_defined(found["estimate"])), **_defined(rest))


def _defined(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: number(value) for name, value in fields.items()}


def _accuracy(readings: Mapping[str, Any]) -> dict[str, tuple[tuple[float, float], ...]]:
    return {name: tuple((number(f), number(r)) for f, r in seeds) for name, seeds in readings.items()}
