"""Examples that a reader runs as they are."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import rcprobe
from rcprobe.report.curves import accuracy
from rcprobe.training.objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def test_the_search_goes_on_with_what_its_file_lacks(tmp_path, monkeypatch):
    def rows(seeds, steps="2"):
        asked = ["search", str(table), "--recipe", "light-0.1", "--length", "3", "--steps", steps, "--seeds", seeds]
        monkeypatch.setattr("sys.argv", asked)
        runpy.run_path(str(EXAMPLES / "search_published_figures.py"), run_name="__main__")
        return [line.split(",") for line in table.read_text(encoding="utf-8").splitlines()[1:]]

    monkeypatch.setattr("rcprobe.training.objectives.OBJECTIVES", dict(OBJECTIVES))
    table = tmp_path / "search.csv"
    first = rows("0-0")
    assert [row[3:6] for row in first] == [["0", "2", "forward"], ["0", "2", "reverse"]]
    both = rows("0-1")
    assert both[:2] == first
    assert [row[3] for row in both] == ["0", "0", "1", "1"]
    longer = rows("0-1", "3")
    assert longer[:4] == both
    assert [row[3:5] for row in longer[4:]] == [["0", "3"], ["0", "3"], ["1", "3"], ["1", "3"]]


def python(page):
    """The last block of Python that a page shows, most often its one."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)[-1]


def shortened(block, changes):
    """The block with what takes long made short."""
    for long, short in changes.items():
        assert long in block
        block = block.replace(long, short)
    return block


def test_the_readme_in_fewer_steps(capsys):
    changes = {"steps=800, probe_every=400": "steps=2", "seeds=5": "seeds=1", '"length": 4': '"length": 2'}
    block = shortened(python("README.md"), changes)
    exec(compile(block, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "storage not trained" in out
    assert "forward" in out


def one_panel(figure):
    return replace(figure, panels=figure.panels[:1])


def test_the_page_and_figures_of_a_report_in_fewer_steps(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rcprobe.report.html.figures", lambda report: [])
    monkeypatch.setattr("rcprobe.report.figures.figures", lambda report: [one_panel(accuracy(report))])
    changes = {
        "steps=1500, probe_every=150": "steps=2",
        "seeds=5": "seeds=1",
        '"letters"': 'letters, metrics=["storage"]',
    }
    letters = rcprobe.load_dataset("letters", {"length": 2})
    exec(compile(shortened(python("docs/report.md"), changes), "docs/report.md", "exec"), {"letters": letters})
    assert {"accuracy.csv", "accuracy.pdf"} <= {path.name for path in (tmp_path / "figures").iterdir()}
    assert (tmp_path / "alibi.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "storage" in capsys.readouterr().out


def test_the_course_of_accuracy_in_fewer_steps():
    changes = {"steps=1000": "steps=2", "probe_every=500": "probe_every=1", "seeds=5": "seeds=1"}
    space = {}
    exec(compile(shortened(python("docs/tutorial.md"), changes), "docs/tutorial.md", "exec"), space)
    assert set(space["swapped"]["step"]) == {0, 1, 2}


def test_facts_and_a_metric_of_ones_own(capsys):
    space = {}
    exec(compile(python("docs/from-python.md"), "docs/from-python.md", "exec"), space)
    assert space["seen"].scores.shape[:2] == (4, 2)
    frame = space["report"].frame("margin")
    assert set(frame["a"]) == {"Oslo", "Lima", "Rome", "Paris"}
    assert set(frame["step"]) == {0, 50}
    assert "Lima" in capsys.readouterr().out


def test_the_picture_of_the_readme_in_fewer_steps(tmp_path):
    module = runpy.run_path(str(EXAMPLES / "forward_and_reverse.py"))
    module["main"](tmp_path, steps=2, seeds=1)
    drawn = (tmp_path / "probability.svg").read_text(encoding="utf-8")
    assert all(title in drawn for title in module["MODELS"])
    assert "reverse query" in drawn


def test_a_model_of_8b_in_small(monkeypatch, capsys, tmp_path):
    facts = tmp_path / "facts.csv"
    facts.write_text("a,b,forward,reverse\nParis,France,The city of {a} is {b} .,The land of {b} has {a} .\n")
    script = EXAMPLES / "llada_8b_one_card.py"
    monkeypatch.setattr("sys.argv", [str(script), "--tiny", "--facts", str(facts), "--out", str(tmp_path / "kept")])
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    assert "same_target, full vocabulary: right forward" in out
    assert "gradient_alignment: " in out
    assert (tmp_path / "kept" / "manifest.json").exists()
