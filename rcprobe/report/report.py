"""``Report``: signatures with verdicts, accuracy, and every measured value as a frame."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from rcprobe.errors import UsageError
from rcprobe.facts import Dataset, Pairing
from rcprobe.files import strict
from rcprobe.measured import Measured, Step
from rcprobe.metrics import Metric
from rcprobe.signatures import Signature, find, judge_all
from rcprobe.transfer import Prediction, predictions

if TYPE_CHECKING:
    import pandas as pd

FULL = "full vocabulary"


@dataclass(frozen=True)
class SeedRun:
    """One seed's steps. ``failure`` says why it ended early; ``fingerprint`` is of the weights last probed.

    ``batch_size`` is how many prompts went through at once, at the least.
    """

    seed: int
    steps: tuple[Step, ...]
    failure: str | None
    fingerprint: str
    batch_size: int = 0


@dataclass(frozen=True)
class Report:
    """What a run found.

    ``signatures`` are keyed by metric, with the pairing behind it for any but the metric's first; ``accuracy`` maps
    pairing → reading → per-seed (forward, reverse) at the last step; ``notes`` are what a reader must know first;
    ``info`` says how the run was made (versions, settings, fingerprints); ``folder`` is where the run is kept;
    ``transfer`` says whether facts' signatures foretell which of them are answered in reverse.
    """

    dataset: Dataset
    runs: tuple[SeedRun, ...]
    signatures: Mapping[str, Signature]
    accuracy: Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]]
    excluded: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]
    info: Mapping[str, Any]
    folder: Path | None = field(default=None, compare=False)
    transfer: tuple[Prediction, ...] = ()

    @classmethod
    def load(cls, folder: str | Path) -> "Report":
        """The report of a finished run, number for number, from the folder that it was kept in.

        Raises ``RunError`` for a run that isn't finished, is damaged (naming the file), or of a newer rcprobe.
        """
        from rcprobe.report.saved import load_report

        return load_report(folder)

    @property
    def coverage(self) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
        """Of which parameters gradients were read, left out or undefined at the last step: see ``Step``."""
        finished = [run for run in self.runs if run.failure is None and run.steps]
        return finished[0].steps[-1].coverage if finished else {}

    def frame(self, metric: str | None = None) -> "pd.DataFrame":
        """Every measured value, one row a value: seed, step, metric, pairing, fact, texts, distances, layer, head.

        With ``metric``, only that metric's rows, one column for each of the metric's columns.
        """
        import pandas as pd

        measured = [m for run in self.runs for step in run.steps for m in step.measured]
        names = sorted({m.metric for m in measured})
        if metric is not None and metric not in names:
            raise UsageError(f"no metric {metric!r} was measured; measured: {', '.join(names) or 'none'}")
        wanted = [m for m in measured if metric in (None, m.metric)]
        if not wanted:
            return pd.DataFrame(columns=[*_KEYS, "column", "value"])
        if metric is not None:
            return pd.concat([pd.DataFrame(self._keys(m) | _values(m)) for m in wanted], ignore_index=True)
        parts = [_stacked(self._keys(m), _values(m)) for m in wanted]
        return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _keys(self, measured: Measured) -> "_Columns":
        shape = _shape(measured)
        cells = math.prod(shape[1:])
        repeat = np.repeat(np.arange(shape[0]), cells)
        everywhere = np.full(len(repeat), -1)
        layer, head = (
            np.divmod(np.tile(np.arange(cells), shape[0]), shape[2]) if len(shape) == 3 else (everywhere, everywhere)
        )
        facts, table = self.dataset.facts, measured.table
        return {
            "seed": np.full(len(repeat), measured.seed),
            "step": np.full(len(repeat), measured.step),
            "metric": np.full(len(repeat), measured.metric, dtype=object),
            "pairing": np.full(len(repeat), measured.pairing, dtype=object),
            "fact": table.fact[repeat],
            "a": np.array([_encodable(fact.a) for fact in facts], dtype=object)[table.fact[repeat]],
            "b": np.array([_encodable(fact.b) for fact in facts], dtype=object)[table.fact[repeat]],
            "template": table.template[repeat],
            "delta_forward": table.delta_forward[repeat],
            "delta_reverse": table.delta_reverse[repeat],
            "layer": layer,
            "head": head,
        }

    def to_dict(self) -> dict[str, Any]:
        """The report without its rows, ready for strict JSON: undefined numbers are None."""
        from rcprobe.report.shares import to_dicts

        plain = {
            "info": dict(self.info),
            "notes": list(self.notes),
            "accuracy": {p: {r: [list(x) for x in seeds] for r, seeds in v.items()} for p, v in self.accuracy.items()},
            "shares": to_dicts(self),
            "signatures": {name: asdict(signature) for name, signature in self.signatures.items()},
            "transfer": [asdict(prediction) for prediction in self.transfer],
            "coverage": self.coverage,
            "excluded": {pairing: dict(reasons) for pairing, reasons in self.excluded.items()},
            "seeds": [{"seed": r.seed, "failure": r.failure, "fingerprint": r.fingerprint} for r in self.runs],
        }
        return strict(plain)  # type: ignore[no-any-return]

    def to_html(self, path: str | Path) -> None:
        """Write the report as one page that needs no network and no other file.

        Raises ``MissingExtraError`` without matplotlib and jinja2 (``pip install 'rcprobe[report]'``).
        """
        from rcprobe.report.html import to_html

        to_html(self, path)

    def _repr_html_(self) -> str:
        from rcprobe.report.notebook import report_html

        return report_html(self)

    def save(self, folder: str | Path) -> None:
        """Write ``report.json`` and ``values.csv``, and ``report.html`` where matplotlib is installed.

        The folder must be new or empty; each file is written whole or not at all.
        """
        from rcprobe.report.saved import save_report

        save_report(self, new_folder(folder))


_KEYS = [
    "seed",
    "step",
    "metric",
    "pairing",
    "fact",
    "a",
    "b",
    "template",
    "delta_forward",
    "delta_reverse",
    "layer",
    "head",
]


_Columns = dict[str, NDArray[Any]]


def _shape(measured: Measured) -> tuple[int, ...]:
    return next((c.shape for c in measured.columns.values() if c.ndim == 3), (len(measured.table.fact),))


def _encodable(text: str) -> str:
    """The text with half characters spelt out, which no column of texts and no file can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _values(measured: Measured) -> _Columns:
    """Every column of a metric as long as it has cells: what a pair has alone is repeated over layers and heads."""
    cells = math.prod(_shape(measured)[1:])
    return {n: c.reshape(-1) if c.ndim == 3 else np.repeat(c, cells) for n, c in measured.columns.items()}


