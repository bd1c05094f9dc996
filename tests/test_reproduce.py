"""The one-layer study: its tables are those of its reports, its files are all there, bad requests are refused."""

import csv
import json
import math
from copy import copy
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from rcprobe import TrainConfig
from rcprobe.encoding import Encoding
from rcprobe.errors import DataError, MissingExtraError, PluginError, RunChangedError, UnknownNameError, UsageError
from rcprobe.metrics import Condition
from rcprobe.plugins import Entry, registry
from rcprobe.report.sheet import Grid, Sheet, print_sheet, save_sheet, to_latex
from rcprobe.signatures import Finding, Signature
from rcprobe.statistics import over_seeds
from rcprobe_plugins.models.blocks import TinyConfig
from rcprobe_plugins.studies import bounds, one_layer, one_layer_tables, reproduce
from rcprobe_plugins.studies.one_layer import (
    PROBABILITY,
    ROOM,
    Setting,
    encodings,
    probabilities,
    recipe,
    rows,
    train_settings,
)
from rcprobe_plugins.studies.one_layer_figures import correlation_map, cosines, figures, maps
from rcprobe_plugins.studies.reproduce import TABLES, command, settings_of

ROPE, ALIBI, ARM = (Setting("radd", "rope", 4), Setting("radd", "alibi", 4), Setting("gpt2-mini", "absolute", 4))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("study") / "trained"


@pytest.fixture(scope="module")
def reports(kept):
    return train_settings([ROPE, ALIBI, ARM], 2, lambda setting: TrainConfig(steps=6, probe_at=(3,)), kept=kept)


def test_each_model_that_is_trained_has_a_file_of_its_own(kept, reports):
    assert {path.name for path in kept.iterdir()} == {setting.file for setting in (ROPE, ALIBI, ARM)}
    assert ROPE.file.startswith("rope_L_4-")


def test_every_seed_step_reading_and_direction_has_its_row(reports):
    found = list(rows(reports))
    assert {row["step"] for row in found} == {0, 3, 6}
    assert {row["seed"] for row in found} == {0, 1}
    readings = {row["reading"] for row in found if row["encoding"] == "rope"}
    assert readings == {"full vocabulary", "52 letters", "26 letters", PROBABILITY}
    assert len(found) == 2 * 2 * 3 * (2 * 4 + 5)  # directions, seeds, steps; a causal model is also read by writing on
    assert {row["pairing"] for row in found if row["encoding"] == "rope"} == {"same_target", "swapped"}
    assert all(0 <= row["percent"] <= 100 or math.isnan(row["percent"]) for row in found)


def test_the_probability_is_that_of_a_letter_among_letters(reports):
    start = probabilities(reports[ROPE], "reverse")[0]
    assert start == pytest.approx([100 / 52] * 2, rel=1e-4)  # RADD's head starts at zero


def test_tables_say_what_the_paper_printed_and_every_seed(reports):
    sheet = one_layer_tables.tab2({Setting("radd", "rope", 10): reports[ROPE], ALIBI: reports[ALIBI]})
    outcome, why, training, seeds = sheet.grids
    assert {row[2] for row in outcome.rows if row[1] != PROBABILITY} == {"99.3 / 43.1", "–"}
    assert why.rows[1][2].startswith("identity: 1.00")
    assert training.headings[2:] == ("step 0", "step 3", "step 6")
    readings = ["full vocabulary", "52 letters", "26 letters", PROBABILITY]
    assert [row[1] for row in training.rows if row[0] == "alibi, L = 4"] == readings
    assert seeds.headings[1:] == ("seed 0", "seed 1")
    answer = " ".join(sheet.answer)
    assert "rope, L = 10" in answer
    assert "routing identity" in answer
    assert ")." in answer  # a verdict that needs a reason has it


