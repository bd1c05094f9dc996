"""A comparison as tables of texts: the same for the terminal, Markdown, LaTeX and the page."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from rcprobe.comparison.contrasts import Contrast
from rcprobe.comparison.measures import Measure
from rcprobe.comparison.runs import settings as settings_of
from rcprobe.comparison.said import p_value, signed, span
from rcprobe.metrics import Condition
from rcprobe.report import words
from rcprobe.report.panels import Point
from rcprobe.report.sheet import Grid
from rcprobe.signatures import Finding, Signature
from rcprobe.visible import visible

if TYPE_CHECKING:
    from rcprobe.comparison.comparison import Comparison


Spans = Literal["none", "beside", "below"]


def accuracy(found: "Comparison", spans: Spans) -> Grid:
    """Datasets × models, forward / reverse in each cell; ``spans`` says where their intervals go.

    On one dataset a column is a run, and bears its name.
    """
    heads = {run.name: run.name if len(found.groups) == 1 else run.model for run in found.runs}
    columns = list(dict.fromkeys(heads.values()))
    rows = []
    for line in found.matrix:
        under = {heads[name]: both for name, both in line.cells.items()}
        cells = [_cell(under[head], spans) if head in under else "" for head in columns]
        rows.append((line.dataset, line.reading, line.pairing.replace("_", " "), *cells))
    headings = ("dataset", "reading", "pairing", *columns)
    return _of_datasets(found, "Accuracy forward / reverse, in per cent", headings, rows, 1)


def signatures(found: "Comparison") -> Grid:
    """Every condition of every signature, the runs of a dataset below each other."""
    rows = []
    for group in found.groups:
        names = dict.fromkeys(name for run in group.runs for name in run.report.signatures)
        for name in names:
            held = [(run.name, run.report.signatures[name]) for run in group.runs if name in run.report.signatures]
            known: list[Condition | None] = list(dict.fromkeys(f.condition for _, s in held for f in s.findings))
            for condition in known or [None]:
                for run, signature in held:
                    finding = next((f for f in signature.findings if f.condition == condition), None)
                    rows.append((group.label, *_signature(signature, finding, condition, run)))
    headings = ("dataset", "signature", "run", "estimate", "95 % interval", "matched", "control", "signature's verdict")
    return _of_datasets(found, "Signatures: estimate, what it is held against, verdict", headings, rows, 2)


def differences(found: "Comparison", contrasts: Iterable[Contrast] | None = None) -> Grid:
    """Run less run with interval, corrected p and what can be said; all of them unless some are given."""
    rows = [
        (
            c.dataset,
            c.measure.label,
            f"{c.a} − {c.b}",
            f"{signed(c.difference.value, c.measure.unit)} {_unit(c.measure.unit)}".strip(),
            span(c.difference.low, c.difference.high, c.measure.unit),
            p_value(c.adjusted_p),
            f"{c.found}: {c.why}" if c.why else c.found,
        )
        for c in (found.contrasts if contrasts is None else contrasts)
    ]
    headings = ("dataset", "measure", "runs", "difference", "95 % interval", "p (Holm)", "the first is")
    return _of_datasets(found, "Differences between runs", headings, rows, 2)


def refusals(found: "Comparison") -> Grid:
    """What isn't compared, and why: runs, and measures, with one reason together."""
    whole: dict[tuple[str, str], set[str]] = {}
    either = [(c.dataset, c.measure) for c in found.contrasts] + [(r.dataset, r.measure) for r in found.refusals]
    for dataset, measure in either:
        whole.setdefault((dataset, measure.title), set()).add(measure.label)
    pairs: dict[tuple[str, Measure, str, str], list[str]] = {}
    for r in found.refusals:
        pairs.setdefault((r.dataset, r.measure, r.run, r.why), []).append(f"{r.a} and {r.b}")
    measures: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for (dataset, measure, run, why), both in pairs.items():
        names = f"{run} with any other" if run else "; ".join(both)
        measures.setdefault((dataset, names, why), {}).setdefault(measure.title, []).append(measure.label)
    rows = []
    for (dataset, names, why), titles in measures.items():
        said = [[title] if set(labels) == whole[dataset, title] else labels for title, labels in titles.items()]
        rows.append((dataset, "; ".join(label for labels in said for label in labels), names, why))
    return _of_datasets(found, "Not compared, and why", ("dataset", "measure", "runs", "why"), rows, 0)


