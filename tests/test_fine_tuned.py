"""The fine-tuned half of the paper, in small: runs, tables, what goes on, what is refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import rcprobe
from rcprobe import TrainConfig
from rcprobe.errors import DataError, RcprobeError, UsageError
from rcprobe_plugins.studies import fine_tuned, fine_tuned_command
from rcprobe_plugins.studies.fine_tuned import DATA, MODELS, exchanged, mini_tunings, paper_tunings, run_tunings
from rcprobe_plugins.studies.fine_tuned_command import reproduce_tuned
from rcprobe_plugins.studies.fine_tuned_tables import exact, panels, tab7
from rcprobe_plugins.studies.published import published

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
FLAGS = {"mini": True, "model": None, "data": None, "dry_run": False, "quick": False, "as_json": False, "quiet": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    place = tmp_path_factory.mktemp("small") / "causal"
    m = rcprobe.load("llama", options=SMALL)
    m.model.save_pretrained(place)
    m.tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def small(monkeypatch):
    """The pipeline as it is, on letters, for some steps."""
    plain = fine_tuned.mini_tunings

    def tunings(source):
        return [
            fine_tuned.Tuning(t.model, source, "Letters", "letters", {"length": 4}, 2, t.converted)
            for t in plain(source)
        ]

    monkeypatch.setattr(fine_tuned_command, "mini_tunings", tunings)
    monkeypatch.setattr(
        fine_tuned_command, "mini_training", lambda: TrainConfig(steps=4, batch_size=4, probe_at=(2,), ema=0.0)
    )
    return tunings


def test_the_paper_runs_are_those_of_its_table():
    rows = published("tab7").to_dict("records")
    assert {(t.trained_on, t.model) for t in paper_tunings("tab7", None)} == {
        (r["trained_on"], r["model"]) for r in rows
    }
    assert [t.model for t in paper_tunings("fig4", None)] == ["LLaDA 8B"]
    assert set(DATA) == {row["trained_on"] for row in rows}
    assert set(MODELS) == {row["model"] for row in rows}
    assert len({t.folder for t in paper_tunings("tab7", None)}) == len(rows)


def test_mini_runs_end_to_end_and_goes_on_where_it_stopped(checkpoint, small, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    reproduce_tuned("tab7", None, out, **{**FLAGS, "model": str(checkpoint), "quiet": False})
    printed = capsys.readouterr().out
    assert "causal, Letters: after fine-tuning" in printed
    assert "converted, Letters: after fine-tuning" in printed
    found = json.loads((out / "tab7-mini.json").read_text())
    assert {(row["model"], row["step"]) for row in found["values"]} == {
        (model, step) for model in ("causal", "converted") for step in (0, 2, 4)
    }
    for name in ("tab7-mini.csv", "tab7-mini.tex", "tab7-mini.html"):
        assert (out / name).stat().st_size > 200
    assert str(tmp_path) not in (out / "tab7-mini.html").read_text()
    monkeypatch.setattr("rcprobe.training.trainer.adamw", None)  # nothing is trained again
    reproduce_tuned("tab7", None, out, **{**FLAGS, "model": str(checkpoint)})
    assert json.loads((out / "tab7-mini.json").read_text()) == found


def test_exact_answers_are_the_mean_over_facts_of_their_template_pairs(checkpoint, small):
    (tuning, _) = small(str(checkpoint))
    tuned = run_tunings([tuning], TrainConfig(steps=2, batch_size=4), 1, None, show=False)
    report = tuned.reports[tuning]
    frame = report.frame("answers")
    last = frame[frame["step"] == 2]
    expected = last.groupby("fact")[["forward, exact", "reverse, exact"]].mean().mean() * 100
    assert exact(report)[2][0] == pytest.approx(tuple(expected))
    sheet = panels("fig4", tuned)
    assert len(sheet.figures) == 3
    assert any(figure.panels for figure in sheet.figures)
    assert all("Letters" in panel.title for figure in sheet.figures for panel in figure.panels)
    assert np.isfinite([row["exact_percent"] for row in tab7("tab7", tuned).values]).all()


def test_exchanged_facts_are_alike_in_tokens_and_untrue(checkpoint):
    m = rcprobe.load(checkpoint)
    names = (("a", "A"), ("bb", "B"), ("c", "C"), ("d", "DD"), ("e", "E"))
    whole = rcprobe.Dataset("names", tuple(rcprobe.Fact(a, b, "{a}0{b}", "{b}00{a}") for a, b in names))
    made = exchanged(m, whole, 24)
    assert {fact.a for fact in made.facts} == {"a", "c", "d"} | {"e"}
    assert {fact.b for fact in made.facts} == {"A", "B", "C", "E"}
    assert not {(fact.a, fact.b) for fact in whole.facts} & {(fact.a, fact.b) for fact in made.facts}
    assert len(exchanged(m, whole, 2).facts) == 2
    assert made.facts[0].forward == ("{a}0{b}",)
    with pytest.raises(DataError, match="no two facts have names of one length"):
        exchanged(m, rcprobe.Dataset("one", whole.facts[:1]), 24)


def test_a_run_that_fails_leaves_the_others_their_table(checkpoint, small, tmp_path, capsys, monkeypatch):
    plain = fine_tuned_command.mini_tunings
    monkeypatch.setattr(
        fine_tuned_command,
        "mini_tunings",
        lambda source: [*plain(source)[:1], replace(plain(source)[1], source="gone")],
    )
    with pytest.raises(RcprobeError, match="not run: converted, Letters"):
        reproduce_tuned("tab7", None, tmp_path / "out", **{**FLAGS, "model": str(checkpoint), "quiet": False})
    printed = capsys.readouterr().out
    assert "causal, Letters: after fine-tuning" in printed
    assert re.search(r"converted, Letters: not run: .*gone", printed)
    assert "not run" in (tmp_path / "out" / "tab7-mini.html").read_text()
    with pytest.raises(RcprobeError, match="gone"):  # nothing to show: the reason itself
        run_tunings([replace(plain("gone")[0])], TrainConfig(steps=2), 1, None, show=False)


def test_a_plan_says_what_is_there_and_what_is_missing(checkpoint, small, tmp_path, capsys):
    reproduce_tuned("tab7", None, tmp_path, **{**FLAGS, "model": str(checkpoint), "dry_run": True, "quiet": False})
    printed = capsys.readouterr().out
    assert "2 facts" in printed
    assert "parameters" in printed
    assert not any(tmp_path.iterdir())
    with pytest.raises(RcprobeError, match="can't be run here yet: causal, Letters; converted, Letters"):
        reproduce_tuned("tab7", None, None, **{**FLAGS, "model": str(tmp_path), "dry_run": True, "quiet": False})
    assert "missing" in capsys.readouterr().out


def test_the_papers_plan_needs_no_weights(capsys):
    with pytest.raises(RcprobeError, match="can't be run here yet: LLaDA 8B, Parent→Child; what is missing is said"):
        reproduce_tuned("fig4", None, None, **{**FLAGS, "mini": False, "dry_run": True, "as_json": True})
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["run"] == "LLaDA 8B, Parent→Child"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quick": True}, "a small tab7 is --mini"),
        ({"mini": False, "model": "x"}, "--model is the causal model of --mini"),
        ({"data": "x"}, "--mini has facts of its own"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        reproduce_tuned("tab7", None, None, **{**FLAGS, **wrong})
    assert mini_tunings("somewhere")[1].converted
