"""The figure of dynamics: gradient cosines of matched pairs beside their controls, whole, by group and by layer."""

import math

from rcprobe.measured import Measured
from rcprobe.report.curves import PAIRINGS
from rcprobe.report.panels import Curves, Dots, FigureData, Panel, Point, Series, Style
from rcprobe.report.report import Report
from rcprobe.report.values import clipped, estimate, last, seed_means, with_columns
from rcprobe.report.words import number
from rcprobe.visible import visible

TITLE = "Do forward and reverse pull the weights the same way?"
CONTROLS = {
    "matched": "same fact (matched)",
    "same_target": "same answer, other evidence",
    "other_target": "other answer, same evidence",
    "other_fact": "another fact",
}
SERIES: tuple[tuple[str, str, Style], ...] = (
    ("cos", "same fact (matched)", "forward"),
    ("same_target", "same answer, other evidence (control)", "control"),
)


def cosines(report: Report) -> FigureData:
    """Mean cosine between the gradients of the forward and the reverse query, at the last step."""
    how = (
        "A training step on the forward query moves the weights along its gradient. The cosine with the reverse "
        "query's gradient says whether that step also helps the reverse query: 1, as much as it could; 0, not at all; "
        "below 0, it harms. The control asks the same answer from another fact's evidence: what is left above it is "
        "due to this fact. Where no gradient reached the weights there is no value."
    )
    found = with_columns(report, {"matched", "same_target"})
    if not found:
        reasons = [s.why for s in report.signatures.values() if s.title == "dynamics" and s.why]
        why = visible(reasons[0]) if reasons else "no metric measured gradients"
        return FigureData("cosine", TITLE, "", how, missing=why)
    measured = last(report, *found[0])
    names = list(measured[0].columns)
    panels: list[Panel] = [_whole(report, *both) for both in found]
    asked = PAIRINGS.get(found[0][1], found[0][1])
    own = [name.removeprefix("cos ") for name in names if name.startswith("cos ")]
    groups = [name for name in own if not name.startswith("layer ")]
    if groups:
        places = tuple(visible(g) for g in groups)
        title = f"by kind of parameter\n{asked}"
        panels.append(Dots(title, "gradient cosine", _series(report, measured, groups, places)))
    layers = by_layer(report, *found[0])
    panels += [layers] if layers is not None else []
    values = dict(_points(report, measured, ("matched", "same_target")))
    says = (
        f"At the last step, where {asked}: {number(values['matched'].value)} for the same fact, "
        f"{number(values['same_target'].value)} for the same answer from other evidence."
    )
    return FigureData("cosine", TITLE, says, how, tuple(panels))


def by_layer(report: Report, metric: str, pairing: str) -> Curves | None:
    """Mean cosine inside each layer, and the control's, at the last step; None where it wasn't measured by layer."""
    measured = last(report, metric, pairing)
    layers = [name.removeprefix("cos ") for m in measured[:1] for name in m.columns if name.startswith("cos layer ")]
    if not layers:
        return None
    depths = tuple(float(name.removeprefix("layer ")) for name in layers)
    title = f"by layer\n{PAIRINGS.get(pairing, pairing)}"
    return Curves(title, "layer", "gradient cosine", _series(report, measured, layers, depths))


def _whole(report: Report, metric: str, pairing: str) -> Dots:
    measured = last(report, metric, pairing)
    columns = tuple(c for c in CONTROLS if c in measured[0].columns)
    points = tuple(point for _, point in _points(report, measured, columns))
    labels = tuple(CONTROLS[c] for c in columns)
    series = Series("mean over facts", "forward", labels, points, _seeds(report, measured, columns))
    return Dots(f"all parameters\n{PAIRINGS.get(pairing, pairing)}", "gradient cosine", (series,))


def _points(report: Report, measured: list[Measured], columns: tuple[str, ...]) -> list[tuple[str, Point]]:
    """Each column's mean over facts, its interval inside −1 to 1."""
    found = [(c, estimate(report, measured, [m.columns[c] for m in measured])) for c in columns]
    return [(c, clipped(point, -1.0, 1.0)) for c, point in found]


def _series(
    report: Report, measured: list[Measured], parts: list[str], places: tuple[float | str, ...]
) -> tuple[Series, ...]:
    made = []
    for prefix, label, style in SERIES:
        columns = {f"{prefix} {part}": place for part, place in zip(parts, places, strict=True)}
        known = tuple(c for c in columns if all(c in m.columns for m in measured))
        if known:
            points = tuple(point for _, point in _points(report, measured, known))
            kept = tuple(columns[c] for c in known)
            made.append(Series(label, style, kept, points, _seeds(report, measured, known)))
    return tuple(made)


def _seeds(report: Report, measured: list[Measured], columns: tuple[str, ...]) -> dict[int, tuple[float, ...]]:
    if len(measured) < 2:
        return {}
    means = [seed_means(measured, [m.columns[c] for m in measured], len(report.dataset.facts)) for c in columns]
    return {m.seed: tuple(mean.get(m.seed, math.nan) for mean in means) for m in measured}
