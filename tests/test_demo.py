import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from rcprobe.errors import UsageError
from rcprobe_plugins.studies.demo import MODELS, command, run_demo
from rcprobe_plugins.studies.demo_output import LETTERS, print_demo, table

WIDE = ((7.77, 5.96, 9.58), (8.86, 6.67, 11.05), (2.36, 1.28, 3.44))  # a trained demo's storage, with intervals


@pytest.fixture(scope="module")
def reports():
    return run_demo(seeds=2, steps=6)


def test_each_model_has_its_seeds_from_workers(reports):
    assert list(reports) == list(MODELS)
    for report in reports.values():
        assert [run.seed for run in report.runs] == [0, 1]
        assert [step.step for step in report.runs[0].steps] == [0, 6]
        assert report.runs[0].fingerprint != report.runs[1].fingerprint


def test_what_forces_alibi_is_called_an_identity(reports):
    alibi = reports["masked diffusion, ALiBi"].signatures
    assert alibi["attention_correlation"].verdict == "identity"
    assert alibi["attention_correlation"].findings[0].estimate.value == pytest.approx(1.0)
    assert alibi["gradient_alignment"].findings[1].estimate.value == pytest.approx(1.0)
    assert alibi["gradient_alignment (swapped)"].verdict == "not trained"


def test_an_untrained_demo_says_so_and_claims_nothing(reports):
    console = Console(record=True, width=100, file=StringIO())
    print_demo(reports, console)
    text = console.export_text()
    assert "Answer" in text
    answer = text[text.index("Answer") :]
    assert re.search(r"\bpresent\b", answer) is None
    assert "not trained" in answer
    assert "…" not in text


def test_a_table_of_eighty_columns_keeps_its_right_border(reports):
    found = {}
    for (label, report), (value, low, high) in zip(reports.items(), WIDE, strict=True):
        (finding,) = report.signatures["storage"].findings
        wide = replace(finding, estimate=replace(finding.estimate, value=value, low=low, high=high))
        storage = replace(report.signatures["storage"], findings=(wide,))
        found[label] = replace(report, signatures={**report.signatures, "storage": storage})
    console = Console(width=80, file=StringIO())
    console.print(table(found))
    rows = console.file.getvalue().splitlines()
    assert {line[-1] for line in rows} <= set("┓┃┩│┤┘")


def test_brackets_are_printed_as_they_are_and_a_model_without_seeds_has_dashes(reports):
    label, some = next(iter(reports.items()))
    lost = replace(some, accuracy={}, notes=("seed 0 failed: [/x]",))
    printed = StringIO()
    print_demo({label: lost}, Console(file=printed, width=80))
    assert "[/x]" in printed.getvalue()
    assert f"accuracy, {LETTERS}" in " ".join(printed.getvalue().split())


def test_no_seeds_are_refused():
    with pytest.raises(UsageError, match="seeds 0"):
        command(seeds=0)
