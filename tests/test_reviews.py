"""The readers' questions on models too small to say anything: what must hold whatever was learned."""

import html
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from rcprobe.errors import TrainingError, UnknownNameError
from rcprobe.report.panels import has_values
from rcprobe.statistics import over_seeds
from rcprobe.training import TrainConfig
from rcprobe_plugins.studies import reproduce
from rcprobe_plugins.studies.reviews import first_order, flow, layers, split, variants
from rcprobe_plugins.studies.reviews.answer import paired, said, series, verdict
from rcprobe_plugins.studies.reviews.cells import Cell, Size, table, trained
from rcprobe_plugins.studies.reviews.questions import QUESTIONS, reviews, save_answer, save_answers

TRAIN = TrainConfig(steps=8, lr=1e-2, batch_size=16, warmup=1, probe_at=(6,))  # (e) trains for fewer steps
TINY = Size(length=3, width=8, seeds=2, train=TRAIN)


@pytest.fixture(scope="module")
def answers():
    return {answer.question: answer for answer in reviews(TINY, "adeghi")}


def test_every_answer_is_a_sentence_a_figure_and_its_rows(answers):
    for letter, answer in answers.items():
        assert answer.question == letter
        assert len(answer.says) > 80
        assert "nan" not in answer.says
        assert any(has_values(panel) for panel in answer.panels)
        assert set(answer.rows.seed) == {0, 1}


def test_two_seeds_decide_nothing(answers):
    for letter in "adegh":
        assert "2 seeds don't decide" in answers[letter].says


def test_models_that_did_not_learn_are_named_and_kept(answers):
    assert "Not trained" in answers["a"].says
    assert "rope seed 0" in answers["a"].says
    assert "rope seed 0, rope seed 1." in answers["g"].says
    assert "Not trained" in answers["h"].says
    assert "alibi" not in answers["h"].says  # an identity has no say in the correlation
    assert len(answers["a"].rows) == 7 * 2


def test_encodings_that_read_the_distance_alone_answer_both_ways_alike(answers):
    rows = answers["a"].rows
    off = (rows["forward P"] - rows["reverse P"]).abs().groupby(rows.cell).max()
    assert (off[["alibi", "nope"]] < 1e-8).all()
    assert (off.drop(["alibi", "nope"]) > 1e-8).all()


def test_what_may_be_masked_makes_other_models_of_one_start(answers):
    assert answers["d"].rows["forward P"].nunique() == len(answers["d"].rows) == 4 * 2


def test_the_error_of_the_first_order_is_of_the_second(answers):
    rows = answers["e"].rows
    small = rows[rows.rate < 2e-3]
    for _, one in small.groupby("seed"):
        first, second = (np.polyfit(one["log rate"], one[f"log error, {n}"], 1)[0] for n in ("first", "second"))
        assert first == pytest.approx(2.0, abs=0.05)
        assert second > 2.4  # rounding is near
    assert "2 seeds don't decide whether the prediction holds" in answers["e"].says


def test_an_order_is_judged_from_enough_seeds_that_have_one():
    assert first_order._held(over_seeds([2.0, 2.01, 1.99, 2.0, 2.0])) == "the prediction holds"
    assert first_order._held(over_seeds([1.0, 1.01, 0.99, 1.0, 1.0])) == "the prediction fails"
    assert "4 seeds don't decide" in first_order._held(over_seeds([2.0, 2.01, 1.99, 2.0, math.nan]))
    for wide in ([1.0, 3.0, 1.0, 3.0, 2.0], [1.6, 2.0, 2.0, 2.0, 1.8]):
        assert first_order._held(over_seeds(wide)) == "the data don't decide whether it holds"


def test_adamws_first_step_is_torchs():
    weight = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    before = weight.detach().clone()
    weight.grad = torch.tensor([3.0, -1e-6, 1e-9, 0.0, -2.0], dtype=torch.float64)
    torch.optim.AdamW([weight], lr=0.01, weight_decay=0.0).step()
    step = first_order.adamw_step({"w": -weight.grad}, 0.01)["w"]
    torch.testing.assert_close(weight.detach() - before, step, rtol=1e-9, atol=1e-15)


def test_layers_carry_parts_of_one_whole(answers):
    rows = answers["g"].rows
    assert sorted(rows.layer.unique()) == [1, 2, 3, 4]
    assert (rows.groupby("seed").part.sum().abs() <= 1 + 1e-9).all()
    assert (rows.groupby("seed").whole.nunique() == 1).all()
    np.testing.assert_allclose(rows.excess, rows.cosine - rows.same_target)


