"""A report on a terminal."""

from textwrap import wrap

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rcprobe.report import words
from rcprobe.report.foretold import lines
from rcprobe.report.report import Report
from rcprobe.report.shares import assumption, of_pairs, shares
from rcprobe.visible import visible

TITLE = 22  # characters of a signature's title that stand in one line


def print_report(report: Report, console: Console | None = None) -> None:
    """Print what was asked, accuracy both ways, every signature with interval, control, effect and verdict."""
    console = console or Console(highlight=False, emoji=False)
    info = report.info
    seeds = len(report.runs)
    as_found = f"revisions: {len(info['revisions'])}" if info.get("revisions") else "as it is"
    trained = f"trained {info['train']['steps']} steps forward only" if info["train"] else as_found
    subject = f"{info['model']} on {info['dataset']}: {info['facts']} facts"
    _say(console, f"{subject}, {seeds} seed{'s'[: seeds != 1]}, {trained}")
    console.print(accuracy_table(report))
    signatures = report.signatures.values()
    if signatures:
        console.print(signature_table(report))
    for line in (*words.checks(signatures), *words.reasons(signatures), *lines(report)):
        _say(console, line)
    for pairing, reasons in report.excluded.items():
        for reason, count in reasons.items():
            _say(console, f"excluded ({pairing}): {count} pairs, {reason}")
    for pairing, covered in report.coverage.items():
        _say(console, f"gradients ({pairing}): {words.coverage(covered)}")
    for note in report.notes:
        _say(console, f"note: {note}")


def accuracy_table(report: Report) -> Table:
    """Accuracy both ways by pairing and reading: mean, the range over seeds, and the interval over facts."""
    over = "[95 % interval]" if report.dataset.replicate == "fact" else "range over seeds"
    table = Table(title=f"Accuracy (mean, {over})", title_justify="left", caption_justify="left")
    for column in ("pairing", "answers compared with", "forward", "reverse"):
        table.add_column(column, justify="right" if column in ("forward", "reverse") else "left", overflow="fold")
    for forward, reverse in of_pairs(shares(report)):
        table.add_row(_cell(forward.pairing), _cell(forward.reading), words.share(forward), words.share(reverse))
    table.caption = assumption(report)
    return table


def signature_table(report: Report) -> Table:
    """One row a condition of each signature."""
    table = Table(title="Signatures (estimate, 95 % interval)", title_justify="left")
    for column in ("signature", "measured", "estimate", "against", "effect", "verdict"):
        table.add_column(column, overflow="fold", no_wrap=column in ("signature", "verdict"))
    for signature in report.signatures.values():
        title = escape("\n".join([*wrap(visible(words.titled(signature)), TITLE), f"({signature.pairing})"]))
        if not signature.findings:
            table.add_row(title, "–", "–", "–", "–", _cell(signature.verdict))
        for i, finding in enumerate(signature.findings):
            table.add_row(
                title if i == 0 else "",
                _cell(words.condition(finding)),
                words.interval(finding),
                words.control(finding),
                words.effect(finding),
                _cell(signature.verdict) if i == 0 else "",
            )
    return table


def _say(console: Console, line: str) -> None:
    """A line as it is, whatever the names in it hold: neither markup nor what steers a terminal."""
    console.print(visible(line), soft_wrap=True, markup=False)


def _cell(text: str) -> str:
    """The same of a text in a table."""
    return escape(visible(text))
