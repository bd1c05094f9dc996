"""How numbers and verdicts are said: one place, for every output."""

import math
from collections.abc import Iterable, Mapping, Sequence

from rcprobe.report.shares import Share
from rcprobe.signatures import Finding, Signature

QUESTIONS = {
    "storage": "evidence→answer link stored?",
    "routing": "attention finds evidence alike from both sides?",
    "dynamics": "forward steps serve the reverse query?",
    "outcome": "right answer gains when asked in reverse?",
}
HUGE = 999  # an effect size beyond it is no number to read
CHECK = "a causal check, not one of the signatures; its p is not corrected with theirs"


def number(value: float) -> str:
    """A number with two decimals; a dash where it is undefined."""
    if math.isnan(value):
        return "–"
    said = f"{value:.2f}"
    return "0.00" if said == "-0.00" else said.replace("-", "−")


def percent(values: list[float]) -> str:
    """The mean of shares over seeds, with the range where it has one."""
    if not values or any(math.isnan(v) for v in values):
        return "–"
    mean, low, high = sum(values) / len(values), min(values), max(values)
    if round(low * 100) == round(high * 100):
        return f"{mean:.0%}"
    return f"{mean:.0%} ({low:.0%}–{high:.0%})".replace("%–", "–")


def share(found: Share) -> str:
    """A share with the range over seeds, and its interval in square brackets; a dash where a seed has none."""
    said = percent(list(found.seeds))
    return said if said == "–" else said + bracket(found.low, found.high)


def bracket(low: float, high: float) -> str:
    """An interval of a share; nothing where there is none."""
    return "" if math.isnan(low) else f" [{low:.0%}, {high:.0%}]"


def interval(finding: Finding) -> str:
    """Estimate and 95 % interval; an effect size says that it is one."""
    e = finding.estimate
    unit = "d_z " if finding.condition.statistic == "effect_size" else ""
    return f"{unit}{number(e.value)}" + ("" if math.isnan(e.low) else f" [{number(e.low)}, {number(e.high)}]")


def condition(finding: Finding) -> str:
    """What is measured and the margin it must pass; what isn't judged is merely shown beside."""
    asked = finding.condition
    return f"{label(finding)} > {asked.margin:g}" if asked.judged else label(finding)


def label(finding: Finding) -> str:
    """What is measured; what isn't judged is merely shown beside."""
    return finding.condition.label if finding.condition.judged else f"beside it: {finding.condition.label}"


def titled(signature: Signature) -> str:
    """A signature's title; a causal check says that it is none."""
    return f"{signature.title}, causal check" if signature.check else signature.title


def reasons(signatures: Iterable[Signature]) -> list[str]:
    """Each reason behind a verdict, said once of all signatures that share it, which are named as in the tables."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in signatures:
        if one.why:
            found.setdefault((one.verdict, one.why), []).append(f"{one.title} ({one.pairing})")
    return [f"{listed(names)}: {verdict}, {why}" for (verdict, why), names in found.items()]


def checks(signatures: Iterable[Signature]) -> list[str]:
    """That a causal check is none of the signatures."""
    return [f"{one.title} ({one.pairing}): {CHECK}" for one in signatures if one.check]


def control(finding: Finding) -> str:
    """What the estimate is held against; beside an effect size, both sides in their own unit."""
    if finding.condition.statistic == "correlation":
        return f"shuffled facts {number(finding.control)}"
    own = f"{number(finding.matched)}, " if finding.condition.statistic == "effect_size" else ""
    return own + ("zero" if math.isnan(finding.control) else f"control {number(finding.control)}")


def effect(finding: Finding) -> str:
    """The effect sizes that the estimate isn't: d_z and how often a fact beats its control, or a correlation."""
    if finding.condition.statistic == "correlation":
        return f"r {number(finding.estimate.value)}"
    known = math.isnan(finding.d_z) or finding.condition.statistic == "effect_size"
    beyond = abs(finding.d_z) > HUGE  # all facts are alike but for rounding, as where a value holds by construction
    parts = [] if known else [f"|d_z| > {HUGE}" if beyond else f"d_z {number(finding.d_z)}"]
    if not math.isnan(finding.superior):
        parts.append(f"wins {finding.superior:.2f}")
    return ", ".join(parts) or "–"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def coverage(covered: Mapping[str, Mapping[str, int]]) -> str:
    """Of how many parameters gradients were read and how, what was left out and why, and what is undefined."""
    read = ", ".join(f"{count} by {rule}" for rule, count in covered["read"].items())
    said = [f"{sum(covered['read'].values())} parameters read ({read})"]
    said += [f"{count} left out: {reason}" for reason, count in covered["left out"].items()]
    said += [f"{part} vanishes in {count} pairs: no cosine" for part, count in covered["undefined"].items()]
    return "; ".join(said)
