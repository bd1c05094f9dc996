"""A report said to somebody who knows neither the paper nor the field."""

import math
from dataclasses import dataclass
from typing import Any

from rcprobe.report import words
from rcprobe.report.report import FULL, Report
from rcprobe.report.visible import visible
from rcprobe.signatures import Finding, Signature

INTRODUCTION = (
    "A language model that has read “A is B” often can't answer when it is asked from B. Here a model is asked about "
    "facts in the order it was trained on (forward) and in the other order (reverse), and its insides are measured "
    "for what would have to be there if the one were to serve the other. Each such thing is called a signature."
)
QUESTIONS = {
    "storage": "Was the link from the evidence to the answer written into the weights?",
    "routing": "Does attention find the evidence alike from both sides?",
    "dynamics": "Does a training step that helps the forward query help the reverse one?",
    "outcome": "Does the right answer gain when the fact is asked in reverse?",
}
CONTROLS = {
    "storage": "other answers to the same evidence",
    "routing": "facts shuffled between the two directions",
    "dynamics": "the same answer asked from another fact's evidence",
    "outcome": "other trained answers to the same question",
}
VERDICTS = {
    "present": "the whole 95 % interval lies above the margin, and p is below .05 after Holm's correction",
    "absent": "the whole 95 % interval lies below the margin that was fixed beforehand",
    "inconclusive": "the data don't decide: the 95 % interval holds the margin, or p is too large",
    "undefined": "there is too little to judge",
    "identity": "true by the model's construction, trained or not, and so no evidence of learning",
    "not trained": "the forward facts weren't learned, so there is nothing to transfer",
}
ORDER = ("present", "absent", "inconclusive", "identity", "undefined", "not trained")


@dataclass(frozen=True)
class Answered:
    """Accuracy in words: shares over seeds both ways, and which answers competed."""

    forward: str
    reverse: str
    reading: str


def answered(report: Report) -> Answered | None:
    """Accuracy of the question that is asked of every kind of model, in the reading that decides; None without."""
    for pairing in ("swapped", "same_target"):
        readings = report.accuracy.get(pairing, {})
        reading = next((r for r in (*report.dataset.readings, FULL) if r in readings), None)
        if reading is not None:
            both = [words.percent([seed[way] for seed in readings[reading]]) for way in (0, 1)]
            if "–" not in both:
                return Answered(both[0], both[1], visible(reading))
    return None


def answer(report: Report) -> list[str]:
    """The finding in a few sentences, from the numbers alone."""
    if all(run.failure is not None or not run.steps for run in report.runs):
        return ["No seed finished, so this run says nothing about the question. The reasons are below."]
    said = []
    accuracy = answered(report)
    if accuracy is not None:
        seeds = "" if len(report.runs) == 1 else " (mean, and range over seeds where they differ)"
        said.append(
            f"Asked forward, the model is right in {accuracy.forward} of cases; asked in reverse, in "
            f"{accuracy.reverse}{seeds}. The right answer competed with: {accuracy.reading}."
        )
    main = [s for name, s in report.signatures.items() if " (" not in name]
    if not main:
        said.append("No signature was measured.")
    for verdict in ORDER:
        found = [s for s in main if s.verdict == verdict]
        if found:
            names = words.listed([visible(s.title) for s in found])
            whys = dict.fromkeys(visible(s.why) for s in found if s.why)
            said.append(f"{names[0].upper()}{names[1:]}: {verdict}" + (f" ({'; '.join(whys)})." if whys else "."))
    return said


def question(signature: Signature) -> str:
    """What a signature asks; for one the page doesn't know, nothing."""
    asked = QUESTIONS.get(signature.title, "")
    return f"{asked} (asked the other way round)" if asked and " (" in signature.name else asked


def finding(found: Finding, signature: Signature) -> str:
    """An estimate in words: how much, how sure, against what, and what was asked of it."""
    e, condition = found.estimate, found.condition
    if math.isnan(e.value):
        return f"no value ({e.method})." if not e.n else "no value."
    unit = {"d_z": "standard deviations", "r": "", "cosine": ""}.get(condition.unit, condition.unit)
    sure = f" (95 % interval {words.number(e.low)} to {words.number(e.high)})" if not math.isnan(e.low) else ""
    said = [f"{words.number(e.value)}{' ' * bool(unit)}{visible(unit)}{sure}; the margin is {condition.margin:g}."]
    control = CONTROLS.get(signature.title, "the control")
    if condition.statistic == "correlation":
        said.append(f"Control, {control}: {words.number(found.control)}.")
        if not math.isnan(found.start):
            said.append(f"At the first step: {words.number(found.start)}.")
    elif not math.isnan(found.control):
        said.append(f"Matched {words.number(found.matched)}, control ({control}) {words.number(found.control)}.")
    else:
        said.append("Held against zero.")
    if not math.isnan(found.superior):
        said.append(f"A fact beats its control in {found.superior:.0%} of cases.")
    who = {"seeds": "seeds", "clusters": "groups of facts that share no name"}.get(e.unit, e.unit)
    said.append(
        f"From {e.n} {who}"
        + (f"; {found.undefined_pairs:.0%} of pairs without a value." if found.undefined_pairs else ".")
    )
    return " ".join(said)


def strip(found: Finding) -> dict[str, Any] | None:
    """Where estimate, interval, margin and (for correlations) control stand on a line, in per cent of its width."""
    e = found.estimate
    if math.isnan(e.value):
        return None
    control = found.control if found.condition.statistic == "correlation" else math.nan
    marks = [v for v in (e.value, e.low, e.high, found.condition.margin, control, 0.0) if not math.isnan(v)]
    low, high = min(marks), max(marks)
    span = (high - low) or 1.0

    def place(value: float) -> float | None:
        return None if math.isnan(value) else round(6 + 88 * (value - low) / span, 2)

    return {
        "value": place(e.value),
        "low": place(e.low),
        "high": place(e.high),
        "margin": place(found.condition.margin),
        "control": place(control),
        "zero": place(0.0),
    }