def runs(found: "Comparison") -> Grid:
    """What each run is."""
    rows = []
    for group in found.groups:
        for run in group.runs:
            train = run.report.info.get("train")
            trained = f"{train['steps']:,} steps" if train else "not here"
            facts, seeds = len(run.report.dataset.facts), len(run.report.runs)
            rows.append((run.name, run.model, group.label, f"{facts:,}", f"{seeds}", trained))
    return Grid("Runs", ("run", "model", "dataset", "facts", "seeds", "trained"), tuple(rows))


def settings(found: "Comparison") -> Grid:
    """The settings in which runs differ, a column a run."""
    own = [settings_of(run.report) for run in found.runs]
    keys = dict.fromkeys(key for values in own for key in values)
    rows = [(key.replace("_", " "), *(values.get(key, "–") for values in own)) for key in keys]
    differ = tuple(row for row in rows if len(set(row[1:])) > 1)
    return Grid("Settings in which they differ", ("setting", *(run.name for run in found.runs)), differ)


def per_cent(value: float) -> str:
    """A share as tables of accuracy print it."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def interval(point: Point) -> str:
    """A share's interval in per cent, empty where it has none."""
    return "" if math.isnan(point.low) else f"[{100 * point.low:.0f}, {100 * point.high:.0f}]"


def verdicts(found: "Comparison") -> tuple[list[str], list[tuple[str, str, list[Signature | None]]]]:
    """Signatures' names, and (dataset, run, its signature under each name)."""
    names = list(dict.fromkeys(name for run in found.runs for name in run.report.signatures))
    rows = [
        (group.label, run.name, [run.report.signatures.get(name) for name in names])
        for group in found.groups
        for run in group.runs
    ]
    return names, rows


def _of_datasets(
    found: "Comparison", title: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], once: int
) -> Grid:
    """A table whose first column is the dataset, left out where there is one; ``once`` columns are said once."""
    kept = _once(rows, once)
    if len(found.groups) == 1:
        headings, kept, once = headings[1:], tuple(row[1:] for row in kept), max(once - 1, 0)
    return Grid(title, headings, kept, once)


def _cell(both: tuple[Point, Point], spans: Spans) -> str:
    values, intervals = [per_cent(point.value) for point in both], [interval(point) for point in both]
    if spans == "none" or not any(intervals):
        return " / ".join(values)
    if spans == "below":
        return f"{' / '.join(values)}\n{' / '.join(span or '–' for span in intervals)}"
    return " / ".join(f"{value} {span}".strip() for value, span in zip(values, intervals, strict=True))


def _signature(signature: Signature, finding: Finding | None, condition: Condition | None, run: str) -> tuple[str, ...]:
    measured = f"{visible(words.titled(signature))} ({signature.pairing.replace('_', ' ')})"
    if condition is not None:
        measured += f": {'' if condition.judged else 'beside it, '}{visible(condition.label)}"
    if finding is None:
        return measured, run, "–", "", "–", "–", signature.verdict
    e, unit = finding.estimate, _unit(finding.condition.unit)
    return (
        measured,
        run,
        f"{words.number(e.value)} {unit}".strip() if not math.isnan(e.value) else "–",
        "" if math.isnan(e.low) else f"[{words.number(e.low)}, {words.number(e.high)}]",
        words.number(finding.matched),
        words.number(finding.control),
        signature.verdict,
    )


def _unit(unit: str) -> str:
    """A unit behind a number; of what says itself, none."""
    return {"share": "points", "r": "", "cosine": ""}.get(unit, unit)


def _once(rows: Sequence[tuple[str, ...]], columns: int) -> tuple[tuple[str, ...], ...]:
    """Rows whose first columns are said once, where they change."""
    made, before = [], ("",) * columns
    for row in rows:
        same = [row[: k + 1] == before[: k + 1] for k in range(columns)]
        made.append((*("" if s else text for s, text in zip(same, row[:columns], strict=True)), *row[columns:]))
        before = row[:columns]
    return tuple(made)
