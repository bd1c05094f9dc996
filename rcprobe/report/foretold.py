"""Which facts transfer, said and drawn: each signature along training with the outcome at the end."""

import math

from rcprobe.report.curves import STEP
from rcprobe.report.panels import Curves, FigureData, Point, Series, Style
from rcprobe.report.report import Report
from rcprobe.report.words import listed, number
from rcprobe.transfer import Prediction

TITLE = "Do signatures say which facts transfer?"
STYLES: tuple[Style, ...] = ("forward", "reverse", "extra", "other")
HOW = (
    "Each fact has its own signatures at every probed step, and its own outcome at the last step. A mark is the "
    "correlation between the two over facts, inside groups of facts whose queries are alike in length and distance: "
    "point-biserial where the outcome is right or wrong, Spearman's where it is log p. Above zero, facts with more of "
    "the signature are those that are answered in reverse. It says what goes together, not what causes what."
)


def foretold(report: Report) -> FigureData | None:
    """Correlations against the step, a panel for each outcome; None where no outcome was measured."""
    if not report.transfer:
        return None
    panels = []
    for outcome in dict.fromkeys(one.outcome for one in report.transfer):
        here = [one for one in report.transfer if one.outcome == outcome]
        series = []
        for style, name in zip(STYLES, dict.fromkeys(one.signature for one in here), strict=False):
            of = sorted((one for one in here if one.signature == name), key=lambda one: one.step)
            points = tuple(Point(math.nan) if one.why else Point(one.r, one.low, one.high) for one in of)
            series.append(Series(name, style, tuple(float(one.step) for one in of), points))
        panels.append(Curves(outcome, STEP, "correlation r", tuple(series)))
    reasons = dict.fromkeys(one.why for one in report.transfer if one.why)
    known = any(not one.why for one in report.transfer)
    missing = "" if known else f"it can't be asked ({'; '.join(reasons)})"
    return FigureData("transfer", TITLE, " ".join(lines(report)), HOW, tuple(panels) if known else (), missing)


def lines(report: Report) -> list[str]:
    """A sentence an outcome: what each signature of the last step says, and since when; a common reason, once."""
    reasons = {one.why for one in report.transfer}
    if reasons and len(reasons) == 1 and "" not in reasons:
        return [f"Which facts transfer by their signatures can't be asked: {reasons.pop()}."]
    said = []
    for outcome in dict.fromkeys(one.outcome for one in report.transfer):
        here = [one for one in report.transfer if one.outcome == outcome]
        last = max(one.step for one in here)
        now = [one for one in here if one.step == last]
        parts = [_part(one, here) for one in now if not one.why]
        for why in dict.fromkeys(one.why for one in now if one.why):
            names = listed([one.signature for one in now if one.why == why])
            parts.append(f"{names} can't be asked ({why})")
        said.append(
            f"Which facts transfer ({outcome} at the end), by their signatures at step {last}: {'; '.join(parts)}."
        )
    return said


def rows(report: Report) -> list[tuple[str, ...]]:
    """Every correlation as texts: outcome, signature, step, r, interval, p after Holm, decision.

    Nothing where none could be asked: the figure says why.
    """
    if all(one.why for one in report.transfer):
        return []
    found: list[tuple[str, ...]] = []
    for one in report.transfer:
        interval = f"{number(one.low)} to {number(one.high)}" if one.low == one.low else "–"
        decision = f"{one.decision}: {one.why}" if one.why else one.decision
        found.append((one.outcome, one.signature, str(one.step), number(one.r), interval, _p(one.adjusted), decision))
    return found


def _part(one: Prediction, here: list[Prediction]) -> str:
    earlier = [p.step for p in here if p.signature == one.signature and p.decision == one.decision == "predicts"]
    since = f" (first at step {min(earlier)})" if earlier and min(earlier) < one.step else ""
    return f"{one.signature} r {number(one.r)} [{number(one.low)}, {number(one.high)}], {one.decision}{since}"


def _p(value: float) -> str:
    return "–" if value != value else "< 0.01" if value < 0.01 else number(value)
