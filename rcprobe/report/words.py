"""How numbers and verdicts are said: one place, for every output."""

import math

from rcprobe.signatures import Finding, Signature

QUESTIONS = {
    "storage": "is the evidence→target link stored?",
    "routing": "does attention find the evidence from both sides alike?",
    "dynamics": "do forward training steps also serve the reverse query?",
    "outcome": "does the right answer gain on reverse queries?",
}


def number(value: float, unit: str = "") -> str:
    """A number with two decimals and its unit; a dash where it is undefined."""
    if math.isnan(value):
        return "–"
    text = f"{value:+.2f}" if abs(value) < 99.995 else f"{value:+.1f}"
    return f"{text} {unit}".strip() if unit in ("nats",) else text


def percent(values: list[float]) -> str:
    """The mean of shares over seeds, with the range where it has one."""
    if not values or any(math.isnan(v) for v in values):
        return "–"
    mean, low, high = sum(values) / len(values), min(values), max(values)
    if round(low * 100) == round(high * 100):
        return f"{mean:.0%}"
    return f"{mean:.0%} ({low:.0%}–{high:.0%})".replace("%–", "–")


def interval(finding: Finding) -> str:
    """Estimate and 95 % interval."""
    e = finding.estimate
    if math.isnan(e.low):
        return number(e.value)
    return f"{number(e.value)} [{number(e.low)}, {number(e.high)}]"


def control(finding: Finding) -> str:
    """What the estimate is held against."""
    if finding.condition.statistic == "correlation":
        return f"shuffled {number(finding.control)}"
    if math.isnan(finding.control):
        return "zero"
    return f"control {number(finding.control)}"


def effect(finding: Finding) -> str:
    """The effect size: d_z and P(matched > control), or the correlation itself."""
    if finding.condition.statistic == "correlation":
        return f"r {number(finding.estimate.value)}"
    if finding.condition.statistic == "effect_size":
        return f"d_z {number(finding.estimate.value)}"
    parts = [] if math.isnan(finding.d_z) else [f"d_z {number(finding.d_z)}"]
    if not math.isnan(finding.superior):
        parts.append(f"P {finding.superior:.2f}")
    return ", ".join(parts) or "–"


def verdicts(signatures: list[Signature]) -> str:
    """Which signatures are there, in one sentence."""
    by_verdict: dict[str, list[str]] = {}
    for signature in signatures:
        by_verdict.setdefault(signature.verdict, []).append(signature.title)
    return "; ".join(f"{verdict}: {', '.join(titles)}" for verdict, titles in by_verdict.items())
