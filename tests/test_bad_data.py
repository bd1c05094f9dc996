"""Facts in text that are wrong, odd or too long, on the command line: what is said, counted and left out."""

import json

import pytest
from test_cli import call, refused, strict

from rcprobe.facts import Fact
from rcprobe_plugins.datasets.relation import same_question
from rcprobe_plugins.datasets.table import table

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,"
MODEL = ("--option", f"alphabet={ALPHABET}", "--option", "max_length=40", "--option", "width=8", "--metric", "accuracy")
FULL = "full vocabulary"
HEAD = "a,b,forward,reverse"
ROW = "{a} of {b}.,{b} has {a}."
OSLO, LIMA = f"Oslo,Norway,{ROW}", f"Lima,Peru,{ROW}"


@pytest.fixture
def facts(tmp_path):
    def write(*rows, head=HEAD):
        path = tmp_path / "facts.csv"
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
        return str(path)

    return write


def ran(path, *options):
    done = call("run", "radd", path, *MODEL, *options, "--json")
    assert done.code in (0, None), done.err
    return strict(done.out)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (f"Lima,,{ROW}", "facts.csv:3: b is empty"),
        (f" ,Peru,{ROW}", "facts.csv:3: a is empty"),
        ("Lima,Peru,of {b}.,{b} has {a}.", "facts.csv:3: forward template 'of {b}.' needs the slots {a} and {b}"),
        ("Lima,Peru,{a} of {b}.,{b} has it.", "facts.csv:3: reverse template '{b} has it.' needs the slots"),
        ("Lima,Peru,{b} by {a}.,{b} has {a}.", "facts.csv:3: forward template '{b} by {a}.' must put {a} before {b}"),
        (f"Lima,Lima,{ROW}", "facts.csv:3: a and b are both 'Lima', so that the question holds its answer"),
        ("Lima,Peru", "facts.csv:3: forward is empty"),
    ],
)
def test_a_row_that_is_no_fact_is_named_with_file_and_line_or_left_out(row, said, facts):
    path = facts(OSLO, row, LIMA)
    assert said in refused("run", "radd", path, *MODEL)
    report = ran(path, "--data-option", "skip_invalid=true")
    assert report["info"]["facts"] == 2
    assert report["notes"][0].startswith("1 rows of facts.csv are no facts; the first, line 3: ")


def test_a_row_with_too_many_cells_is_refused_even_so(facts):
    path = facts(OSLO, "Lima,Peru,{a}, so {b}.,{b} has {a}.")
    said = refused("run", "radd", path, *MODEL, "--data-option", "skip_invalid=true")
    assert "facts.csv:3: more cells than columns; put quotes around" in said


def test_nothing_but_bad_rows_is_an_empty_dataset(facts):
    path = facts(f"Lima,,{ROW}")
    assert "empty" in refused("run", "radd", path, *MODEL, "--data-option", "skip_invalid=true")


def test_rows_that_repeat_others_are_counted_and_taken_once(facts):
    report = ran(facts(OSLO, LIMA, OSLO, OSLO))
    assert report["info"]["facts"] == 2
    assert "2 rows say the same as another: taken once" in report["notes"]
    shares = {(row["pairing"], row["direction"]): row["facts"] for row in report["shares"]}
    assert shares["swapped", "reverse"] == 2
    more = table(facts(OSLO, "Oslo,Norway,{a} in {b}.,{b} with {a}."))
    assert more.notes == ()  # another template pair of one fact repeats nothing
    assert len(more.facts[0].forward) == 2


def test_names_inside_each_other_are_counted(facts):
    path = facts(OSLO, f"Mexico City,Mexico,{ROW}", f"ab ba,ba ab,{ROW}")
    notes = ran(path)["notes"]
    assert "1 facts have every word of one name in the other (Mexico City – Mexico): that answer can be copied" in notes
    assert table(facts(OSLO, LIMA)).notes == ()


def test_names_of_the_same_tokens_are_asked_at_their_own_places(facts):
    report = ran(facts(f"ab,ba,{ROW}", f"aab,baa,{ROW}"))
    assert report["excluded"] == {"same_target": {}, "swapped": {}}


def test_prompts_longer_than_the_model_are_counted(facts):
    path = facts(OSLO, f"{'x' * 30},{'y' * 30},{ROW}")
    report = ran(path)
    why = {"forward query, it has 65 tokens, the model holds 40": 1}
    assert report["excluded"] == {"same_target": why, "swapped": why}
    assert {row["facts"] for row in report["shares"]} == {1}
    alone = refused("run", "radd", facts(f"{'x' * 30},{'y' * 30},{ROW}"), *MODEL)
    assert "2 pairs: forward query, it has 65 tokens, the model holds 40" in alone


def test_templates_without_a_slot_are_refused(facts):
    path = facts("Oslo,Norway", head="city,country")
    said = refused(
        "run", "radd", path, *MODEL, "--data-option", "a=city", "--data-option", "b=country",
        "--data-option", "forward=the capital of {country}", "--data-option", "reverse={country} has {city}",
    )  # fmt: skip
    assert "facts.csv: forward template 'the capital of {b}' needs the slots {a} and {b}, once each" in said


def test_a_name_that_the_tokenizer_cannot_read_is_counted(facts):
    report = ran(facts(OSLO, f"Lima,Perú,{ROW}"))
    assert [sum(reasons.values()) for reasons in report["excluded"].values()] == [1, 1]
    assert "tokenizer" in next(iter(report["excluded"]["swapped"]))


def test_right_answers_of_unlike_lengths_all_count(facts):
    path = facts(f"Oslo,Norway,{ROW},Christiania|O", f"Lima,Peru,{ROW},", head=f"{HEAD},a_answers")
    report = ran(path, "--metric", "answers")
    note = "1 of 2 facts have more than one right answer when asked reverse: accuracy and log p speak of the fact's own"
    assert any(said.startswith(note) for said in report["notes"])
    assert {row["reading"] for row in report["shares"]} == {FULL, *(f"written, {k}" for k in MATCHES)}
    assert {row["facts"] for row in report["shares"]} == {2}


MATCHES = ("exact", "loose", "prefix", "contains")


def test_a_relation_with_several_answers_in_reverse_counts_them_all(facts):
    many = table(facts(OSLO, f"Bergen,Norway,{ROW}", LIMA)).facts
    assert [fact.a_answers for fact in many] == [("Bergen",), ("Oslo",), ()]
    assert [fact.b_answers for fact in many] == [(), (), ()]
    report = ran(facts(OSLO, f"Bergen,Norway,{ROW}", LIMA))
    assert any(
        note.startswith("2 of 3 facts have more than one right answer when asked reverse") for note in report["notes"]
    )


def test_unlike_questions_about_one_thing_keep_their_own_answers():
    capital = Fact("Oslo", "Norway", "{a} governs {b}", "{b}, governed by {a}")
    rival = Fact("Bergen", "Norway", "{a} rains on {b}", "{b}, rained on by {a}")
    assert same_question([capital, rival]) == [capital, rival]


def test_a_json_line_that_is_none_is_named(tmp_path):
    path = tmp_path / "facts.jsonl"
    row = dict(zip(HEAD.split(","), ("Oslo", "Norway", "{a} of {b}.", "{b} has {a}."), strict=True))
    path.write_text(json.dumps(row) + "\n{broken\n", encoding="utf-8")
    assert "facts.jsonl:2: no JSON" in refused("run", "radd", str(path), *MODEL)
