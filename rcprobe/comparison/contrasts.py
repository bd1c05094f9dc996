"""Which runs may be compared in what, how far they are apart, and what can be said of it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from rcprobe.comparison.measures import Measure, Values, finding_of, measures, values
from rcprobe.comparison.runs import Group, Run
from rcprobe.differences import Difference, paired_draws, paired_means, welch
from rcprobe.signatures import MINIMUM, UNDEFINED_SHARE
from rcprobe.statistics import holm
from rcprobe.visible import visible

Found = Literal["higher", "lower", "not told apart", "too few"]
ALPHA = 0.05


@dataclass(frozen=True)
class Contrast:
    """Run ``a`` less run ``b`` in one measure. ``found`` says where a stands; ``why`` what was too few.

    ``adjusted_p`` is Holm's over all contrasts of the comparison that had enough replicates.
    """

    dataset: str
    measure: Measure
    a: str
    b: str
    difference: Difference
    adjusted_p: float
    found: Found
    why: str = ""


@dataclass(frozen=True)
class Refusal:
    """Two runs that aren't compared in a measure, and why; ``run`` is the one of them that it lies with, if it is."""

    dataset: str
    measure: Measure
    a: str
    b: str
    why: str
    run: str = ""


def contrasts(groups: Sequence[Group]) -> tuple[tuple[Contrast, ...], tuple[Refusal, ...]]:
    """Every two runs of a group in every measure that both have; the rest with its reason."""
    made: list[Contrast] = []
    refused: list[Refusal] = []
    for group in (group for group in groups if len(group.runs) > 1):
        for measure in measures(group):
            known = {run.name: values(run, measure) for run in group.runs}
            empty = {run.name: _nothing(measure, run, known[run.name]) for run in group.runs}
            for a, b in combinations(group.runs, 2):
                in_a, in_b = known[a.name], known[b.name]
                lies_with = next((run.name for run in (b, a) if empty[run.name]), "")
                why = empty[lies_with] if lies_with else _why_not(measure, a, b) or _unpaired(group, in_a, in_b)
                if why or in_a is None or in_b is None:
                    refused.append(Refusal(group.label, measure, a.name, b.name, why, lies_with))
                else:
                    made.append(_undecided(group, measure, a.name, b.name, _apart(group, in_a, in_b)))
    return _judged(made), tuple(refused)


def _why_not(measure: Measure, a: Run, b: Run) -> str:
    """Why two runs that both have values can't be compared in a measure; empty where they can."""
    if measure.unit == "nats":
        kinds = [run.report.info.get("objective") for run in (a, b)]
        if kinds[0] != kinds[1]:
            return (
                f"log-probabilities of a {kinds[0]} and of a {kinds[1]} model are of two kinds: the one sums over "
                "tokens predicted at once, the other over tokens predicted in a row"
            )
        if a.tokenizer != b.tokenizer:
            return "their tokenizers aren't the same, and log-probabilities depend on how answers are cut"
    if measure.unit == "cosine" and _moved(a) != _moved(b):
        return (
            f"{a.name} takes gradients in {_moved(a)}, {b.name} in {_moved(b)}: cosines over other parameters, and "
            "over adapters they depend on how the random half was drawn"
        )
    if measure.name == "answers" and a.report.info.get("decoding") != b.report.info.get("decoding"):
        return "their answers were decoded in two ways"
    return ""


def _moved(run: Run) -> str:
    """What a run's gradients are of. Runs from before there was a ``method`` trained every weight."""
    info = run.report.info
    loaded = (info.get("loading") or {}).get("peft")
    fresh = (info.get("train") or {}).get("method", "full") == "lora"
    of = "fresh low-rank adapters" if fresh else "loaded low-rank adapters" if loaded else "the weights themselves"
    reasons = sorted({reason for covered in run.report.coverage.values() for reason in covered["left out"]})
    return of + (f" less what is left out ({', '.join(map(visible, reasons))})" if reasons else "")


def _nothing(measure: Measure, run: Run, held: Values | None) -> str:
    """Why a run has nothing to compare."""
    if measure.condition is None:
        if held is None or math.isnan(held.value):
            return "no value" if held else "not measured"
        return ""
    signature = run.report.signatures.get(measure.name)
    if signature is None:
        return "not measured"
    found = finding_of(signature, measure)
    if found is None:
        if signature.findings:
            return "its signature was defined otherwise"
        return visible(signature.why) or "no value"
    if signature.verdict == "identity":
        return f"true by construction: {visible(signature.why)}"
    if signature.verdict == "not trained":
        return f"not trained: {visible(signature.why)}"
    if held is None or math.isnan(held.value):
        return (visible(signature.why) if signature.verdict == "undefined" else "") or "no value"
    if signature.verdict == "undefined" and found.estimate.n >= MINIMUM[run.report.dataset.replicate]:
        return f"undefined: {visible(signature.why)}"
    return ""


def _unpaired(group: Group, a: Values | None, b: Values | None) -> str:
    """Why runs whose replicate is a fact can't be paired by fact."""
    if group.replicate == "seed" or a is None or b is None:
        return ""
    if a.clusters is None or b.clusters is None:
        return "its values weren't kept by fact"
    if a.draw is not None and not np.array_equal(a.clusters, b.clusters):
        return "not the same facts have a value"
    return ""


def _apart(group: Group, a: Values, b: Values) -> Difference:
    if group.replicate == "seed":
        return welch(a.seeds, b.seeds)
    assert a.clusters is not None
    if a.facts is None or b.facts is None:
        return paired_draws(a.value, b.value, a.draws, b.draws, len(a.clusters))
    return paired_means(a.facts, b.facts, a.clusters)


def _undecided(group: Group, measure: Measure, a: str, b: str, found: Difference) -> Contrast:
    """A contrast before Holm's correction; one with too few replicates has no p to correct."""
    minimum, why = MINIMUM[group.replicate], ""
    if measure.unit == "share":  # a t interval may leave what is possible
        found = replace(found, low=float(np.clip(found.low, -1, 1)), high=float(np.clip(found.high, -1, 1)))
    if found.n < minimum:
        who = f"seed{'s'[: found.n != 1]}" if group.replicate == "seed" else "groups of facts that share no name"
        why = f"{found.n} {who}; a comparison needs {minimum}"
    elif found.undefined > UNDEFINED_SHARE:
        why = f"{found.undefined:.0%} of the {group.replicate}s have no value"
    elif math.isnan(found.p):
        why = "its p is undefined: too few resamples have a value"
    return Contrast(group.label, measure, a, b, found, math.nan, "too few" if why else "not told apart", why)


def _judged(made: Iterable[Contrast]) -> tuple[Contrast, ...]:
    """Apart: p is below .05 after Holm's correction over all, and the interval leaves zero out."""
    listed = list(made)
    adjusted = holm({str(i): c.difference.p for i, c in enumerate(listed) if c.found != "too few"})
    judged = []
    for i, contrast in enumerate(listed):
        p, d = adjusted.get(str(i), math.nan), contrast.difference
        found = contrast.found
        if p < ALPHA and (d.low > 0 or d.high < 0):
            found = "higher" if d.value > 0 else "lower"
        judged.append(replace(contrast, adjusted_p=p, found=found))
    return tuple(judged)
