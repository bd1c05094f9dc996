"""``report.html``: one file that opens anywhere, with everything in it."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rcprobe.errors import MissingExtraError, UsageError
from rcprobe.facts import Direction
from rcprobe.report import plain, words
from rcprobe.report.fact_table import STATUSES, FactTable, fact_table
from rcprobe.report.figures import figures, panel_svg
from rcprobe.report.foretold import rows
from rcprobe.report.panels import FigureData, Row
from rcprobe.report.provenance import coverage, settings
from rcprobe.report.repeat import repeat
from rcprobe.report.report import Report
from rcprobe.report.shares import assumption, of_pairs, shares
from rcprobe.report.tables import csv_text
from rcprobe.signatures import Signature
from rcprobe.visible import shortened, visible

FIRST_ROWS = 25  # of the facts, for a reader without JavaScript
FIGURE_ROWS = 200  # of a figure's numbers, under it; the CSV has them all


def to_html(report: Report, path: str | Path) -> None:
    """Write the report as one page: no other file, no network, readable without JavaScript.

    Raises ``MissingExtraError`` without matplotlib and jinja2, ``UsageError`` where the file can't be written.
    """
    text = page(report)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: can't write there ({error.strerror})") from error


def page(report: Report) -> str:
    """The page of ``to_html``."""
    facts = fact_table(report)
    script = part("report.js")
    subject = f"{visible(report.info.get('model', 'a model'))} on {visible(report.dataset.name)}"
    return rendered(
        "report",
        subject=subject,
        introduction=plain.INTRODUCTION,
        answer=plain.answer(report),
        notes=[visible(note) for note in report.notes],
        made=_made(report),
        asked=_asked(report),
        signatures=[_card(s) for s in report.signatures.values()],
        accuracy=_accuracy(report),
        assumption=assumption(report),
        foretold=rows(report),
        figures=[drawn(f) for f in figures(report)],
        facts=facts,
        statuses=STATUSES,
        replicate=report.dataset.replicate,
        first_rows=facts.rows[:FIRST_ROWS],
        facts_json=_embedded(_facts_json(facts)),
        coverage=coverage(report),
        settings=settings(report),
        repeat=repeat(report),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def rendered(name: str, **values: Any) -> str:
    """The template of a page filled in, with our style; texts are escaped unless the template says ``safe``.

    Raises ``MissingExtraError`` without jinja2.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError(f"{name}.html", "jinja2", "report") from error
    environment = Environment(
        loader=FunctionLoader(part), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    environment.filters["cell"] = cell
    return environment.get_template(f"{name}.html.j2").render(style=part("report.css"), **values)


def cell(value: object, kind: str = "number") -> str:
    """A value as the table of facts shows it; the page's script does the same."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        if kind == "share":
            return f"{value * 100:.0f} %"
        if kind == "probability" and value < 0.005:
            return f"{value:.1e}" if value else "0"
        return f"{value:.2f}".replace("-", "−")
    return str(value)


def _figure_cell(value: str | float) -> str:
    """A figure's number under it: whole ones as they are, such as steps, others with three digits that count."""
    if not isinstance(value, float) or math.isnan(value):
        return cell(value)
    return (f"{value:.0f}" if value.is_integer() else f"{value:.3g}").replace("-", "−")


def part(name: str) -> str:
    """A file that pages are made of."""
    return (resources.files("rcprobe.report") / "page" / name).read_text(encoding="utf-8")


def _made(report: Report) -> str:
    """One line on what was run."""
    info, seeds = report.info, len(report.runs)
    train = info.get("train")
    parts = [
        f"{len(report.dataset.facts):,} fact{'s'[: len(report.dataset.facts) != 1]}",
        f"{seeds} seed{'s'[: seeds != 1]}",
        f"trained {train['steps']:,} steps, forward statements only" if train else "not trained here",
    ]
    if info.get("revisions"):
        parts.append(f"revisions: {len(info['revisions'])}")
    if "parameters" in info:
        parts.insert(0, f"{info['parameters']:,} parameters")
    return "; ".join(parts)


def _asked(report: Report) -> dict[str, Any]:
    """The first fact both ways, each statement in parts so that a and b can be marked."""
    fact = report.dataset.facts[0]
    statements: dict[str, Any] = {}
    directions: tuple[Direction, ...] = ("forward", "reverse")
    for direction in directions:
        text, (a0, a1), (b0, b1) = fact.statement(direction)
        cuts = sorted([(a0, a1, "a"), (b0, b1, "b")])
        parts, at = [], 0
        for start, end, name in cuts:
            parts += [("", shortened(text[at:start], 300)), (name, shortened(text[start:end], 300))]
            at = end
        statements[direction] = [*parts, ("", shortened(text[at:], 300))]
    return {"templates": len(fact.forward), "a": shortened(fact.a, 300), "b": shortened(fact.b, 300), **statements}


def _card(signature: Signature) -> dict[str, Any]:
    findings = [
        {
            "label": visible(words.label(f)),
            "said": plain.finding(f, signature),
            "value": words.interval(f),
            "strip": plain.strip(f),
        }
        for f in signature.findings
    ]
    return {
        "title": visible(signature.title),
        "pairing": signature.pairing,
        "question": plain.question(signature),
        "verdict": signature.verdict,
        "meaning": plain.meaning(signature),
        "why": visible(signature.why),
        "strength": plain.strength(signature),
        "findings": findings,
    }


def _accuracy(report: Report) -> list[tuple[str, str, str, str]]:
    return [
        (forward.pairing, visible(forward.reading), words.share(forward), words.share(reverse))
        for forward, reverse in of_pairs(shares(report))
    ]


def drawn(data: FigureData) -> dict[str, Any]:
    """A figure as templates show it: its panels as SVG, its numbers as cells and as CSV."""
    from markupsafe import Markup

    panels = []
    for i, panel in enumerate(data.panels):
        label = f"{data.title}: {' – '.join(panel.title.splitlines())}. {data.says} The numbers follow in a table."
        svg = panel_svg(panel, f"{data.key}-{i}", label)
        panels.append({"title": panel.title.splitlines(), "svg": Markup(svg)})
    rows = data.rows()
    return {
        "data": data,
        "panels": panels,
        "columns": list(rows[0]) if rows else [],
        "rows": [[_figure_cell(value) for value in row.values()] for row in rows[:FIGURE_ROWS]],
        "count": len(rows),
        "csv": _data_uri(rows),
    }


def _data_uri(rows: list[Row]) -> str:
    return "data:text/csv;base64," + base64.b64encode(csv_text(rows).encode()).decode()


def _facts_json(facts: FactTable) -> Mapping[str, Any]:
    columns = [{"key": c.key, "label": c.label, "kind": c.kind} for c in facts.columns]
    return {"columns": columns, "rows": facts.rows}


def _embedded(value: Any) -> str:
    """JSON that no text in it can break out of a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
