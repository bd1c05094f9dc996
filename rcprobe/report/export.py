"""A report's results for papers and spreadsheets: Markdown, LaTeX, CSV."""

import math
import re
from collections.abc import Sequence

from rcprobe.report import words
from rcprobe.report.report import Report
from rcprobe.report.tables import csv_text, results
from rcprobe.visible import visible

HEADINGS = ("", "measured", "estimate", "95 % interval", "margin", "matched / control", "signature's verdict")
PAGE = 50  # lines of \\footnotesize that a page surely holds
LINE, LETTER, GAP = 345, 4.4, 3  # points: a line of the class article, a letter of \\footnotesize, beside a column
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "→": r"$\to$",
    "←": r"$\leftarrow$",
    "δ": r"$\delta$",
    "Δ": r"$\Delta$",
    "ρ": r"$\rho$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "W̃": r"$\tilde W$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: rf"\{character}" for character in "&%$#_{}"},
}
_LATEX_SPECIAL = re.compile("|".join(re.escape(key) for key in sorted(_LATEX, key=len, reverse=True)))


def to_csv(report: Report) -> str:
    """Every result, one row each, under named columns, in full precision."""
    return csv_text(results(report))


def to_markdown(report: Report) -> str:
    """The results as a table in Markdown, with what a reader must know above it."""
    whys = [visible(line) for line in words.reasons(report.signatures.values())]
    parts = [f"# {_markdown(_subject(report))}\n", markdown_list([visible(note) for note in report.notes])]
    parts += [markdown_table(HEADINGS, _rows(report)), markdown_list(whys)]
    return "\n".join(part for part in parts if part)


def markdown_list(texts: Sequence[str]) -> str:
    """Plain texts as a list in Markdown; nothing for none."""
    return "".join(f"- {_markdown(text)}\n" for text in texts)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of plain text as a table in Markdown."""
    lines = ["| " + " | ".join(map(_markdown, row)) + " |" for row in (headings, *rows)]
    lines.insert(1, "|---" * len(headings) + "|")
    return "\n".join(lines) + "\n"


def to_latex(report: Report) -> str:
    """The results as a table, notes and reasons as comments above it, as ``latex_table`` writes them."""
    comments = [*report.notes, *words.reasons(report.signatures.values())]
    return latex_table(_subject(report), HEADINGS, _rows(report), comments)


def latex_table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], comments: Sequence[str]) -> str:
    """Rows of plain text as a ``table`` for the packages booktabs and array, ``comments`` above it; more lines than a
    page holds as a ``longtable``, which breaks and needs the package of that name. A comment names the packages.
    """
    columns, lines = _latex_columns(headings, rows)
    small = r"\footnotesize\setlength{\tabcolsep}{3pt}"
    head = [r"\toprule", " & ".join(map(_latex, headings)) + r" \\", r"\midrule"]
    body = [*(_shielded(" & ".join(map(_latex, row))) + r" \\" for row in rows), r"\bottomrule"]
    titled = rf"\caption{{{_latex(caption)}}}"
    if lines > PAGE:
        head = [r"\begingroup" + small, rf"\begin{{longtable}}{{{columns}}}", titled + r" \\", *head, r"\endhead"]
        body += [r"\end{longtable}", r"\endgroup"]
    else:
        head = [r"\begin{table}", titled, small, rf"\begin{{tabular}}{{{columns}}}", *head]
        body += [r"\end{tabular}", r"\end{table}"]
    needed = f"% packages: booktabs, array{', longtable' * (lines > PAGE)}"
    return "\n".join([*(f"% {visible(comment)}" for comment in comments), needed, *head, *body]) + "\n"


def _latex_columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, int]:
    """The columns' letters, and how many lines the rows take; where a line is too short for all columns, the texts of
    the widest go on below in theirs.
    """
    widths = [LETTER * max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    widest = _widest(widths, max(LINE - 2 * GAP * len(widths), LETTER * len(widths)))
    broken = rf">{{\raggedright\arraybackslash}}p{{{widest / LINE:.2f}\linewidth}}"
    lines = sum(max(math.ceil(LETTER * len(cell) / widest) or 1 for cell in row) for row in rows)
    return "".join(broken if width > widest else "l" for width in widths), lines


def _widest(widths: Sequence[float], room: float) -> float:
    """How wide a column may be: those narrower than an equal share of what is left stay whole."""
    for columns, width in zip(range(len(widths), 0, -1), sorted(widths), strict=True):
        if width > room / columns:
            return room / columns
        room -= width
    return math.inf


def _rows(report: Report) -> list[list[str]]:
    rows = []
    for row in results(report):
        cells = [
            f"{row['what']} ({row['pairing'].replace('_', ' ')})",
            row["measured"],
            f"{_number(row['value'])} {row['unit']}".strip() if row["unit"] else _number(row["value"]),
            "" if math.isnan(row["low"]) else f"{_number(row['low'])} to {_number(row['high'])}",
            _number(row["margin"], ""),
            _against(row["matched"], row["control"]),
            row["verdict"],
        ]
        rows.append(cells)
    return rows


def _against(matched: float, control: float) -> str:
    """Both sides of a contrast in their own unit, as an estimate may be in another."""
    if math.isnan(matched) or math.isnan(control):
        return _number(control, "")
    return f"{_number(matched)} / {_number(control)}"


def _subject(report: Report) -> str:
    info = report.info
    seeds = len(report.runs)
    many = f"{seeds} seed{'s'[: seeds != 1]}"
    return f"{visible(info.get('model', 'a model'))} on {visible(report.dataset.name)}, {many}"


def _number(value: float, undefined: str = "–") -> str:
    return undefined if math.isnan(value) else f"{value:.3g}".replace("-", "−")


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", text)


def _shielded(row: str) -> str:
    """A row that LaTeX takes for no option of the line break before it."""
    return "{}" + row if row.startswith(("[", "*")) else row


def _latex(text: str) -> str:
    return _LATEX_SPECIAL.sub(lambda found: _LATEX[found.group()], text)
