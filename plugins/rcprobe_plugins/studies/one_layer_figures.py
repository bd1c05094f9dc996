"""Figures of the one-layer study: Fig. 3 of the paper, with every seed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rcprobe.measured import Measured
from rcprobe.report import Report
from rcprobe.report.curves import PAIRINGS, accuracy, probability
from rcprobe.report.panels import Curves, FigureData, HeatMap, Point, Series, Style
from rcprobe.report.values import by_step, clipped, estimate, seed_means
from rcprobe.statistics import fisher_mean
from rcprobe_plugins.studies.one_layer import LETTERS, Setting, finished

Reports = Mapping[Setting, Report]
COSINES: tuple[tuple[str, str, Style], ...] = (
    ("matched", "the same fact both ways", "forward"),
    ("same_target", "the same answer from other evidence (control)", "control"),
)


def figures(reports: Reports) -> tuple[FigureData, ...]:
    """Probability and accuracy along training, score correlation by distances, gradient cosine by step and length."""
    return (_along(reports, "probability"), _along(reports, "accuracy"), heat_maps(reports), *cosines(reports))


def _along(reports: Reports, kind: str) -> FigureData:
    """The reports' own curves, one panel a setting, of the pairing of its tables."""
    draw = {"probability": probability, "accuracy": accuracy}[kind]
    made = {setting: draw(report) for setting, report in reports.items()}
    wanted = LETTERS if kind == "probability" else "full vocabulary"
    panels = tuple(
        replace(panel, title=f"{setting.label}\n{', '.join(panel.title.splitlines())}")
        for setting, data in made.items()
        for panel in data.panels
        if panel.title.startswith(wanted) and (kind == "probability" or panel.title.endswith(PAIRINGS[setting.pairing]))
    )
    one = next(iter(made.values()))
    return replace(one, panels=panels, says="", missing="" if panels else "nothing was measured")


def correlation_map(measured: Measured) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Distances in order, and r over facts [δ←, δ→] between scores, averaged over the placements of a distance."""
    table = measured.table
    kept = table.stratum > 0
    distances, at = np.unique(table.delta_forward[kept], return_inverse=True)
    facts = int(table.fact.max()) + 1
    cell = table.fact[kept] * len(distances) + at
    means = []
    for name in ("reverse", "forward"):
        scores = measured.columns[name].reshape(len(kept), -1).mean(axis=1)[kept]
        total = np.bincount(cell, scores, minlength=facts * len(distances))
        count = np.bincount(cell, minlength=facts * len(distances))
        mean = (total / np.maximum(count, 1)).reshape(facts, -1)
        means.append(mean - mean.mean(axis=0))
    reverse, forward = means
    norms = np.outer(np.linalg.norm(reverse, axis=0), np.linalg.norm(forward, axis=0))
    return distances, np.where(norms > 0, reverse.T @ forward / np.where(norms > 0, norms, 1.0), np.nan)


@dataclass(frozen=True)
class Maps:
    """Each seed's map of the last step, r over facts [δ←, δ→], and their ``mean`` over seeds (Fisher)."""

    distances: NDArray[np.int64]
    by_seed: Mapping[int, NDArray[np.float64]]
    mean: NDArray[np.float64]


def maps(report: Report) -> Maps | None:
    """The maps of a report's finished seeds; None where the model can't be asked both ways."""
    found = {
        run.seed: correlation_map(measured)
        for run in finished(report)
        for measured in run.steps[-1].measured
        if (measured.metric, measured.pairing) == ("attention_correlation", "same_target")
    }
    by_seed = {seed: values.clip(-1, 1) for seed, (distances, values) in found.items() if len(distances)}
    if not by_seed:
        return None
    stacked, facts = np.stack(list(by_seed.values())), len(report.dataset.facts)
    cells = [fisher_mean(stacked[(slice(None), *place)], facts) for place in np.ndindex(stacked.shape[1:])]
    distances, _ = found[next(iter(by_seed))]
    return Maps(distances, by_seed, np.array(cells).reshape(stacked.shape[1:]))


def heat_maps(reports: Reports) -> FigureData:
    """r of forward with reverse scores at every δ→ and δ←, a panel a setting."""
    panels = []
    for setting, report in reports.items():
        found = maps(report)
        if found is not None:
            names = tuple(map(str, found.distances))
            panels.append(HeatMap(setting.label, "δ→ (tokens)", "δ← (tokens)", names, names, found.mean))
    how = (
        "Correlation over facts between the forward score at distance δ→ and the reverse score at δ←, scores averaged "
        "over the placements of a distance, correlations over seeds. 1 is an identity for an encoding that reads the "
        "distance alone (Prop. 4.5), no evidence."
    )
    title = "Score correlation over δ→ × δ←"
    return FigureData(
        "correlation", title, "", how, tuple(panels), "" if panels else "no model can be asked so both ways"
    )


def cosines(reports: Reports) -> tuple[FigureData, FigureData]:
    """The gradient cosine against the step, a panel a setting; and at the last step against the length."""
    along, ends = [], {}
    for setting, report in reports.items():
        steps = by_step(report, "gradient_alignment", "same_target")
        series = tuple(_cosine(report, steps, *names) for names in COSINES) if steps else ()
        if series:
            along.append(Curves(setting.label, "training step", "gradient cosine", series))
            ends[setting] = series
    by_kind: dict[tuple[str, str], dict[int, tuple[Series, ...]]] = {}
    for setting, series in ends.items():
        by_kind.setdefault((setting.encoding, setting.model), {})[setting.length] = series
    against = [
        Curves(encoding, "length L", "gradient cosine", tuple(_last_points(lengths, n) for n in range(len(COSINES))))
        for (encoding, _), lengths in by_kind.items()
        if len(lengths) > 1
    ]
    how = (
        "Cosine between the gradients of the forward and the reverse loss of a fact, over all parameters. It is near 1 "
        "before anything is learned, because both ask for one answer; the control asks for the same answer from "
        "another fact's evidence. What training adds is the gap between the two."
    )
    return (
        FigureData("cosine-by-step", "Gradient cosine along training", "", how, tuple(along), _missing(along)),
        FigureData(
            "cosine-by-length", "Gradient cosine by length, at the last step", "", how, tuple(against),
            "" if against else "there is one length only",
        ),
    )  # fmt: skip


def _missing(panels: list[Curves]) -> str:
    return "" if panels else "no gradients were measured"


def _cosine(report: Report, steps: Mapping[int, list[Measured]], column: str, label: str, style: Style) -> Series:
    points, seeds = [], []
    for measured in steps.values():
        values = [m.columns[column] for m in measured]
        points.append(clipped(estimate(report, measured, values), -1.0, 1.0))
        seeds.append(seed_means(measured, values, len(report.dataset.facts)))
    each = {seed: tuple(step.get(seed, math.nan) for step in seeds) for seed in seeds[0]}
    return Series(label, style, tuple(float(step) for step in steps), tuple(points), each)


def _last_points(lengths: Mapping[int, tuple[Series, ...]], number: int) -> Series:
    some = next(iter(lengths.values()))[number]
    points: tuple[Point, ...] = tuple(series[number].points[-1] for series in lengths.values())
    return Series(some.label, some.style, tuple(map(float, lengths)), points)
