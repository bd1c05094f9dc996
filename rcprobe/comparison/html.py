"""A comparison as one page: no other file, no network, no script."""

from typing import TYPE_CHECKING, Any

from rcprobe.comparison import figures, grids, said
from rcprobe.comparison.runs import Group
from rcprobe.report import plain, words
from rcprobe.report.html import drawn, rendered
from rcprobe.report.panels import FigureData
from rcprobe.signatures import Signature
from rcprobe.visible import visible

if TYPE_CHECKING:
    from rcprobe.comparison.comparison import Comparison


def page(found: "Comparison") -> str:
    """The page of ``Comparison.to_html``. Raises ``MissingExtraError`` without matplotlib and jinja2."""
    groups = found.groups
    names, lines = grids.verdicts(found)
    return rendered(
        "compare",
        title=_title([run.name for run in found.runs]),
        made=_made(found),
        answer=said.answer(found),
        notes=said.notes(found),
        accuracy=grids.accuracy(found, "below"),
        asked=[(group.label, said.method(group), len(group.runs)) for group in groups],
        names=[_heading(found, name) for name in names],
        verdicts=[(dataset, run, [_short(s) for s in own]) for dataset, run, own in lines],
        meanings=_meanings(found),
        signatures=grids.signatures(found),
        signature_figure=[drawn(figures.signatures(groups))],
        differences=grids.differences(found),
        apart=[c.found for c in found.contrasts],
        difference_figure=[drawn(figures.differences(groups, found.contrasts))] if found.contrasts else [],
        refusals=grids.refusals(found),
        multiples=[drawn(data) for data in _multiples(found)],
        runs=grids.runs(found),
        differing=grids.settings(found),
    )


def _multiples(found: "Comparison") -> list[FigureData]:
    groups: tuple[Group, ...] = found.groups
    made = [figures.accuracy(groups, found.matrix), figures.probabilities(groups)]
    return [*made, *figures.cosines(groups), figures.heads(groups)]


def _title(names: list[str]) -> str:
    """The runs' names, where a heading holds them."""
    said = words.listed(names)
    return f"{said if len(said) <= 60 else f'{len(names)} runs'} compared"


def _made(found: "Comparison") -> str:
    return "; ".join(f"{group.label}: {', '.join(run.name for run in group.runs)}" for group in found.groups)


def _heading(found: "Comparison", name: str) -> tuple[str, str]:
    """A signature's title, and its pairing."""
    one = next(run.report.signatures[name] for run in found.runs if name in run.report.signatures)
    return visible(words.titled(one)), one.pairing.replace("_", " ")


def _short(signature: Signature | None) -> dict[str, Any] | None:
    """A signature in a cell: its verdict, and its first condition's estimate with interval."""
    if signature is None:
        return None
    first = next(iter(signature.findings), None)
    known = first is not None and first.estimate.value == first.estimate.value
    return {
        "verdict": signature.verdict,
        "estimate": words.interval(first) if first is not None and known else "",
        "why": visible(signature.why),
    }


def _meanings(found: "Comparison") -> list[tuple[str, str]]:
    """The verdicts that were given, and what each means."""
    given = {signature.verdict for run in found.runs for signature in run.report.signatures.values()}
    return [(verdict, plain.VERDICTS[verdict]) for verdict in plain.ORDER if verdict in given]