def test_the_order_of_encodings_is_decided_only_where_intervals_are_apart(monkeypatch, reports):
    told = {"rope": [80.0, 82.0, 81.0], "alibi": [99.0, 99.1, 99.2], "absolute": [60.0, 100.0, 80.0]}
    settings = {Setting("radd", name, 4): name for name in told}
    monkeypatch.setattr(one_layer_tables, "probabilities", lambda name, _: {0: [0.0], 9: told[name]})
    said = one_layer_tables._order(settings)
    ranked = "apart: alibi over rope; not decided: alibi over absolute, rope over absolute."
    assert said.endswith(f"Of the paper's encodings, intervals {ranked}")
    told["nope"] = [90.0, 90.1, 90.2]  # between two of the paper's, which are compared all the same
    said = one_layer_tables._order({Setting("radd", name, 4): name for name in told})
    assert f"Of the paper's encodings, intervals {ranked}" in said
    neighbours = "intervals apart: alibi over nope, nope over rope; not decided: rope over absolute."
    assert said.endswith(f"Between neighbours, {neighbours}")


@pytest.mark.parametrize(("seeds", "falls"), [([90.0, 88.0, 91.0], True), ([99.0, 11.0, 9.0], False)])
def test_a_fall_is_told_where_the_seeds_agree_on_it(monkeypatch, reports, seeds, falls):
    monkeypatch.setattr(one_layer_tables, "accuracies", lambda *_: {1: seeds, 2: [10.0, 10.5, 9.5]})
    said = one_layer_tables._moves({ROPE: reports[ROPE]})
    assert ("rope, L = 4 90 % at step 1, 10 % at step 2" in " ".join(said)) == falls


def test_a_seed_that_answers_the_placeholder_is_named(monkeypatch, reports):
    readings = {"forward": {0: [0.0, 0.0], 6: [99.0, 12.3]}}
    monkeypatch.setattr(one_layer, "accuracies", lambda report, setting, reading, way: readings[way])
    (said,) = [note for note in one_layer.notes({ROPE: reports[ROPE]}) if "under 90 %" in note]
    assert said.endswith("in seed 1 (12.3 %); the average keeps it")
    assert not [note for note in one_layer.notes({ARM: reports[ARM]}) if "under 90 %" in note]


def test_values_hold_accuracies_and_signatures_under_one_set_of_columns(reports):
    values = one_layer_tables.tab2({ALIBI: reports[ALIBI]}).values
    assert len({tuple(row) for row in values}) == 1
    assert {row["direction"] for row in values} == {"forward", "reverse", None}
    routing = [row for row in values if row["measured"] == "r of scores"]
    assert [row["verdict"] for row in routing] == ["identity"]
    assert routing[0]["value"] == pytest.approx(1.0)


def test_a_correlation_of_one_by_construction_gives_way_to_the_next():
    found = [
        Finding(Condition(label, "correlation", ("forward", "reverse"), 0.2, ""), over_seeds(values), 0.0)
        for label, values in (("r of scores", [1.0, 1.0]), ("r of log weights", [0.5, 0.7]))
    ]
    routing = Signature("attention_correlation", "attention_correlation", "routing", "swapped", "present", tuple(found))
    cell = one_layer_tables.said_signature(routing)
    assert cell == "present: r of log weights 0.60 [−0.67, 1.87]; shuffled facts 0.00"
    assert one_layer_tables.said_signature(replace(routing, findings=(found[0],))).startswith("present: 1.00")


def test_a_seed_that_failed_stays_in_the_table(reports):
    report = reports[ALIBI]
    broken = replace(report, runs=(report.runs[0], replace(report.runs[1], failure="training diverged: …, seed 1")))
    sheet = one_layer_tables.tab2({ALIBI: broken})
    assert sheet.grids[3].rows[0][2] == "failed"


def test_scores_of_an_encoding_that_reads_distance_alone_correlate_fully(reports):
    found = maps(reports[ALIBI])
    distances, r = found.distances, found.mean
    assert distances.tolist() == [1, 2, 3]
    np.testing.assert_allclose(r, 1.0, atol=1e-5)
    assert np.abs(maps(reports[ROPE]).mean).min() < 0.999


