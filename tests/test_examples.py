"""Examples that a reader runs as they are."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


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