def test_the_flow_turns_at_minus_one_half_whatever_was_trained(answers):
    rows = answers["i"].rows
    assert (rows.rho == np.cos(1 + rows.delta)).all()
    assert ((rows.limit > 0.5) == (rows.rho > -0.5)).all()
    assert rows.off.max() < 1e-8
    assert rows.rho.between(-0.5, 0).any()
    assert "rope seed 0, rope seed 1." in answers["i"].says
    np.testing.assert_allclose(rows.flow, 1 / 52, atol=1e-3)  # before training chance is the letters', as it is of P


def test_training_shows_one_distance_and_asks_every_one():
    data = flow.one_distance(5)
    fact = data.facts[0]
    assert fact.forward == ("{a}{b}000", "0{a}{b}00", "00{a}{b}0", "000{a}{b}")
    assert fact.reverse == ("{b}{a}000", "{b}0{a}00", "{b}00{a}0", "{b}000{a}")


def test_the_split_adds_up_to_what_autograd_finds(monkeypatch):
    monkeypatch.setattr(split, "PAIRS", 4)
    answer = split.by_matrix(TINY)
    assert answer.rows.off.max() < 1e-12
    assert "negative: none; sign not decided: U, W_V" in answer.says
    assert "Not trained" in answer.says
    assert "attention-only seed 0, attention-only seed 1." in answer.says
    sums = answer.rows.groupby(["seed", "trained"]).share.sum()
    np.testing.assert_allclose(sums, 1.0, rtol=1e-10)
    start = answer.rows[answer.rows.trained == "before training"]
    assert not np.allclose(start.share, answer.rows[answer.rows.trained == "trained"].share)


def test_seeds_of_the_attention_only_model_are_the_same_in_workers():
    heard = []
    size = replace(TINY, workers=2, progress=lambda done, of: heard.append((done, of)))
    pd.testing.assert_frame_equal(split.by_matrix(size).rows, split.by_matrix(TINY).rows, rtol=1e-9)
    assert heard == [(1, 2), (2, 2)]


def test_a_seed_that_diverges_ends_its_question_by_name_and_no_other(tmp_path):
    wild = Cell("rope", {"encoding": "rope"}, TrainConfig(steps=3, lr=1e38, warmup=0, batch_size=4))
    with pytest.raises(TrainingError, match=r"rope: training diverged: .* seed 0"):
        list(trained([wild], TINY, TINY.letters()))
    hot = replace(TINY, train=replace(TRAIN, lr=1e38, warmup=0))
    diverged, other = (next(reviews(size, letter)) for size, letter in ((hot, "d"), (TINY, "e")))
    assert diverged.says.startswith("Not answered: rope, all: training diverged: ")
    assert "seed 0" in diverged.says
    save_answers([diverged, other], tmp_path)
    page = (tmp_path / "reviews.html").read_text()
    assert "Not drawn: the question wasn&#39;t answered." in page
    assert other.says in html.unescape(page)
    save_answer(diverged, tmp_path)
    assert pd.read_csv(tmp_path / "reviews-d-values.csv").empty


def test_a_command_whose_question_was_not_answered_fails_once_all_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rcprobe_plugins.studies.reviews.command.QUICK", replace(TINY, train=replace(TRAIN, lr=1e38)))
    monkeypatch.setattr("rcprobe_plugins.studies.reviews.command.cores", lambda: 1)
    with pytest.raises(TrainingError, match="not answered: d; a training diverged"):
        reproduce.command("reviews", question="d", quick=True, as_json=True, out=tmp_path)
    (told,) = json.loads(capsys.readouterr().out)["reviews"]
    assert "training diverged" in told["says"]
    assert (tmp_path / "reviews.html").exists()


def test_the_answers_are_one_table_in_latex(answers, tmp_path):
    save_answers(list(answers.values()), tmp_path)
    table = (tmp_path / "reviews.tex").read_text()
    assert all(f"\n{letter} & " in table for letter in answers)
    body = [line for line in table.splitlines() if not line.startswith("%")]
    assert not {character for line in body for character in line if ord(character) > 255} - set("–’")