def test_the_map_is_numpys_correlation_over_facts(reports):
    measured = next(m for m in reports[ROPE].runs[0].steps[-1].measured if m.metric == "attention_correlation")
    table = measured.table
    scores = {
        name: [
            [measured.columns[name][(table.fact == fact) & (table.delta_forward == d)].mean() for fact in range(26)]
            for d in (1, 2, 3)
        ]
        for name in ("forward", "reverse")
    }
    _, r = correlation_map(measured)
    assert r[2, 0] == pytest.approx(np.corrcoef(scores["reverse"][2], scores["forward"][0])[0, 1])


def test_each_model_has_one_curve_of_the_accuracy_that_its_table_shows(reports):
    along = {data.key: data for data in figures({s: reports[s] for s in (ROPE, ARM)})}
    assert [panel.title for panel in along["accuracy"].panels] == [
        "rope, L = 4\nfull vocabulary, both queries ask for a",
        "absolute gpt2-mini, L = 4\nfull vocabulary, forward asks for b, reverse for a",
    ]
    assert len(along["probability"].panels) == 2


def test_a_causal_model_has_no_map_and_no_cosine_both_ways(reports):
    assert maps(reports[ARM]) is None
    by_step, by_length = cosines({ROPE: reports[ROPE], Setting("radd", "rope", 9): reports[ROPE]})
    assert [panel.title for panel in by_step.panels] == ["rope, L = 4", "rope, L = 9"]
    assert by_length.panels[0].series[0].places == (4.0, 9.0)
    assert by_length.panels[0].series[0].points[0] == by_step.panels[0].series[0].points[-1]


def test_table_5_lays_what_was_measured_over_the_bound(reports):
    sheet = bounds.tab5({ALIBI: reports[ALIBI]})
    assert sheet.grids[1].rows[0] == (
        "alibi, L = 4", "9", "1.000 [1.000, 1.000]", "1.000", "100.0 [100.0, 100.0]", "0: 100, 1: 100",
    )  # fmt: skip
    measured = [row for row in sheet.values if row["model"]]
    assert len(measured) == 9
    assert all(row["seed 0"] == pytest.approx(1) for row in measured)
    rope, found = bounds.tab5({ROPE: reports[ROPE]}), maps(reports[ROPE])
    of = {row["seed 1"] for row in rope.values if (row["forward"], row["reverse"], row["model"]) == (3, 1, ROPE.label)}
    assert of == {found.by_seed[1][0, 2]}
    overlay = sheet.figures[1].panels[0].series
    assert [series.label for series in overlay] == ["forward with reverse", "bound on its mean (Thm 4.3)"]


def test_closed_tables_agree_with_the_paper():
    for sheet in (bounds.tab3(), bounds.tab4()):
        assert "to the printed digit" in sheet.answer[0]


def test_what_a_causal_model_cannot_be_asked_is_said_once(reports):
    assert any("accuracy (same_target) was not measured" in note for note in reports[ARM].notes)
    notes = one_layer_tables.tab1({ROPE: reports[ROPE], ARM: reports[ARM], replace(ARM, length=9): reports[ARM]}).notes
    assert not any("was not measured" in note for note in notes)
    assert sum("can't be asked for one target both ways" in note for note in notes) == 1


def test_files_are_all_written_and_can_be_read(tmp_path, reports):
    sheet = one_layer_tables.tab1({ROPE: reports[ROPE], ARM: reports[ARM]})
    save_sheet(sheet, tmp_path)
    written = list(csv.DictReader(StringIO((tmp_path / "tab1.csv").read_text())))
    assert len(written) == len(sheet.values)
    assert json.loads((tmp_path / "tab1.json").read_text())["values"][0]["model"] == "radd"
    page = (tmp_path / "tab1.html").read_text()
    assert page.count("<svg") >= 4
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    assert (tmp_path / "tab1-figures" / "correlation.svg").exists()
    assert (tmp_path / "tab1.tex").read_text().count(r"\begin{tabular}") == len(sheet.grids)


