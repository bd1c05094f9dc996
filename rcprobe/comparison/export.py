"""A comparison for papers, spreadsheets and other programs: Markdown, LaTeX, rows and JSON."""

import math
from typing import TYPE_CHECKING, Any

from rcprobe.comparison import grids, said
from rcprobe.comparison.contrasts import Contrast
from rcprobe.report.export import markdown_list, markdown_table
from rcprobe.report.sheet import Sheet
from rcprobe.report.sheet import to_latex as sheet_latex
from rcprobe.report.tables import signature_rows

if TYPE_CHECKING:
    from rcprobe.comparison.comparison import Comparison

TITLE = "Runs compared"


def sheet(found: "Comparison", spans: grids.Spans) -> Sheet:
    """Answer, tables and notes, as terminals and LaTeX print them."""
    tables = [
        grids.accuracy(found, spans),
        grids.signatures(found),
        grids.differences(found),
        grids.refusals(found),
        grids.runs(found),
        grids.settings(found),
    ]
    kept = tuple(table for table in tables if table.rows)
    return Sheet("compare", TITLE, tuple(said.answer(found)), kept, (), tuple(said.notes(found)))


def to_markdown(found: "Comparison") -> str:
    """The tables in Markdown."""
    made = sheet(found, "beside")
    parts = [f"# {made.title}\n", markdown_list([*made.answer, *made.notes])]
    for grid in made.grids:
        parts += [f"## {grid.title}\n", markdown_table(grid.headings, grid.rows)]
    return "\n".join(part for part in parts if part)


def to_latex(found: "Comparison") -> str:
    """The tables, each naming its packages; what isn't compared is said in comments: no paper has tables of reasons."""
    made = sheet(found, "none")
    reasons = grids.refusals(found)
    kept = tuple(grid for grid in made.grids if grid.title != reasons.title)
    why = tuple(f"not compared: {', '.join(row)}" for row in reasons.rows)
    return sheet_latex(Sheet(made.key, made.title, made.answer, kept, (), (*made.notes, *why)))


def rows(found: "Comparison") -> list[dict[str, Any]]:
    """See ``Comparison.rows``."""
    made = [*_accuracies(found), *_signatures(found), *(_difference(c) for c in found.contrasts)]
    columns = dict.fromkeys(name for row in made for name in row)
    return [{name: row.get(name, "") for name in columns} for row in made]


def as_dict(found: "Comparison") -> dict[str, Any]:
    """See ``Comparison.to_dict``."""
    datasets = {run.name: group.label for group in found.groups for run in group.runs}
    return {
        "answer": said.answer(found),
        "notes": said.notes(found),
        "runs": [
            {"run": run.name, "model": run.model, "dataset": datasets[run.name], "info": dict(run.report.info)}
            for run in found.runs
        ],
        "results": rows(found),
        "not_compared": [
            {
                "dataset": r.dataset,
                "what": r.measure.label,
                "run": r.a,
                "against": r.b,
                "why": r.why,
                "lies_with": r.run,
            }
            for r in found.refusals
        ],
    }


def _accuracies(found: "Comparison") -> list[dict[str, Any]]:
    made = []
    for line in found.matrix:
        for run, both in line.cells.items():
            for way, point in zip(("forward", "reverse"), both, strict=True):
                start = {"kind": "accuracy", "dataset": line.dataset, "run": run, "against": "", "what": "accuracy"}
                held = {"pairing": line.pairing, "measured": f"{way}, {line.reading}"}
                made.append(
                    {**start, **held, "value": point.value, "low": point.low, "high": point.high, "unit": "share"}
                )
    return made


def _signatures(found: "Comparison") -> list[dict[str, Any]]:
    return [
        {"kind": "signature", "dataset": group.label, "run": run.name, "against": "", **row}
        for group in found.groups
        for run in group.runs
        for row in signature_rows(run.report)
    ]


def _difference(contrast: Contrast) -> dict[str, Any]:
    d, measure = contrast.difference, contrast.measure
    few = math.isnan(contrast.adjusted_p)
    return {
        "kind": "difference",
        "dataset": contrast.dataset,
        "run": contrast.a,
        "against": contrast.b,
        "what": measure.label,
        "pairing": measure.pairing,
        "measured": measure.column or (measure.condition.label if measure.condition else ""),
        "value": d.value,
        "low": d.low,
        "high": d.high,
        "unit": measure.unit,
        "p": math.nan if few else d.p,
        "p_holm": contrast.adjusted_p,
        "n": d.n,
        "replicate": d.unit,
        "verdict": contrast.found,
        "why": contrast.why,
        "method": d.method,
    }
