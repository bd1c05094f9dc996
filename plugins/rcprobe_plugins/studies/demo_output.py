"""What the demo prints: one table, what its rows mean, and a sentence of answer."""

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from rcprobe.report import Report, words
from rcprobe.signatures import Signature

LETTERS, EVERYTHING = "26 letters", "full vocabulary"


def print_demo(reports: Mapping[str, Report], console: Console | None = None) -> None:
    """Print the demo's table and answer."""
    console = console or Console(highlight=False)
    some = next(iter(reports.values()))
    console.print(
        f"Each model saw 26 pairs such as 0a00A0 – lower case left of upper case, never the other way – for "
        f"{some.info['train']['steps']} steps, {len(some.runs)} seeds. Then it was asked both ways.",
        soft_wrap=True,
    )
    console.print(table(reports))
    for line in legend(reports):
        console.print(line, soft_wrap=True)
    console.print()
    console.print(answer(reports), style="bold", soft_wrap=True)


def table(reports: Mapping[str, Report]) -> Table:
    """A column a model; rows of accuracy, probability, and each signature with interval, control and verdict."""
    shown = Table(show_lines=False, pad_edge=False)
    shown.add_column("")
    for label in reports:
        shown.add_column(label.replace(", ", "\n"))
    for way, name in ((0, "forward"), (1, "reverse")):
        for reading, meaning in ((LETTERS, "among letters of its case"), (EVERYTHING, "among all tokens")):
            shown.add_row(f"{name} accuracy, {meaning}", *(_accuracy(r, reading, way) for r in reports.values()))
    for way in ("forward", "reverse"):
        shown.add_row(f"P(right letter | a letter), {way}", *(_probability(r, way) for r in reports.values()))
    shown.add_section()
    for name in some_signatures(reports):
        signatures = [report.signatures[name] for report in reports.values()]
        title = f"{signatures[0].title}: {words.QUESTIONS.get(signatures[0].title, '')}"
        if " (" in name:
            title = f"{signatures[0].title}, forward asked from a"
        shown.add_row(title, *(_signature(s) for s in signatures))
    return shown


def some_signatures(reports: Mapping[str, Report]) -> list[str]:
    """The signatures in the order of the table."""
    return list(next(iter(reports.values())).signatures)


def legend(reports: Mapping[str, Report]) -> list[str]:
    """What must be known to read the table, and everything that is not as it should be."""
    lines = [
        "[…] 95 % interval over seeds. ‘against’: the same with other facts (storage, outcome), with facts shuffled "
        "between directions (routing), or with the same answer asked from other evidence (dynamics).",
        "identity: true by construction, trained or not, so no evidence of learning.",
    ]
    for label, report in reports.items():
        for signature in report.signatures.values():
            if signature.verdict == "undefined":
                lines.append(f"{label}, {signature.title} ({signature.pairing}): undefined, {signature.why}")
        lines.extend(f"{label}: {note}" for note in report.notes)
    return lines


def answer(reports: Mapping[str, Report]) -> str:
    """The finding in a sentence for each model, from the numbers alone."""
    parts = []
    for label, report in reports.items():
        accuracy = [seed[1] for seed in report.accuracy["swapped"][LETTERS]]
        signatures = [s for name, s in report.signatures.items() if " (" not in name]
        parts.append(f"{label}: asked backwards it is right {words.percent(accuracy)} of the time ({words.verdicts(signatures)}).")
    return "Answer. " + " ".join(parts)


def _accuracy(report: Report, reading: str, way: int) -> str:
    return words.percent([seed[way] for seed in report.accuracy["swapped"][reading]])


def _probability(report: Report, way: str) -> str:
    frame = report.frame("reverse_probability")
    last = frame[frame.step == frame.step.max()]
    per_seed = last[f"{way}, 52 letters"].map(math.exp).groupby(last.seed).mean()
    return words.percent(list(per_seed))


def _signature(signature: Signature) -> str:
    if not signature.findings:
        return signature.verdict
    finding = signature.findings[0]
    return f"{signature.verdict}\n{words.interval(finding)} against {words.control(finding)}\n{words.effect(finding)}"
