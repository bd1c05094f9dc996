"""A comparison in words: the answer, and what a reader must know first."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rcprobe.comparison.contrasts import Contrast
from rcprobe.comparison.runs import Group, Run
from rcprobe.report import words
from rcprobe.visible import visible

if TYPE_CHECKING:
    from rcprobe.comparison.comparison import Comparison

SHOWN = 6  # runs and differences that a sentence still holds
METHODS = {
    "seed": "seeds are the replicates (Welch’s t)",
    "fact": "facts are the replicates (both runs asked the same ones, so they are paired)",
}


def answer(found: "Comparison") -> list[str]:
    """Accuracy in reverse by dataset, and which differences hold."""
    return [line for group in found.groups for line in _group(found, group)] + [_tally(found)]


def notes(found: "Comparison") -> list[str]:
    """What changes how everything else is read."""
    said = _scope(found)
    for key, values in _versions(found.runs).items():
        if len(values) > 1:
            several = "; ".join(f"{visible(v)}: {', '.join(names)}" for v, names in values.items())
            said.append(f"{visible(key)} isn't one version ({several}); what a metric measures may have changed")
    weights: dict[str, list[str]] = {}
    for run in found.runs:
        weights.setdefault(" ".join(seed.fingerprint for seed in run.report.runs), []).append(run.name)
    said += [
        f"{words.listed(names)} probed the same weights" for key, names in weights.items() if key and len(names) > 1
    ]
    told: dict[str, list[str]] = {}
    for run in found.runs:
        for note in run.report.notes:
            told.setdefault(visible(note), []).append(run.name)
    return said + [f"{', '.join(names)}: {note}" for note, names in told.items()]


def method(group: Group) -> str:
    """What repeats the experiment in a dataset."""
    return METHODS[group.replicate]


def signed(value: float, unit: str) -> str:
    """A difference with its sign; of shares in percentage points."""
    if math.isnan(value):
        return "–"
    if unit == "share":
        number = f"{100 * value:+.1f}"
        return ("0.0" if number in ("+0.0", "-0.0") else number).replace("-", "−")
    said = words.number(value)
    return said if said.startswith("−") or said in ("–", "0.00") else f"+{said}"


def span(low: float, high: float, unit: str) -> str:
    """An interval of a difference in brackets; empty where it is undefined."""
    return "" if math.isnan(low) else f"[{signed(low, unit)}, {signed(high, unit)}]"


def p_value(p: float) -> str:
    """A p value as papers print it."""
    return "–" if math.isnan(p) else "< .001" if p < 0.001 else f"{min(p, 1):.3f}".removeprefix("0")


def _group(found: "Comparison", group: Group) -> Iterable[str]:
    lines = [line for line in found.matrix if line.dataset == group.label]
    if not lines:
        return
    line = lines[0]
    known = {name: both for name, both in line.cells.items() if not math.isnan(both[1].value)}
    order = sorted(known, key=lambda name: -known[name][1].value)
    said = [f"{name} {known[name][1].value:.0%} (forward {_share(known[name][0].value)})" for name in order]
    middle = len(said) - SHOWN
    said = [*said[: SHOWN // 2], f"{middle} in between", *said[-SHOWN // 2 :]] if middle > 0 else said
    if said:
        how = f"rivals: {line.reading}" if line.metric == "accuracy" else line.reading
        yield f"{group.label} ({how}). Right in reverse: {', '.join(said)}."
    asked = (group.label, line.metric, f"reverse, {line.key}")
    held = [c for c in found.contrasts if (c.dataset, c.measure.name, c.measure.column) == asked]
    apart = [c for c in held if c.found in ("higher", "lower")]
    more = [_more(c) for c in apart[:SHOWN]] + [f"{len(apart) - SHOWN} more such differences"] * (len(apart) > SHOWN)
    if more:
        yield f"On {group.label}, {'; '.join(more)}."


def _more(contrast: Contrast) -> str:
    d = contrast.difference
    high, low = (contrast.a, contrast.b) if d.value > 0 else (contrast.b, contrast.a)
    least, most = sorted((abs(d.low), abs(d.high)))
    size = f"{100 * abs(d.value):.1f} points [{100 * least:.1f}, {100 * most:.1f}]"
    return f"{high} is right in reverse more often than {low}, by {size}"


def _tally(found: "Comparison") -> str:
    tested = [c for c in found.contrasts if c.found != "too few"]
    few, apart = len(found.contrasts) - len(tested), sum(c.found != "not told apart" for c in tested)
    if not found.contrasts:
        return "No two runs can be compared; what is said of the runs says why."
    rest = "rests" if few == 1 else "rest"
    if not tested:
        return f"No difference could be tested: {'it' if few == 1 else f'all {few}'} {rest} on too few replicates."
    holds = f"{apart} hold{'s' * (apart == 1)} after Holm’s correction over all of them"
    said = f"Of {len(tested)} difference{'s'[: len(tested) != 1]} between two runs, {holds}."
    return said + (f" {few} more {rest} on too few replicates to say." if few else "")


def _scope(found: "Comparison") -> list[str]:
    """What is compared with what, and how far that reaches."""
    said = []
    if len(found.groups) > 1:
        parts = [f"{group.label} ({', '.join(run.name for run in group.runs)})" for group in found.groups]
        said.append(f"runs that weren't asked the same stand side by side but aren't compared: {'; '.join(parts)}")
    names = Counter(group.runs[0].report.dataset.name for group in found.groups)
    said += [
        f"{visible(name)} was asked in {ways} ways, with other facts or read otherwise: compared only inside each"
        for name, ways in names.items()
        if ways > 1
    ]
    by_fact = [group for group in found.groups if group.replicate == "fact" and len(group.runs) > 1]
    if by_fact:
        several = any(len(run.report.runs) > 1 for group in by_fact for run in group.runs)
        said.append(
            f"{'; '.join(group.label for group in by_fact)}: intervals and differences are over facts"
            f"{', seeds averaged' if several else ''}; they speak of these weights, not of another training's"
        )
    return said


def _versions(runs: Iterable[Run]) -> Mapping[str, dict[str, list[str]]]:
    """Package → version → runs, of rcprobe and the plugins."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        info = run.report.info
        own = {"rcprobe": info.get("versions", {}).get("rcprobe"), **info.get("plugins", {})}
        for package, version in own.items():
            if version is not None:
                found.setdefault(package, {}).setdefault(str(version), []).append(run.name)
    return found


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"