def _stacked(keys: _Columns, values: _Columns) -> _Columns:
    """One row a value, column after column."""
    names = np.array(list(values), dtype=object)
    long = {name: np.tile(key, len(values)) for name, key in keys.items()}
    rows = len(keys["fact"])
    return {**long, "column": np.repeat(names, rows), "value": np.concatenate([*values.values(), np.empty(0)])}


def new_folder(folder: str | Path) -> Path:
    """Make a folder for results. Raises ``UsageError`` if it holds anything or can't be made."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = any(path.iterdir())
    except OSError as error:
        raise UsageError(f"{path}: can't write there ({error.strerror})") from error
    if occupied:
        raise UsageError(f"{path}: holds files already; name a new folder, nothing was overwritten")
    return path


def build(
    dataset: Dataset,
    metrics: Sequence[Metric],
    runs: Sequence[SeedRun],
    *,
    chance: float,
    identities: Mapping[str, str],
    info: Mapping[str, Any],
) -> Report:
    """Judge what seeds measured. ``chance`` is the accuracy of guessing in the reading that decides the gate."""
    finished = [run for run in runs if run.failure is None]
    gates = {pairing: _Gate(dataset, finished, chance, pairing) for pairing in get_args(Pairing)}
    found, skipped = {}, {}
    for metric in metrics:
        for pairing in metric.pairings if metric.conditions else ():
            name = metric.name if pairing == metric.pairings[0] else f"{metric.name} ({pairing})"
            last = [_pick(run.steps[-1], metric.name, pairing) for run in finished]
            first = [_pick(run.steps[0], metric.name, pairing) for run in finished]
            both = [(a, b) for a, b in zip(last, first, strict=True) if a is not None and b is not None]
            findings = find(metric, [a for a, _ in both], [b for _, b in both], dataset.replicate) if both else ()
            if not both:
                reasons = {**finished[0].steps[0].skipped, **finished[0].steps[-1].skipped} if finished else {}
                skipped[name] = reasons.get(f"{metric.name} ({pairing})", "no seed finished")
            found[name] = (metric, pairing, findings)
    signatures = judge_all(
        found,
        replicate=dataset.replicate,
        identities=identities,
        not_trained={pairing: gate.failed for pairing, gate in gates.items()},
        skipped=skipped,
    )
    notes = [*dataset.notes, *_several(dataset)]
    notes += [f"seed {run.seed} failed: {run.failure}" for run in runs if run.failure]
    notes += dict.fromkeys(note for gate in gates.values() for note in gate.notes)
    judged = {f"{metric.name} ({pairing})" for metric, pairing, _ in found.values()}
    left_out = finished[0].steps[-1].skipped if finished else {}
    notes += [f"{name} was not measured: {reason}" for name, reason in left_out.items() if name not in judged]
    notes += [
        f"seed {run.seed}: {name}: {reason}"
        for run in finished
        for name, reason in {**run.steps[0].skipped, **run.steps[-1].skipped}.items()
        if "raised" in reason and name in judged
    ]
    accuracy: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {}
    for run in finished:
        for asked, readings in run.steps[-1].accuracy.items():
            for reading, both_ways in readings.items():
                seeds = accuracy.setdefault(asked, {})
                seeds[reading] = (*seeds.get(reading, ()), both_ways)
    excluded = finished[0].steps[-1].excluded if finished else {}
    return Report(
        dataset,
        tuple(runs),
        signatures,
        accuracy,
        excluded,
        tuple(notes),
        info,
        transfer=predictions(dataset, [run.steps for run in finished]),
    )


def _several(dataset: Dataset) -> list[str]:
    """What accuracy does where questions have several right answers."""
    said = []
    for way, count in (
        ("forward", sum(bool(fact.b_answers) for fact in dataset.facts)),
        ("reverse", sum(bool(fact.a_answers) for fact in dataset.facts)),
    ):
        if count:
            said.append(
                f"{count} of {len(dataset.facts)} facts have more than one right answer when asked {way}: accuracy and "
                "log p speak of the fact's own alone, the metric answers takes any"
            )
    return said


class _Gate:
    """Whether a pairing's forward queries were learned at all: 90 % of the run's best accuracy on them, and 5 × chance.

    A model may know one of them alone: one that fills in b may not fill in a, even in the order of training.
    """

    def __init__(self, dataset: Dataset, runs: Sequence[SeedRun], chance: float, pairing: Pairing) -> None:
        reading = next(iter(dataset.readings), FULL)
        pairing = _asked(runs, reading, pairing)
        forward = {run.seed: [_forward(step, reading, pairing) for step in run.steps] for run in runs}
        named = f"{reading}, {pairing}"
        best = max(
            (value for values in forward.values() for value in values if not math.isnan(value)),
            default=math.nan,
        )
        bar = max(0.9 * best, min(5 * chance, 0.9))
        final = {seed: values[-1] for seed, values in forward.items() if values}
        stuck = [seed for seed, value in final.items() if not value >= bar]
        self.notes = [
            f"seed {seed}: forward accuracy is undefined ({named})"
            if math.isnan(final[seed])
            else f"seed {seed} is stuck: forward accuracy {final[seed]:.0%} ({named}), the bar is {100 * bar:.2g}%; "
            "it stays in every average"
            for seed in stuck
            if len(forward[seed]) > 1  # who wasn't trained isn't stuck
        ]
        median = float(np.median(list(final.values()))) if final else math.nan
        self.failed = ""
        if not final:
            self.failed = "no seed finished"
        elif math.isnan(median):
            self.failed = f"forward accuracy is undefined ({named})"
        elif not median >= bar:
            self.failed = f"median forward accuracy {median:.0%} ({named}) is under the bar of {100 * bar:.2g}%"


def _asked(runs: Sequence[SeedRun], reading: str, pairing: Pairing) -> Pairing:
    """The pairing, or the other one where no model was asked so."""
    steps = [step for run in runs for step in run.steps]
    known = [p for p in get_args(Pairing) if any(not math.isnan(_forward(step, reading, p)) for step in steps)]
    return pairing if pairing in known or not known else known[0]


def _forward(step: Step, reading: str, pairing: Pairing) -> float:
    return step.accuracy.get(pairing, {}).get(reading, (math.nan, math.nan))[0]


def _pick(step: Step, metric: str, pairing: str) -> Measured | None:
    return next((m for m in step.measured if m.metric == metric and m.pairing == pairing), None)
