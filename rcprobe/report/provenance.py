"""What a report says of itself: what was left out and why, and how it was made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rcprobe.report import words
from rcprobe.report.report import Report
from rcprobe.report.values import finished
from rcprobe.signatures import Signature
from rcprobe.visible import visible


@dataclass(frozen=True)
class Coverage:
    """What was asked and what it lost.

    ``asked`` rows are (pairing, pairs asked, excluded, share); ``excluded`` (pairing, reason, pairs); ``lines`` all
    else that is missing.
    """

    asked: list[tuple[str, int, int, str]]
    excluded: list[tuple[str, str, int]]
    lines: list[str]


def coverage(report: Report) -> Coverage:
    """Pairs asked and excluded at the last step, failed seeds, held-out facts, and shares without a value."""
    runs = finished(report)
    sizes: dict[str, int] = {}
    for measured in runs[0].steps[-1].measured if runs else ():
        sizes[measured.pairing] = max(sizes.get(measured.pairing, 0), len(measured.table.fact))
    asked = []
    for pairing, count in sizes.items():
        lost = sum(report.excluded.get(pairing, {}).values())
        asked.append((pairing, count, lost, f"{lost / count:.0%}" if count else "–"))
    excluded = [
        (visible(p), visible(reason), n) for p, reasons in report.excluded.items() for reason, n in reasons.items()
    ]
    lines = [
        f"seed {run.seed} failed and is in no average: {visible(run.failure)}" for run in report.runs if run.failure
    ]
    lines += [f"seed {run.seed} was never probed" for run in report.runs if not run.steps and not run.failure]
    held = sum(not fact.trained for fact in report.dataset.facts)
    if held:
        lines.append(f"{held:,} facts were held out of training; signatures and figures leave them out")
    for run in runs[:1]:
        lines += [f"{visible(name)} wasn't measured: {visible(why)}" for name, why in run.steps[-1].skipped.items()]
    lines += [f"gradients ({p}): {visible(words.coverage(covered))}" for p, covered in report.coverage.items()]
    lines += [line for signature in report.signatures.values() for line in _undefined(signature)]
    return Coverage(asked, excluded, lines)


def _undefined(signature: Signature) -> list[str]:
    found = [
        (f.condition.label, f.undefined_pairs)
        for f in signature.findings
        if f.undefined_pairs > 0 and not math.isnan(f.undefined_pairs)
    ]
    return [
        f"{visible(signature.title)} ({signature.pairing}), {visible(label)}: {share:.0%} of pairs have no value"
        for label, share in found
    ]


def settings(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections of (name, value): what was run, how it was trained, the seeds' weights, versions."""
    info = {key: value for key, value in report.info.items() if key not in ("train", "versions", "plugins", "seeds")}
    sections = [("Run", _pairs(info))]
    if report.info.get("train"):
        sections.append(("Training", _pairs(report.info["train"])))
    seeds = []
    for run in report.runs:
        steps = f"{len(run.steps)} probed step{'s'[: len(run.steps) != 1]}"
        state = f"failed: {visible(run.failure)}" if run.failure else "finished"
        seeds.append((f"seed {run.seed}", f"{state}, {steps}; weights {visible(run.fingerprint) or 'unknown'}"))
    sections.append(("Seeds, and fingerprints of the weights last probed", seeds))
    versions = {**report.info.get("versions", {}), **report.info.get("plugins", {})}
    sections.append(("Versions", _pairs(versions)))
    return [(title, rows) for title, rows in sections if rows]


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (visible(name).replace("_", " "), _said(value)) for name, value in values.items() if value not in (None, {})
    ]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{visible(k)} = {visible(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(visible(v) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else visible(value)
