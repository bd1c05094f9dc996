"""Results as rows: one for each condition of each signature, and for each accuracy; and rows as CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rcprobe.report import words
from rcprobe.report.report import Report
from rcprobe.report.shares import shares
from rcprobe.visible import visible


def results(report: Report) -> list[dict[str, Any]]:
    """Each condition of each signature, then accuracy by pairing, reading and direction.

    Numbers are floats, NaN where undefined; texts have their invisible characters spelt out.
    """
    return [*signature_rows(report), *_accuracies(report)]


def signature_rows(report: Report) -> list[dict[str, Any]]:
    """Each condition of each signature; a signature without findings has one row without numbers."""
    rows = []
    for signature in report.signatures.values():
        start = {"what": visible(words.titled(signature)), "pairing": signature.pairing}
        end = {"verdict": signature.verdict, "why": visible(signature.why)}
        if not signature.findings:
            rows.append({**start, **_numbers(), **end})
        for finding in signature.findings:
            e = finding.estimate
            numbers = _numbers(
                measured=visible(words.label(finding)),
                value=e.value,
                low=e.low,
                high=e.high,
                unit=visible(finding.condition.unit),
                margin=finding.condition.margin if finding.condition.judged else math.nan,
                matched=finding.matched,
                control=finding.control,
                d_z=finding.d_z,
                superior=finding.superior,
                p=e.p,
                n=e.n,
                replicate=e.unit,
            )
            rows.append({**start, **numbers, **end})
    return rows


def _accuracies(report: Report) -> list[dict[str, Any]]:
    rows = []
    for share in shares(report):
        known = [seed for seed in share.seeds if not math.isnan(seed)]
        numbers = _numbers(
            measured=f"{share.direction}, {visible(share.reading)}",
            value=share.value,
            low=share.low,
            high=share.high,
            lowest_seed=min(known, default=math.nan),
            highest_seed=max(known, default=math.nan),
            unit="share",
            n=share.facts or len(known),
            replicate="facts" if share.facts else "seeds",
        )
        rows.append({"what": "accuracy", "pairing": share.pairing, **numbers, "verdict": "", "why": ""})
    return rows


_NAMES = "measured value low high unit margin matched control d_z superior p n replicate lowest_seed highest_seed"


def _numbers(**known: Any) -> dict[str, Any]:
    texts = ("measured", "unit", "replicate")
    return {name: known.get(name, "" if name in texts else math.nan) for name in _NAMES.split()}


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as CSV; an undefined number is an empty cell."""
    held = io.StringIO()
    if rows:
        writer = csv.DictWriter(held, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return held.getvalue()