def test_whoever_lacks_the_pages_packages_is_told(tmp_path, monkeypatch, capsys):
    for module in ("figures", "sheet"):
        monkeypatch.setattr(f"rcprobe.report.{module}.installed", lambda: False)
    command("tab3", out=tmp_path)
    assert (
        "no HTML and no figures without matplotlib and jinja2: pip install 'rcprobe[report]'" in capsys.readouterr().err
    )
    assert {path.name for path in tmp_path.iterdir()} == {"tab3.csv", "tab3.json", "tab3.tex"}


def test_who_fell_again_is_said_in_one_sentence(reports, monkeypatch):
    along = {
        ROPE: {0: [0.0, 0.0], 3: [80.0, 60.0], 6: [40.5, 20.0]},
        ALIBI: {0: [0.0, 0.0], 3: [50.0, 50.0], 6: [46.0, 46.0]},
        ARM: {},
    }
    monkeypatch.setattr(one_layer_tables, "accuracies", lambda report, setting, *_: along[setting])
    (said,) = one_layer_tables._moves(reports)
    assert said.endswith("falls again over seeds: rope, L = 4 70 % at step 3, 30 % at step 6.")
    assert one_layer_tables._moves({ALIBI: reports[ALIBI], ARM: reports[ARM]}) == []


def test_models_of_one_verdict_are_named_together():
    def judged(verdict, why=""):
        return SimpleNamespace(signatures={"storage": SimpleNamespace(title="storage", verdict=verdict, why=why)})

    other = Setting("radd", "nope", 4)
    found = {ROPE: judged("open", "a"), ALIBI: judged("identity", "b"), other: judged("identity", "b")}
    assert one_layer_tables._because(found) == [
        "rope, L = 4: storage open (a).",
        "alibi, L = 4; nope, L = 4: storage identity (b).",
    ]
    found[ALIBI] = judged("open", "c")
    assert one_layer_tables._because(found)[0] == "rope, L = 4; alibi, L = 4: storage open."  # each has its own reason


def test_a_ragged_table_is_refused_before_anything_is_printed():
    with pytest.raises(ValueError, match="ragged: a row of 1 cells under 2 headings"):
        Grid("ragged", ("a", "b"), (("1", "2"), ("1",)))


def test_texts_are_printed_and_exported_as_they_are():
    sheet = Sheet("x", "[bold]t", ("50 % & more",), (Grid("g_1", ("a [b]",), (("[red]1 %",),)),), ())
    console = Console(record=True, width=80, file=StringIO())
    print_sheet(sheet, console)
    text = console.export_text()
    assert "[bold]t" in text
    assert "a [b]" in text
    assert "[red]1 %" in text
    assert r"[red]1 \%" in to_latex(sheet)


def test_all_registered_encodings_are_compared_the_papers_first():
    assert encodings()[:3] == ["absolute", "rope", "alibi"]
    assert sorted(encodings()) == sorted(registry().names("encodings"))
    assert encodings(quick=True) == ["absolute", "rope", "alibi"]
    assert {s.encoding for s in settings_of("tab2")} == set(encodings())
    assert {s.length for s in settings_of("tab1")} == {10, 20, 30, 40}
    assert {s.length for table in TABLES for s in settings_of(table, quick=True)} == {10}


def test_a_stopped_study_goes_on_with_what_it_trained_and_leaves_no_weights_behind(tmp_path, monkeypatch, capsys):
    out, trained, found = tmp_path / "study", tmp_path / "study" / "trained", []

    def stopped(tables, seeds, quick, *, kept, show):
        (kept / "rope.safetensors").write_bytes(b"weights")
        raise KeyboardInterrupt

    def gone_on(tables, seeds, quick, *, kept, show):
        found.extend(path.name for path in kept.iterdir())
        return iter([bounds.tab3()])

    monkeypatch.setattr(reproduce, "reproduce", stopped)
    with pytest.raises(KeyboardInterrupt):
        command("tab3", out=out)
    assert f"kept in {trained}; the same command goes on" in capsys.readouterr().err
    with pytest.raises(RunChangedError, match=r"seeds: 8 there, 2 now\n  quick: False there, True now"):
        command("tab3", seeds=2, quick=True, out=out)
    with pytest.raises(RunChangedError, match="table: tab3 there, tab4 now"):
        command("tab4", out=out)
    monkeypatch.setattr(reproduce, "reproduce", gone_on)
    command("tab3", out=out, quiet=True)
    assert "rope.safetensors" in found
    assert (out / "tab3.json").exists()
    assert not trained.exists()
    with pytest.raises(UsageError, match="holds files already"):
        command("tab3", out=out, quiet=True)


