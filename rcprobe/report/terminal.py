"""A report on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rcprobe.report import words
from rcprobe.report.foretold import lines
from rcprobe.report.report import Report
from rcprobe.report.shares import assumption, of_pairs, shares


def print_report(report: Report, console: Console | None = None) -> None:
    """Print what was asked, accuracy both ways, every signature with interval, control, effect and verdict."""
    console = console or Console(highlight=False)
    info = report.info
    seeds = len(report.runs)
    as_found = f"revisions: {len(info['revisions'])}" if info.get("revisions") else "as it is"
    trained = f"trained {info['train']['steps']} steps forward only" if info["train"] else as_found
    console.print(
        f"{info['model']} on {info['dataset']}: {info['facts']} facts, {seeds} seed{'s'[: seeds != 1]}, {trained}"
    )
    console.print(accuracy_table(report))
    console.print(signature_table(report))
    for name, signature in report.signatures.items():
        if signature.check:
            console.print(f"{name}: {words.CHECK}", soft_wrap=True, markup=False)
        if signature.why:
            console.print(f"{name}: {signature.verdict}, {signature.why}", soft_wrap=True, markup=False)
    for line in lines(report):
        console.print(line, soft_wrap=True, markup=False)
    for pairing, reasons in report.excluded.items():
        for reason, count in reasons.items():
            console.print(f"excluded ({pairing}): {count} pairs, {reason}", soft_wrap=True, markup=False)
    for pairing, covered in report.coverage.items():
        console.print(f"gradients ({pairing}): {words.coverage(covered)}", soft_wrap=True, markup=False)
    for note in report.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)


def accuracy_table(report: Report) -> Table:
    """Accuracy both ways by pairing and reading: mean, the range over seeds, and the interval over facts."""
    over = "[95 % interval]" if report.dataset.replicate == "fact" else "range over seeds"
    table = Table(title=f"Accuracy (mean, {over})", title_justify="left", caption_justify="left")
    for column in ("pairing", "answers compared with", "forward", "reverse"):
        table.add_column(column, justify="right" if column in ("forward", "reverse") else "left", overflow="fold")
    for forward, reverse in of_pairs(shares(report)):
        table.add_row(forward.pairing, forward.reading, words.share(forward), words.share(reverse))
    table.caption = assumption(report)
    return table


def signature_table(report: Report) -> Table:
    """One row a condition of each signature."""
    table = Table(title="Signatures (estimate, 95 % interval)", title_justify="left")
    for column in ("signature", "measured", "estimate", "against", "effect", "verdict"):
        table.add_column(column, overflow="fold")
    for signature in report.signatures.values():
        title = f"{words.titled(signature)}\n({signature.pairing})"
        if not signature.findings:
            table.add_row(title, "–", "–", "–", "–", signature.verdict)
        for i, finding in enumerate(signature.findings):
            table.add_row(
                title if i == 0 else "",
                escape(words.condition(finding)),
                words.interval(finding),
                words.control(finding),
                words.effect(finding),
                signature.verdict if i == 0 else "",
            )
    return table
