"""The causal check in a report: judged by itself, said to be no signature, drawn by layer and head."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic

from rcprobe.facts import Dataset
from rcprobe.measured import Measured, Step
from rcprobe.metrics import resolve_metrics
from rcprobe.report import SeedRun, build, plain
from rcprobe.report.export import to_markdown
from rcprobe.report.figures import figures
from rcprobe.report.html import page
from rcprobe.report.knockouts import knockouts
from rcprobe.report.saved import _signature
from rcprobe.report.terminal import print_report
from rcprobe.signatures import judge_all
from rcprobe.step_files import load_step, save_step
from rcprobe_plugins.trackers.scalars import verdicts

METRIC = resolve_metrics(["route_knockout"])[0]
FALLS = {"forward evidence": 3.0, "forward control": 0.5, "reverse evidence": 0.2, "reverse control": 0.4}
LAYERS, HEADS = 2, 3
INFO = {**synthetic.INFO, "dataset": "towns", "facts": 30}


def columns(size):
    """Falls known beforehand, and a little noise that a fact's four have in common."""
    noise = np.random.default_rng(0).normal(0, 0.05, size)
    made = {}
    for name, fall in FALLS.items():
        made[name] = fall + noise * (1 + len(name) % 3)
        made |= {f"{name} layer {k}": fall * (k + 1) / 4 + noise for k in range(LAYERS)}
        by_head = fall * np.arange(LAYERS * HEADS).reshape(LAYERS, HEADS) / 10
        made[f"{name} by head"] = np.repeat(by_head[None], size, axis=0)
    return made


@pytest.fixture(scope="module")
def report():
    pairs = synthetic.table(30, distances=1)
    measured = Measured(METRIC.name, "swapped", 0, 0, columns(30), pairs)
    others = synthetic.measured(0, 0, pairs)
    step = Step(0, 0, None, (*others, measured), {"swapped": {"full vocabulary": (1.0, 0.5)}}, {}, {})
    dataset, runs = Dataset("towns", synthetic.facts(30)), [SeedRun(0, (step,), None, "ab12" * 8)]
    metrics = (*synthetic.METRICS, METRIC)
    return build(dataset, metrics, runs, chance=0.01, identities={}, info=INFO)


def test_each_way_is_held_against_its_control_and_both_must_hold(report):
    signature = report.signatures["route_knockout"]
    forward, reverse = signature.findings
    assert forward.estimate.value == pytest.approx(2.5, abs=0.05)
    assert reverse.estimate.value == pytest.approx(-0.2, abs=0.05)
    assert (forward.control, forward.matched) == pytest.approx((0.5, 3.0), abs=0.05)
    assert forward.estimate.low > 0.1 > reverse.estimate.high
    assert forward.d_z > 10
    assert signature.verdict == "absent"  # the reverse answer doesn't hang on it


def test_its_p_counts_for_itself_alone(monkeypatch):
    families = []
    monkeypatch.setattr("rcprobe.signatures.holm", lambda p: families.append(set(p)) or {})
    found = {"routing": (synthetic.METRICS[1], "same_target", ()), "knockout": (METRIC, "swapped", ())}
    judged = judge_all(
        found, replicate="fact", identities={}, not_trained={"same_target": "no", "swapped": "no"}, skipped={}
    )
    assert families == [{"routing"}]
    assert [signature.check for signature in judged.values()] == [False, True]


def test_a_check_changes_no_signature(report):
    alone = synthetic.judged(report.dataset, report.runs)
    kept = {name: signature for name, signature in report.signatures.items() if not signature.check}
    assert repr(alone.signatures) == repr(kept)  # NaN is unlike itself


def test_every_output_says_that_it_is_no_signature(report, capsys):
    print_report(report)
    said = " ".join(capsys.readouterr().out.split())
    assert "knockout (swapped): a causal check, not one of the signatures" in said
    assert "knockout, causal check (swapped)" in to_markdown(report)
    answer = plain.answer(report)
    assert "Beside the signatures, a causal check: Knockout: absent." in answer
    shown = report._repr_html_()
    assert "knockout, causal check" in shown
    assert "knockout (swapped): a causal check, not one of the signatures" in shown
    assert "a causal check, not one of the signatures" in verdicts(report)["route_knockout"]
    assert not any("causal check" in verdicts(report)[name] for name, s in report.signatures.items() if not s.check)
    text = page(report)
    assert "(A causal check, not a signature.)" in text
    assert text.count("p is below .05 after Holm") == sum(s.verdict in ("present",) for s in report.signatures.values())


def test_the_figure_has_all_at_once_each_layer_and_each_head(report):
    data = knockouts(report)
    made = figures(report)
    assert data.key in [figure.key for figure in made]
    page = (Path(__file__).parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    assert [figure.title for figure in made if f"**{figure.title.rstrip('?')}" not in page] == []
    whole, forward, reverse, forward_map, reverse_map = data.panels
    assert [p.value for p in whole.series[0].points] == pytest.approx([3.0, 0.2], abs=0.05)
    assert [p.value for p in whole.series[1].points] == pytest.approx([0.5, 0.4], abs=0.05)
    assert [p.value for p in forward.series[0].points] == pytest.approx([0.75, 1.5], abs=0.05)
    assert [p.value for p in reverse.series[1].points] == pytest.approx([0.1, 0.2], abs=0.05)
    np.testing.assert_allclose(forward_map.values, 2.5 * np.arange(6).reshape(2, 3) / 10)
    np.testing.assert_allclose(reverse_map.values, -0.2 * np.arange(6).reshape(2, 3) / 10, atol=1e-12)
    assert forward_map.limit == pytest.approx(1.25)
    assert "in all layers, log p of the right answer falls by 2.99 nats forward (control 0.49)" in data.says
    assert "nats" in forward_map.unit


def test_without_the_metric_there_is_no_such_figure():
    assert knockouts(synthetic.large(10)) is None


def test_saved_and_read_again_it_is_the_same(report):
    kept = json.loads(json.dumps(report.to_dict()))["signatures"]["route_knockout"]
    again = _signature(kept)
    assert again.check
    assert again.findings[0].estimate == report.signatures["route_knockout"].findings[0].estimate
    old = {name: value for name, value in kept.items() if name != "check"}
    assert not _signature(old).check  # of a run from before there were checks


def test_a_kept_step_holds_every_head(report, tmp_path):
    save_step(tmp_path / "step", report.runs[0].steps[0])
    again = replace(report, runs=(replace(report.runs[0], steps=(load_step(tmp_path / "step"),)),))
    one, other = (r.frame("route_knockout") for r in (report, again))
    assert one.equals(other)
    assert len(one) == 30 * LAYERS * HEADS
    assert one["forward evidence by head"].notna().all()
