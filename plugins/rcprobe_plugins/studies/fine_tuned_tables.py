"""Tab. 7, Fig. 4 and Fig. 6 of the paper beside ours: what fine-tuned models write, both ways, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rcprobe.report import Report
from rcprobe.report.correlations import by_head
from rcprobe.report.cosines import cosines
from rcprobe.report.curves import probability
from rcprobe.report.panels import FigureData
from rcprobe.report.sheet import Grid, Sheet
from rcprobe.report.values import by_step
from rcprobe_plugins.studies.fine_tuned import Tuned, Tuning
from rcprobe_plugins.studies.one_layer_tables import WHY, said_signature
from rcprobe_plugins.studies.published import published

Reports = Mapping[Tuning, Report]
WAYS = ("forward", "reverse")
HEADINGS = ("run", "storage", "routing", "dynamics")
HOW = (
    "An answer counts as right if it is one of the right ones after lower-casing and stripping. Forward asks in the "
    "order of training, reverse in the order never seen. Several template pairs a fact are asked; a fact counts by the "
    "share of them that it answers."
)


def tab7(key: str, tuned: Tuned) -> Sheet:
    """Tab. 7: written answers both ways, the paper's figures beside ours where it has the model."""
    reports = tuned.reports
    grids = (_outcome(reports), _along(reports), _why(reports))
    return Sheet(key, "Tab. 7: facts in text, fine-tuned in one direction", _said(reports), grids, _rows(reports),
                 (*_notes(tuned), HOW), _panels(reports))  # fmt: skip


def panels(key: str, tuned: Tuned) -> Sheet:
    """Fig. 4 or 6: score correlation by layer and head, gradient cosine and probability along training."""
    reports = tuned.reports
    title = f"Fig. {key[len('fig')]}: the three signatures of a deep model along fine-tuning"
    return Sheet(
        key, title, _said(reports), (_along(reports), _why(reports)), _rows(reports), _notes(tuned), _panels(reports)
    )


def exact(report: Report) -> dict[int, dict[int, tuple[float, float]]]:
    """Step → seed → (forward, reverse) share of exact answers over trained facts, in percent."""
    found: dict[int, dict[int, tuple[float, float]]] = {}
    for step, measured in by_step(report, "answers", "swapped").items():
        for one in measured:
            facts = one.table.fact[one.table.trained]
            found.setdefault(step, {})[one.seed] = tuple(  # type: ignore[assignment]
                100 * _by_fact(one.columns[f"{way}, exact"][one.table.trained], facts) for way in WAYS
            )
    return found


def _by_fact(values: "np.ndarray[Any, Any]", facts: "np.ndarray[Any, Any]") -> float:
    """The mean over facts of each one's mean; pairs that couldn't be asked stay out."""
    asked = ~np.isnan(values)
    means = [values[asked & (facts == fact)].mean() for fact in np.unique(facts[asked])]
    return float(np.mean(means)) if means else float("nan")


def _outcome(reports: Reports) -> Grid:
    paper = {(row["trained_on"], row["model"]): row for row in published("tab7").to_dict("records")}
    rows = []
    for tuning, report in reports.items():
        row = paper.get((tuning.trained_on, tuning.model))
        printed = "–" if row is None else f"{row['forward']:.1f} / {row['reverse']:.1f}"
        steps = exact(report)
        last = steps[max(steps)] if steps else {}
        shown = [_seeds([values[way] for values in last.values()]) for way in (0, 1)]
        rows.append((tuning.model, tuning.trained_on, printed, *shown))
    headings = ("model", "trained on", "paper: forward / reverse, %", "forward, %", "reverse, %")
    return Grid("Exact answers at the last step (mean, and every seed)", headings, tuple(rows))


def _seeds(values: Sequence[float]) -> str:
    if not values:
        return "–"
    each = "" if len(values) < 2 else f" ({', '.join(f'{value:.1f}' for value in values)})"
    return f"{np.mean(values):.1f}{each}"


def _along(reports: Reports) -> Grid:
    rows = []
    for tuning, report in reports.items():
        for step, seeds in exact(report).items():
            shown = [_seeds([values[way] for values in seeds.values()]) for way in (0, 1)]
            rows.append((tuning.label, f"{step:,}", *shown))
    return Grid("Exact answers along fine-tuning, %", ("run", "step", "forward", "reverse"), tuple(rows))


def _why(reports: Reports) -> Grid:
    rows = [
        (tuning.label, *("\n".join(_verdicts(report, name)) or "not measured" for name in WHY))
        for tuning, report in reports.items()
    ]
    return Grid("Why: each signature's verdict, estimate and 95 % interval", HEADINGS, tuple(rows))


def _verdicts(report: Report, metric: str) -> list[str]:
    """A metric's signatures, one for each pairing; what a causal model can't be asked says so."""
    return [
        f"{'' if name == metric else f'{signature.pairing}, '}{said_signature(signature)}"
        for name, signature in report.signatures.items()
        if signature.metric == metric
    ]


def _said(reports: Reports) -> tuple[str, ...]:
    said = []
    for tuning, report in reports.items():
        steps = exact(report)
        if not steps:
            said.append(f"{tuning.label}: no answer was written.")
            continue
        first, last = (np.mean(list(steps[k].values()), axis=0) for k in (min(steps), max(steps)))
        said.append(
            f"{tuning.label}: after fine-tuning {last[0]:.0f} % of forward and {last[1]:.0f} % of reverse answers are "
            f"right (before: {first[0]:.0f} and {first[1]:.0f} %)."
        )
    return tuple(said)


def _notes(tuned: Tuned) -> tuple[str, ...]:
    said = [f"{tuning.label}: {note}" for tuning, report in tuned.reports.items() for note in report.notes]
    return (*said, *(f"{tuning.label}: not run: {reason}" for tuning, reason in tuned.failed.items()))


def _rows(reports: Reports) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {
            "model": tuning.model, "trained_on": tuning.trained_on, "step": step, "seed": seed, "direction": way,
            "exact_percent": values[k],
        }
        for tuning, report in reports.items()
        for step, seeds in exact(report).items()
        for seed, values in seeds.items()
        for k, way in enumerate(WAYS)
    )  # fmt: skip


def _panels(reports: Reports) -> tuple[FigureData, ...]:
    """The paper's three panels of every run: routing, dynamics, outcome."""
    made = []
    for draw in (by_head, cosines, probability):
        drawn = {tuning: draw(report) for tuning, report in reports.items()}
        joined = tuple(
            replace(panel, title=f"{tuning.label}\n{panel.title}")
            for tuning, data in drawn.items()
            for panel in data.panels
        )
        one = next(iter(drawn.values()))
        missing = "" if joined else one.missing or "nothing was measured"
        made.append(replace(one, panels=joined, says="", missing=missing))
    return tuple(made)
