"""What is printed on a terminal: names from outside neither end a markup that isn't theirs nor steer it."""

from dataclasses import replace
from io import StringIO

import pytest
import synthetic
from rich.console import Console
from test_cli import call

from rcprobe.report import words
from rcprobe.report.terminal import print_report

HOSTILE = "evil[/b] [red] \x1b[2J\u202e"
SHOWN = "evil[/b] [red] ⟨U+001B⟩[2J⟨U+202E⟩"
NAMES = {"model": HOSTILE, "dataset": HOSTILE, "facts": 12}


def hostile():
    """A report whose model, dataset, reading, signature, condition, reason, note and exclusion are called so."""
    plain = synthetic.report(count=12, seeds=1, steps=(0, 100), info=NAMES)
    dynamics = plain.signatures["gradient_alignment"]
    condition = replace(dynamics.findings[0].condition, label=HOSTILE)
    named = replace(
        dynamics, title=HOSTILE, why=HOSTILE, findings=(replace(dynamics.findings[0], condition=condition),)
    )
    return replace(
        plain,
        signatures={HOSTILE: named},
        accuracy={"swapped": {f"among {HOSTILE}": ((1.0, 0.5),)}},
        excluded={"swapped": {HOSTILE: 2}},
        notes=(HOSTILE,),
    )


def test_names_from_outside_are_printed_as_they_are_and_steer_nothing(capsys):
    print_report(hostile())
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said
    for line in (f"{SHOWN} on {SHOWN}: 12 facts", f"note: {SHOWN}", f"excluded (swapped): 2 pairs, {SHOWN}"):
        assert line in said
    assert "among" in said
    assert said.count("⟨U+001B⟩") >= 7


def test_a_narrow_table_splits_no_word_of_ours_and_the_lines_below_name_signatures_as_it_does():
    plain = synthetic.report(count=12, seeds=1, steps=(0, 100), info=NAMES)
    names = ("routing", "dynamics")
    found = (s for s in plain.signatures.values() if s.title in names)
    shared = {s.metric: replace(s, verdict="inconclusive", why="p is 0.07") for s in found}
    console = Console(file=StringIO(), width=80, highlight=False)
    print_report(replace(plain, signatures=shared, info={**NAMES, "train": None}), console)
    said = console.file.getvalue()
    rows = [line for line in said.splitlines() if line.startswith("│")]
    assert {len(line) for line in rows[1:]} == {80}
    assert said.count("inconclusive │") == 2
    assert said.count("│ (same_target) │") == 2
    assert "routing (same_target) and dynamics (same_target): inconclusive, p is 0.07\n" in said


def test_without_signatures_there_is_no_table_of_them():
    console = Console(file=StringIO(), width=80, highlight=False)
    plain = synthetic.report(count=12, seeds=1, steps=(0, 100), info={**NAMES, "train": None})
    print_report(replace(plain, signatures={}, transfer=()), console)
    assert "Accuracy" in console.file.getvalue()
    assert "Signatures" not in console.file.getvalue()


@pytest.mark.parametrize("command", [("runs", "show"), ("runs", "list")])
def test_a_kept_run_is_listed_and_shown_without_steering_the_terminal(command, tmp_path):
    accuracy = synthetic.report(count=12, seeds=1, steps=(0, 100), info=NAMES)
    synthetic.kept(accuracy, tmp_path / "one")
    done = call(*command, str(tmp_path / "one"))
    assert done.code is None, done.err
    assert "\x1b" not in done.out
    assert SHOWN in done.out


def test_what_a_machine_answers_is_printed_so_too(monkeypatch):
    from rcprobe import doctor

    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("cache", "note", HOSTILE, HOSTILE)])
    done = call("doctor")
    assert "\x1b" not in done.out
    assert done.out.count(SHOWN) == 2


def test_json_with_half_a_character_can_be_written(tmp_path):
    synthetic.kept(synthetic.report(count=12, seeds=1, steps=(0, 100)), tmp_path / "one")
    manifest = tmp_path / "one" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"made-up"', '"half \\ud800"'))
    assert '"half \\ud800"' in call("runs", "show", str(tmp_path / "one"), "--json").out


def test_an_effect_size_of_rounding_noise_is_not_spelt_out():
    """Where forward and reverse are one by construction, facts differ by rounding alone."""
    finding = synthetic.report(count=25).signatures["gradient_alignment"].findings[0]
    assert words.effect(replace(finding, d_z=2.5)).startswith("d_z 2.50")
    assert words.effect(replace(finding, d_z=-41396317.63)).startswith("|d_z| > 999")
