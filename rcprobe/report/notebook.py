"""A report as a notebook shows it: what was asked, accuracy, and every signature with its verdict."""

from rcprobe.markup import Markup, element, quiet, table
from rcprobe.report import words
from rcprobe.report.report import Report
from rcprobe.report.shares import assumption, of_pairs, shares

COLOURS = {"present": "rgba(40,160,80,.25)", "absent": "rgba(210,60,40,.22)", "identity": "rgba(120,90,200,.22)"}


def report_html(report: Report) -> Markup:
    """The report's answer in two tables; the page of ``to_html`` has the rest."""
    info, seeds = report.info, len(report.runs)
    train = info.get("train")
    trained = f"trained {train['steps']} steps forward only" if train else "as it is"
    subject = f"{info.get('model', 'a model')} on {report.dataset.name}"
    asked = f"{subject}: {len(report.dataset.facts)} facts, {seeds} seed{'s'[: seeds != 1]}, {trained}"
    accuracy = [
        (forward.pairing, forward.reading, words.share(forward), words.share(reverse))
        for forward, reverse in of_pairs(shares(report))
    ]
    parts: list[object] = [element("div", element("b", asked))]
    if accuracy:
        parts.append(table(("pairing", "answers compared with", "forward", "reverse"), accuracy))
        parts.append(element("div", quiet(assumption(report))))
    if report.signatures:
        headings = ("signature", "measured", "estimate", "against", "effect", "verdict")
        parts.append(table(headings, _signatures(report)))
    signatures = report.signatures.values()
    said = [*words.checks(signatures), *words.reasons(signatures), *(f"note: {note}" for note in report.notes)]
    parts += [element("div", quiet(line)) for line in said]
    return element("div", *parts)


def _signatures(report: Report) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for signature in report.signatures.values():
        colour = COLOURS.get(signature.verdict, "rgba(128,128,128,.2)")
        style = f"white-space:nowrap;padding:.1em .4em;border-radius:.25em;background:{colour}"
        verdict = element("span", signature.verdict, style=style)
        title = element("span", element("b", words.titled(signature)), " ", quiet(signature.pairing))
        if not signature.findings:
            rows.append((title, "–", "–", "–", "–", verdict))
        for i, finding in enumerate(signature.findings):
            first = i == 0
            numbers = (words.interval(finding), words.control(finding), words.effect(finding))
            rows.append((title if first else "", words.condition(finding), *numbers, verdict if first else ""))
    return rows
