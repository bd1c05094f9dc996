"""A report said to somebody who knows neither the paper nor the field."""

import math
from collections.abc import Sequence
from typing import Any

from rcprobe.report import words
from rcprobe.report.report import FULL, Report
from rcprobe.report.shares import of_pairs, shares
from rcprobe.signatures import Finding, Signature
from rcprobe.visible import visible

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
    "knockout": "Does the answer hang on attention to the evidence, both ways?",
}
CONTROLS = {
    "storage": "other answers to the same evidence",
    "routing": "facts shuffled between the two directions",
    "dynamics": "the same answer asked from another fact's evidence",
    "outcome": "other trained answers to the same question",
    "knockout": "as many other tokens of the prompt, as far away, hidden instead",
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


def answer(report: Report) -> list[str]:
    """The finding in a few sentences, from the numbers alone."""
    if all(run.failure is not None or not run.steps for run in report.runs):
        return ["No seed finished, so this run says nothing about the question. The reasons are below."]
    said = _accuracy(report)
    main = [s for name, s in report.signatures.items() if name == s.metric]
    if not main:
        said.append("No signature was measured.")
    said += _verdicts([s for s in main if not s.check])
    said += [f"Beside the signatures, a causal check: {line}" for line in _verdicts([s for s in main if s.check])]
    return said


def _verdicts(signatures: Sequence[Signature]) -> list[str]:
    said = []
    for verdict in ORDER:
        found = [s for s in signatures if s.verdict == verdict]
        if found:
            names = words.listed([visible(s.title) for s in found])
            whys = dict.fromkeys(visible(s.why) for s in found if s.why)
            said.append(f"{names[0].upper()}{names[1:]}: {verdict}" + (f" ({'; '.join(whys)})." if whys else "."))
    return said


def _accuracy(report: Report) -> list[str]:
    """Accuracy of what is asked of every kind of model: the reading that decides, and the full vocabulary."""
    found = of_pairs(shares(report))
    pairing = "swapped" if report.accuracy.get("swapped") else "same_target"
    readings = {forward.reading: (forward, reverse) for forward, reverse in found if forward.pairing == pairing}
    first = next(iter(report.dataset.readings), FULL)
    said: list[str] = []
    for reading in dict.fromkeys((first, FULL)):
        both = [words.share(one) for one in readings.get(reading, ())] or ["–"]
        if "–" in both:
            continue
        if not said:
            several = ", seeds’ range in brackets" if any("(" in share for share in both) else ""
            several += ", 95 % interval in square brackets" if any("[" in share for share in both) else ""
            said.append(
                f"Asked forward, the model is right {both[0]} of the time; asked in reverse, {both[1]} "
                f"(rivals: {visible(reading)}{several})."
            )
        else:
            said.append(f"With the {visible(reading)} as rivals: forward {both[0]}, reverse {both[1]}.")
    return said


def strength(signature: Signature) -> str:
    """A signature's first finding as number and interval, and what it is held against."""
    if not signature.findings:
        return "no value"
    first = next(f for f in signature.findings if f.condition.judged)
    if math.isnan(first.estimate.value):
        return "no value"
    unit = {"nats": " nats", "cosine": " (cosine)", "r": " (correlation)"}.get(first.condition.unit, "")
    against = _control(first, signature) or "its control"
    if first.condition.statistic != "correlation" and math.isnan(first.control):
        against = "zero"
    return f"{words.interval(first)}{visible(unit)}, against {against}"


def meaning(signature: Signature) -> str:
    """What a verdict means; a check's p stands by itself."""
    said = VERDICTS[signature.verdict]
    return said.replace(" after Holm's correction", "") if signature.check else said


def question(signature: Signature) -> str:
    """What a signature asks; for one the page doesn't know, nothing."""
    return QUESTIONS.get(signature.title, "") + " (A causal check, not a signature.)" * signature.check


def _control(found: Finding, signature: Signature) -> str:
    """What an estimate is held against; nothing where the metric alone knows."""
    title = "routing" if found.condition.statistic == "correlation" else signature.title
    return CONTROLS.get(title, "")


def finding(found: Finding, signature: Signature) -> str:
    """An estimate in words: how much, how sure, against what, and what was asked of it."""
    e, condition = found.estimate, found.condition
    if math.isnan(e.value):
        return "No value: growth needs two probed steps." if e.method.startswith("growth") else "No value."
    unit = {"d_z": "standard deviations", "r": "", "cosine": ""}.get(condition.unit, condition.unit)
    sure = f" (95 % interval {words.number(e.low)} to {words.number(e.high)})" if not math.isnan(e.low) else ""
    asked = f"the margin is {condition.margin:g}" if condition.judged else "shown beside, not judged"
    said = [f"{words.number(e.value)}{' ' * bool(unit)}{visible(unit)}{sure}; {asked}."]
    control = _control(found, signature)
    if condition.statistic == "correlation":
        said.append(f"Control, {control}: {words.number(found.control)}.")
        if not math.isnan(found.start):
            said.append(f"At the first step: {words.number(found.start)}.")
    elif not math.isnan(found.control):
        named = f"control ({control})" if control else "control"
        said.append(f"Matched {words.number(found.matched)}, {named} {words.number(found.control)}.")
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
    margin = found.condition.margin if found.condition.judged else math.nan
    marks = [v for v in (e.value, e.low, e.high, margin, control, 0.0) if not math.isnan(v)]
    low, high = min(marks), max(marks)
    span = (high - low) or 1.0

    def place(value: float) -> float | None:
        return None if math.isnan(value) else round(6 + 88 * (value - low) / span, 2)

    return {
        "value": place(e.value),
        "low": place(e.low),
        "high": place(e.high),
        "margin": place(margin),
        "control": place(control),
        "zero": place(0.0),
    }
