"""What the demo prints: one table, what its rows mean, and a sentence of answer."""

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from rcprobe.report import Report, words
from rcprobe.signatures import Signature

LETTERS, EVERYTHING, WRITTEN = "52 letters", "full vocabulary", "greedy to the end"
VERDICTS = ("present", "absent", "inconclusive", "undefined", "not trained")


def print_demo(reports: Mapping[str, Report], console: Console | None = None) -> None:
    """Print the demo's table and answer."""
    console = console or Console(highlight=False, emoji=False)
    some = next(iter(reports.values()))
    console.print(
        f"Three models learned 26 letter pairs for {some.info['train']['steps']} steps, {len(some.runs)} seeds each, "
        "from sequences such as 0a00A0: lower case left of upper case, never the other way. Forward asks for a letter "
        "in that order; reverse asks for the lower-case letter with its capital on the left, an order never seen.",
        soft_wrap=True,
        markup=False,
    )
    console.print(table(reports))
    for line in legend(reports):
        console.print(line, soft_wrap=True, markup=False)
    console.print()
    console.print(answer(reports), style="bold", soft_wrap=True, markup=False)


def table(reports: Mapping[str, Report]) -> Table:
    """A column a model; rows of accuracy, probability, and each signature with interval, control and verdict."""
    shown = Table(pad_edge=False, show_lines=True)
    shown.add_column("mean (range over seeds)", max_width=27, overflow="fold")
    for label in reports:
        shown.add_column(label.replace(", ", "\n"), min_width=16, overflow="fold")
    for reading in (LETTERS, EVERYTHING, WRITTEN):
        shown.add_row(f"accuracy, {reading}", *(_both_ways(report, reading) for report in reports.values()))
    shown.add_row(
        "P(right letter | a letter)",
        *(_both(_probability(r, 0), _probability(r, 1)) for r in reports.values()),
    )
    for name in next(iter(reports.values())).signatures:
        signatures = [report.signatures[name] for report in reports.values()]
        title = signatures[0].title
        question = words.QUESTIONS.get(title, "")
        if " (" in name:
            question = "the same, forward asking the other way round, as a causal model must be"
        shown.add_row(f"{title}: {question}", *(_signature(s) for s in signatures))
    return shown


def legend(reports: Mapping[str, Report]) -> list[str]:
    """What must be known to read the table, and everything that is not as it should be."""
    lines = [
        "Brackets hold the 95 % interval over seeds. "
        "Controls: storage and outcome, other letters in the answer's place; "
        "routing, facts shuffled between directions; dynamics, the same answer asked from another letter. "
        "Storage grows in logits. d_z: effect in standard deviations; wins: how often a fact beats its control.",
        f"{LETTERS}: the answer competes with the other letters; {EVERYTHING}: with the placeholder 0 too. "
        f"{WRITTEN}: whether a causal model writes the answer anywhere after the letter it is given.",
        "identity: true by construction, trained or not, and so no evidence of learning.",
    ]
    for label, report in reports.items():
        judged = (s for s in report.signatures.values() if s.verdict != "identity")
        lines.extend(f"{label}, {reason}." for reason in words.reasons(judged))
        lines.extend(f"{label}: {note}." for note in report.notes)
    return lines


def answer(reports: Mapping[str, Report]) -> str:
    """The finding, from the numbers alone."""
    said = [f"{label}: right in reverse {words.percent(_accuracy(r, LETTERS, 1))}" for label, r in reports.items()]
    parts = [f"Answer ({LETTERS}; guessing gives {1 / 52:.0%}). {'; '.join(said)}."]
    for label, report in reports.items():
        signatures = [s for name, s in report.signatures.items() if " (" not in name]
        found = [
            f"{words.listed([s.title for s in signatures if s.verdict == verdict])} {verdict}"
            for verdict in VERDICTS
            if any(s.verdict == verdict for s in signatures)
        ]
        identities = [s.title for s in signatures if s.verdict == "identity"]
        found += [f"{words.listed(identities)} forced by the architecture"] * bool(identities)
        parts.append(f"{label}: {', '.join(found)}.")
    return " ".join(parts)


def _both(forward: list[float], reverse: list[float]) -> str:
    return f"forward {words.percent(forward)}\nreverse {words.percent(reverse)}"


def _both_ways(report: Report, reading: str) -> str:
    if not _accuracy(report, reading, 0):
        return "–"
    return _both(_accuracy(report, reading, 0), _accuracy(report, reading, 1))


def _accuracy(report: Report, reading: str, way: int) -> list[float]:
    return [seed[way] for seed in report.accuracy.get("swapped", {}).get(reading, ())]


def _probability(report: Report, way: int) -> list[float]:
    frame = report.frame("reverse_probability")
    last = frame[frame.step == frame.step.max()]
    probability = last[f"{('forward', 'reverse')[way]}, {LETTERS}"].map(math.exp)
    return list(probability.groupby(last.seed).mean())


def _signature(signature: Signature) -> str:
    if not signature.findings:
        return signature.verdict
    finding = signature.findings[0]
    return f"{signature.verdict}\n{words.interval(finding)}\n{words.control(finding)}\n{words.effect(finding)}"