def test_a_table_has_a_row_for_each_cell_seed_and_step():
    cell = Cell("here", {"encoding": "nope"}, TINY.train)
    rows = table([cell], TINY, TINY.letters(), lambda m, data: {"n": 1.0}, every=True)
    assert rows[["cell", "seed", "step"]].values.tolist() == [["here", s, k] for s in (0, 1) for k in (0, 6, 8)]


def test_differences_are_taken_within_seeds():
    rows = pd.DataFrame({"cell": ["x", "x", "y", "y"], "seed": [0, 1, 1, 0], "v": [1.0, 5.0, 4.0, 0.0]})
    assert paired(rows, "v", "x", "y").value == 1.0
    assert paired(rows, "v", "x", "y").high == 1.0
    drawn = series(rows, "v", "label", "forward")
    assert drawn.seeds == {0: (1.0, 0.0), 1: (5.0, 4.0)}
    assert [point.value for point in drawn.points] == [3.0, 2.0]


def test_what_the_data_do_not_decide_is_said():
    words = ("up", "down", "which")
    assert verdict(over_seeds([1.0, 1.1, 0.9, 1.0, 1.2]), *words) == "up"
    assert verdict(over_seeds([-1.0, -1.1, -0.9, -1.0, -1.2]), *words) == "down"
    assert verdict(over_seeds([-1.0, 1.1, -0.9, 1.0, 0.2]), *words) == "the data don't decide which"
    assert verdict(over_seeds([1.0, 1.1, 0.9, 1.0]), *words) == "4 seeds don't decide which (5 are needed)"
    assert said(over_seeds([1.0, 2.0, 3.0])) == "2.00 [−0.48, 4.48]"
    assert said(over_seeds([1.0])) == "1.00 (no interval from 1 seed)"
    assert said(over_seeds([math.nan])) == "undefined"
    assert said(over_seeds([-1.0, math.nan])) == "−1.00 (no interval from 1 seed) (1 seed undefined)"
    assert said(over_seeds([-1.0, -1.0, math.nan])) == "−1.00 [−1.00, −1.00] (1 seed undefined)"


def test_an_unknown_question_is_refused_before_anything_is_trained():
    with pytest.raises(UnknownNameError, match="no question is called 'z'"):
        reviews(TINY, "ez")
    assert list(QUESTIONS) == list("abcdefghi")


def test_the_command_prints_sentences_and_keeps_values_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("rcprobe_plugins.studies.reviews.command.QUICK", TINY)
    monkeypatch.setattr("rcprobe_plugins.studies.reviews.command.cores", lambda: 1)
    folder = tmp_path / "kept"
    cli = typer.Typer()
    cli.command()(reproduce.command)
    arguments = ["reviews", "--question", "e", "--quick", "--json", "--out", str(folder)]
    found = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    (said_,) = json.loads(found.stdout)["reviews"]
    assert said_["question"] == "e"
    assert {path.name for path in folder.iterdir()} == {
        *(f"reviews-e{end}" for end in (".json", ".csv", "-values.csv", ".svg", ".png", ".pdf")),
        *("reviews.tex", "reviews.html"),
    }
    assert len(pd.read_csv(folder / "reviews-e-values.csv")) == 14


def test_rank_correlations_are_over_models_with_encodings_resampled():
    p = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    frame = pd.DataFrame({"cell": list("aabbcc"), "reverse P": p, "up": p, "flat": 1.0})
    found = layers._rank(frame.assign(up=[1, 2, 30, 40, 500, math.nan]), frame, "up")
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert found.n == 3
    assert math.isnan(layers._rank(frame, frame, "flat").value)


def test_scores_that_mirror_by_identity_have_no_say_in_routing():
    p = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    frame = pd.DataFrame({"cell": ["a", "a", "b", "b", "turned-values", "turned-values"], "reverse P": p[:4] + p[:2]})
    frame = frame.assign(routing=[1.0, 2.0, 3.0, 4.0, 9.0, 9.0], matched=[1.0, 2.0, 3.0, 4.0, 9.0, 9.0])
    assert layers._rank(frame, frame, "routing").value == pytest.approx(1.0)
    assert layers._rank(frame, frame, "matched").value < 0.9


def test_slopes_are_by_doubling():
    rows = pd.DataFrame({"seed": [0, 0, 0, 1, 1, 1], "depth": [1, 2, 8] * 2, "v": [0.0, 1.0, 3.0, 2.0, 1.5, 0.5]})
    assert variants._slopes(rows, "v") == pytest.approx([1.0, -0.5])