def test_somebody_elses_folder_of_that_name_is_left_alone(tmp_path):
    theirs = tmp_path / "trained" / "model.safetensors"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    with pytest.raises(UsageError, match="holds files already"):
        command("tab3", out=tmp_path, quiet=True)
    assert theirs.read_bytes() == b"theirs"


def test_names_that_look_alike_in_a_path_have_files_of_their_own():
    names = ("my.enc", "my_enc", "α", "β", "x" * 70, "x" * 70 + "y")
    assert len({Setting("radd", name, length).file for name in names for length in (10, 20)}) == 12


def test_a_model_has_room_for_its_sequence():
    assert TinyConfig().max_length == ROOM
    assert replace(ROPE, length=ROOM).options == {"encoding": "rope"}
    assert replace(ROPE, length=80).options == {"encoding": "rope", "max_length": 80}


def test_what_is_wrong_in_a_worker_is_said_as_it_is():
    with pytest.raises(UnknownNameError, match="no objective is called 't-cde'; did you mean 't-dce'"):
        train_settings([ROPE], 1, lambda setting: TrainConfig(steps=1, objective="t-cde"))
    for error in (UnknownNameError("model", "raddd", ["radd"]), MissingExtraError("HTML", "jinja2", "report")):
        again = copy(error)  # by the same protocol as between processes
        assert (type(again), str(again), again.exit_code) == (type(error), str(error), 2)


def test_a_model_called_like_another_is_not_taken_for_it():
    named = Setting("radd", "absolute gpt2-mini", 4)
    assert named.label == ARM.label
    assert named.file != ARM.file


def test_one_recipe_serves_every_encoding_of_a_length():
    for length, steps in ((10, 10_000), (20, 10_000), (30, 10_000), (40, 15_000)):
        assert {recipe(Setting("radd", name, length)).steps for name in encodings()} == {steps}
        assert recipe(Setting("radd", "rope", length), quick=True).steps == 3_000
        recipes = [recipe(Setting("radd", name, length), quick) for name in encodings() for quick in (True, False)]
        known = {10: (1.0, 100), 20: (30.0, 1000)}.get(length, (30.0, 100))
        assert {(train.clip, train.warmup) for train in recipes} == {known}
    assert [recipe(Setting("gpt2-mini", "absolute", length)).steps for length in (10, 20, 40)] == [10_000, 5000, 5000]


class Silent(Encoding):
    reads_distance_only = True


def test_an_encoding_that_lacks_part_of_its_contract_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    names = registry()
    mine = Entry("encodings", "silent", f"{__name__}:Silent", names.entry("encodings", "rope").origin)
    monkeypatch.setattr(names, "entries", [*names.entries, mine])
    with pytest.raises(PluginError, match="encoding 'silent' lacks a declaration: set values_carry_position"):
        train_settings([ROPE, replace(ROPE, encoding="silent")], 1, kept=tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'tab2'"):
        command("tab22")
    with pytest.raises(UsageError, match="--seeds 0"):
        command("tab2", seeds=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't write"):
        command("tab3", out=tmp_path / "file" / "x")
    with pytest.raises(DataError, match="no room for two letters"):
        train_settings([Setting("radd", "rope", 1)], 1)
    with pytest.raises(UnknownNameError, match="did you mean 'alibi'"):
        train_settings([Setting("radd", "alibii", 4)], 1)
