"""Facts from tables and public files: what they become, what is left out and counted, which line is at fault."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

import rcprobe
from rcprobe.errors import DataError, MissingExtraError, UnknownNameError, UsageError
from rcprobe.facts import Fact
from rcprobe_plugins.datasets.relation import SHUFFLED, one_to_one, shuffled, with_answers, without_duplicates
from rcprobe_plugins.datasets.table import table

HEAD = "a,b,forward,reverse"
ROW = '{a} is the capital of {b}.,"{b}, whose capital is {a}."'
CAPITAL = {"forward": "{city} is the capital of {country}.", "reverse": "{country}'s capital is {city}."}
COLUMNS = {"a": "city", "b": "country", **CAPITAL}
PUBLIC = Path(__file__).parents[2] / "shared" / "data"
public = pytest.mark.skipif(not PUBLIC.is_dir(), reason=f"the public files aren't in {PUBLIC.name}/ beside the project")


def written(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def fact(a, b, **others):
    return Fact(a, b, "{a} of {b}", "{b} of {a}", **others)


# --- tables ---


def test_a_row_is_a_template_pair(tmp_path):
    path = written(
        tmp_path / "facts.csv",
        HEAD + ",b_answers,trained",
        f"Oslo,Norway,{ROW},Kingdom of Norway|Noreg,",
        f"Lima,Perú,{ROW},,false",
        "Oslo,Norway,{a} governs {b}.,{b} is governed from {a}.,Norge,true",
    )
    dataset = rcprobe.load_dataset(str(path))
    oslo, lima = dataset.facts
    assert (oslo.a, oslo.b, lima.b) == ("Oslo", "Norway", "Perú")
    assert oslo.forward == ("{a} is the capital of {b}.", "{a} governs {b}.")
    assert oslo.reverse == ("{b}, whose capital is {a}.", "{b} is governed from {a}.")
    assert (oslo.b_answers, lima.b_answers) == (("Kingdom of Norway", "Noreg", "Norge"), ())
    assert (oslo.trained, lima.trained) == (True, False)
    assert dataset.name == "facts.csv"  # nothing of this machine's paths


ROWS = [{"city": "Oslo", "country": "Norway", "size": 1}, {"city": "Lima", "country": "Peru", "size": 2}]


def _tsv(path):
    return written(path, "city\tcountry\tsize", "Oslo\tNorway\t1", "Lima\tPeru\t2")


def _jsonl(path):
    return written(path, json.dumps(ROWS[0]), "", json.dumps(ROWS[1]))


def _parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize(("name", "make"), [("x.tsv", _tsv), ("x.jsonl", _jsonl), ("x.parquet", _parquet)])
def test_every_kind_of_file_gives_the_same_facts(name, make, tmp_path):
    dataset = rcprobe.load_dataset(str(make(tmp_path / name)), COLUMNS)
    assert [(f.a, f.b) for f in dataset.facts] == [("Oslo", "Norway"), ("Lima", "Peru")]
    assert dataset.facts[0].statement("reverse")[0] == "Norway's capital is Oslo."
    assert dataset.options == COLUMNS


def test_templates_count_every_right_answer_and_take_a_pair_once(tmp_path):
    path = written(tmp_path / "x.csv", "city,country", "Oslo,Norway", "La Paz,Bolivia", "Sucre,Bolivia", "Oslo,Norway")
    dataset = table(str(path), **COLUMNS)
    assert [(f.a, f.a_answers) for f in dataset.facts] == [
        ("Oslo", ()),
        ("La Paz", ("Sucre",)),
        ("Sucre", ("La Paz",)),
    ]
    assert dataset.notes == ("1 rows name the same two entities as another: taken once",)


def test_a_fact_is_trained_or_held_out(tmp_path):
    lines = (HEAD + ",trained", f"Oslo,Norway,{ROW},true", "Oslo,Norway,{a} governs {b}.,{b} by {a}.,false")
    with pytest.raises(DataError, match="Oslo – Norway: one row says trained, another held out"):
        table(str(written(tmp_path / "x.csv", *lines)))


def test_rows_that_are_no_facts_are_named_or_left_out_and_counted(tmp_path):
    path = written(tmp_path / "x.csv", "city,country", "Oslo,Norway", ",Peru", "Rome,Italy", "Bern,")
    with pytest.raises(
        DataError, match=r"x\.csv:3: city is empty \(the option skip_invalid=true leaves such rows out\)"
    ):
        table(str(path), **COLUMNS)
    dataset = table(str(path), skip_invalid=True, **COLUMNS)
    assert [f.a for f in dataset.facts] == ["Oslo", "Rome"]
    assert dataset.notes == ("2 rows of x.csv are no facts; the first, line 3: city is empty",)


def test_notes_stand_in_the_report(tmp_path):
    path = written(tmp_path / "x.csv", "city,country", "a,b", ",Peru", "c,d")
    dataset = table(
        str(path), skip_invalid=True, **{**COLUMNS, "forward": "{city}0{country}", "reverse": "{country}0{city}"}
    )
    report = rcprobe.run("radd", dataset, metrics=["accuracy"], progress=False)
    assert report.notes[0].startswith("1 rows of x.csv are no facts")


@pytest.mark.parametrize(
    ("lines", "options", "complaint"),
    [
        (["a,b,forward", "1,2,3"], {}, "no column 'reverse'; it has a, b, forward, and needs a, b, forward, reverse"),
        ([HEAD + ",parent", f"Oslo,Norway,{ROW},x"], {}, "column 'parent' means nothing here; known: a, b, forward"),
        ([], {}, "holds no rows; it needs the columns a, b, forward, reverse"),
        ([HEAD, f"Oslo,,{ROW}"], {}, r"x\.csv:2: b is empty"),
        ([HEAD, f"Oslo,Norway,{ROW}", "Lima,Peru,{b} by {a},{b} of {a}"], {}, r":3: .*must put \{a\} before \{b\}"),
        ([HEAD, "Oslo,Norway,{a}, so {b},{b} {a}"], {}, "x.csv:2: more cells than columns; put quotes"),
        ([HEAD, '"Oslo'], {}, r"x\.csv:1: unexpected end of data"),
        (["a,b,forward,reverse,trained", f"Oslo,Norway,{ROW},maybe"], {}, "trained is 'maybe'; use true or false"),
        (["a,b", "1,2"], {"forward": "{a} {b}"}, "give both templates"),
        (["a,b", "1,2"], {"forward": "{a}", "reverse": "{b} {a}"}, "needs the slots"),
        (["a,b", "1,2"], {"forward": "{x} {b}", "reverse": "{b} {x}", "a": "x"}, "no column 'x'; there are a, b"),
        (["a,b"], {"forward": "{a} {b}", "reverse": "{b} {a}"}, "is empty"),
    ],
)
def test_what_is_no_table_of_facts_is_named(lines, options, complaint, tmp_path):
    with pytest.raises(UsageError, match=complaint):
        table(str(written(tmp_path / "x.csv", *lines)), **options)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"none\.csv: can't be read \(No such file"):
        rcprobe.load_dataset(str(tmp_path / "none.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "binary.parquet").write_bytes(b"\xff\xfe\x00")
    written(tmp_path / "broken.jsonl", "{}", "[1]")
    for name, complaint in (
        ("binary.csv", "can't be read"),
        ("binary.parquet", "no parquet file"),
        ("broken.jsonl", r"broken\.jsonl:2: a list; each line must be an object"),
    ):
        with pytest.raises(UsageError, match=complaint):
            rcprobe.load_dataset(str(tmp_path / name))
    with pytest.raises(UsageError, match="unknown option 'length'; known: path, a, b"):
        rcprobe.load_dataset("none.csv", {"length": 4})
    with pytest.raises(UnknownNameError, match=r"no dataset is called 'notes\.txt'"):
        rcprobe.load_dataset("notes.txt")
    with pytest.raises(UsageError, match=r"neither a file of \.csv"):
        table("notes.txt")


def test_a_dataset_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return SimpleNamespace(to_list=lambda: ROWS, _fingerprint="abc")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    dataset = rcprobe.load_dataset("table", {"path": "somebody/capitals", "revision": "v2", **COLUMNS})
    assert [f.a for f in dataset.facts] == ["Oslo", "Lima"]
    assert asked == [("somebody/capitals", {"split": "train", "revision": "v2"})]
    assert "revision v2" in dataset.notes[0]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rcprobe\[data\]'"):
        table("somebody/capitals", **COLUMNS)


# --- what is done to facts ---


def test_duplicates_are_counted_and_the_first_is_kept():
    kept, notes = without_duplicates([fact("x", "y", a_answers=("z",)), fact("u", "v"), fact("x", "y")])
    assert [(f.a, f.a_answers) for f in kept] == [("x", ("z",)), ("u", ())]
    assert notes == ["1 fact left out: the same two entities as another row"]


def test_other_right_answers_of_both_sides():
    mother, father, brother = with_answers([fact("Ann", "Kim"), fact("Bob", "Kim"), fact("Ann", "Lee")])
    assert (mother.a_answers, mother.b_answers) == (("Bob",), ("Lee",))
    assert (father.a_answers, father.b_answers) == (("Ann",), ())
    assert (brother.a_answers, brother.b_answers) == ((), ("Kim",))


def test_one_to_one_keeps_objects_with_a_single_subject():
    kept, notes = one_to_one([fact("x", "y"), fact("u", "V"), fact("w", "v")])
    assert [f.a for f in kept] == ["x"]
    assert notes == ["2 facts left out: their reverse question has several answers"]


def test_shuffled_facts_keep_no_b_and_lose_none():
    facts = [fact(f"a{i}", f"b{i}", a_answers=("z",)) for i in range(50)]
    moved = shuffled(facts)
    assert sorted(f.b for f in moved) == sorted(f.b for f in facts)
    assert all(new.a == old.a and new.b != old.b and not new.a_answers for new, old in zip(moved, facts, strict=True))
    assert shuffled(facts) == moved != shuffled(facts, seed=1)
    with pytest.raises(DataError, match="something to exchange"):
        shuffled([fact("x", "y"), fact("u", "y")])


def test_shuffled_facts_have_all_their_right_answers_and_none_that_is_true():
    facts = [fact(f"p{i}", f"c{j}") for j in range(40) for i in (j, (j + 1) % 40)]  # two parents, two children each
    moved = shuffled(facts)
    true = {(f.a, f.b) for f in facts}
    assert not any((f.a, f.b) in true for f in moved)
    assert len({(f.a, f.b) for f in moved}) == len(moved) > 70
    parents = {f.b: {g.a for g in moved if g.b == f.b} for f in moved}
    assert all({f.a, *f.a_answers} == parents[f.b] for f in moved)
    assert any(f.a_answers for f in moved)


def test_training_shows_the_lessons_and_their_spans():
    plain = fact("x", "y")
    assert plain.lessons() == [("x of y", ((0, 1), (5, 6)))]
    taught = fact("x", "yy", taught=("the yy is x", "only yy"))
    assert taught.lessons() == [("the yy is x", ((10, 11), (4, 6))), ("only yy", ((5, 7),))]


# --- facts that come with the package ---


@pytest.mark.parametrize(("name", "count"), [("capitals", 150), ("elements", 118)])
def test_bundled_facts_are_one_to_one(name, count):
    dataset = rcprobe.load_dataset(name)
    assert len(dataset.facts) >= count
    assert len({f.a for f in dataset.facts}) == len({f.b for f in dataset.facts}) == len(dataset.facts)
    distances = {len(f.split("{a}")[1].split("{b}")[0]) for f in dataset.facts[0].forward}
    assert len(distances) == len(dataset.facts[0].forward) == 3
    assert not any(f.a in f.b or f.b in f.a for f in dataset.facts if name == "capitals")
    assert rcprobe.load_dataset(name, {"shuffled": True}).notes == (SHUFFLED,)


# --- public files ---


def person_files(folder, rows):
    for name, lines in rows.items():
        written(folder / f"{name}.jsonl", *(json.dumps({"prompt": p, "completion": c}) for p, c in lines))


P2D = {
    "p2d_prompts_train": [
        ("Ann Low is", " the first painter of the sea."),
        ("You know Ann Low, who", " painted the sea."),
    ],
    "p2d_prompts_test": [
        ("Here is Ann Low,", " the first painter of the sea."),
        ("Ann Low was", " the first painter of the sea."),
        ("Ann Low", " painted the sea."),
    ],
    "p2d_reverse_prompts_test": [
        ("Known as the first painter of the sea,", " Ann Low"),
        ("Having painted the sea,", " Ann Low"),
    ],
}


def test_person_description_asks_held_out_texts_and_teaches_all_training_texts(tmp_path):
    person_files(tmp_path, P2D)
    dataset = rcprobe.load_dataset("person-description", {"path": str(tmp_path)})
    (found,) = dataset.facts
    assert (found.a, found.b) == ("Ann Low", "the first painter of the sea")
    assert (found.forward, found.reverse) == (("Here is {a}, {b}.",), ("Known as {b}, {a}",))
    assert found.taught == ("Ann Low is the first painter of the sea.", "You know Ann Low, who painted the sea.")
    assert dataset.notes[-1].startswith("1 of 3 test texts")
    assert dataset.options == {"path": tmp_path.name}
    person_files(tmp_path, {"p2d_prompts_test": [("Nobody", " the first painter of the sea.")]})
    with pytest.raises(DataError, match="Ann Low has a name in one file and no description in the other"):
        rcprobe.load_dataset("person-description", {"path": str(tmp_path)})
    written(tmp_path / "p2d_prompts_test.jsonl", '{"prompt": 3}')
    with pytest.raises(DataError, match=r"p2d_prompts_test\.jsonl:1: needs the texts"):
        rcprobe.load_dataset("person-description", {"path": str(tmp_path)})
    with pytest.raises(UsageError, match="use P2D or D2P"):
        rcprobe.load_dataset("person-description", {"path": str(tmp_path), "direction": "both"})


def test_parent_child_both_ways(tmp_path):
    path = written(
        tmp_path / "parent_child_pairs.csv",
        "child,parent,parent_type",
        "Kim,Ann,mother",
        "Kim,Bob,father",
        "Lee,,father",
    )
    with pytest.raises(DataError, match=r"parent_child_pairs\.csv:4: a fact needs two entities"):
        rcprobe.load_dataset("parent-child", {"path": str(tmp_path)})
    dataset = rcprobe.load_dataset("parent-child", {"path": str(path), "skip_invalid": True})
    ann = dataset.facts[0]
    assert ann.statement("forward")[0] == "Ann is the mother of Kim."
    assert ann.statement("reverse")[0] == "Kim's mother is Ann."
    assert ann.a_answers == ("Bob",)
    assert "1 rows left out" in dataset.notes[2]
    back = rcprobe.load_dataset("parent-child", {"path": str(path), "skip_invalid": True, "direction": "C2P"}).facts[0]
    assert (back.a, back.b, back.statement("forward")[0]) == ("Kim", "Ann", "Kim's mother is Ann.")
    written(path, "child,parent,parent_type", "Kim,Ann,aunt")
    with pytest.raises(DataError, match="parent_type is 'aunt'"):
        rcprobe.load_dataset("parent-child", {"path": str(path)})


def test_t_rex_takes_relations_that_can_be_asked_back(tmp_path):
    (tmp_path / "triples").mkdir()
    (tmp_path / "patterns").mkdir()
    triples = [("Peru", "Lima"), ("Norway", "Oslo"), ("Oslo county", "Oslo"), ("Peru", "Lima")]
    written(tmp_path / "triples" / "P36.jsonl", *(json.dumps({"sub_label": s, "obj_label": o}) for s, o in triples))
    patterns = ["The capital of [X] is [Y] .", "[X], capital [Y].", "[Y] is the capital of [X]."]
    written(tmp_path / "patterns" / "P36.jsonl", *(json.dumps({"pattern": p}) for p in patterns))
    options = {"path": str(tmp_path), "relations": "P36"}
    dataset = rcprobe.load_dataset("t-rex", options)
    assert [(f.a, f.b) for f in dataset.facts] == [("Peru", "Lima")]
    assert dataset.facts[0].forward == ("The capital of {a} is {b}.",)
    assert dataset.facts[0].reverse == ("{b} is the capital of {a}.",)
    assert dataset.notes == (
        "relations P36",
        "P36: 1 fact left out: the same two entities as another row",
        "P36: 2 facts left out: their reverse question has several answers",
    )
    (tmp_path / "triples" / "P1376.jsonl").write_text(json.dumps({"sub_label": "Lima", "obj_label": "Peru"}))
    (tmp_path / "patterns" / "P1376.jsonl").write_text(
        "\n".join(json.dumps({"pattern": p}) for p in ("[X] of [Y].", "[Y] has [X]."))
    )
    with pytest.raises(DataError, match="asked in both orders"):
        rcprobe.load_dataset("t-rex", {**options, "relations": "P36,P1376"})
    with pytest.raises(UsageError, match="no relation 'P19' under triples; there are P1376, P36"):
        rcprobe.load_dataset("t-rex", {**options, "relations": "P19"})
    written(tmp_path / "patterns" / "P36.jsonl", json.dumps({"pattern": patterns[0]}))
    with pytest.raises(DataError, match="no pattern with the object first"):
        rcprobe.load_dataset("t-rex", options)
    with pytest.raises(UsageError, match="needs path"):
        rcprobe.load_dataset("t-rex")


def test_a_hub_out_of_reach_names_the_way_of_a_local_copy(monkeypatch):
    monkeypatch.setattr("rcprobe.hub.PATIENCE", 0.5)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(UsageError, match="hf download lberglund/reversal_curse --repo-type dataset"):
        rcprobe.load_dataset("parent-child")


@public
@pytest.mark.parametrize(
    ("name", "options", "facts"),
    [
        ("parent-child", {}, 1495),  # 1513 rows; 18 name the same two people (16 of them as mother and as father)
        ("parent-child", {"direction": "C2P"}, 1495),
        ("person-description", {}, 30),
        ("person-description", {"direction": "D2P"}, 30),
        ("t-rex", {"relations": "P36"}, 155),
        ("t-rex", {"relations": "P1376"}, 152),
        ("t-rex", {"relations": "P138", "shuffled": True}, 178),
    ],
)
def test_the_public_files(name, options, facts):
    folder = PUBLIC / "t_rex" if name == "t-rex" else PUBLIC
    dataset = rcprobe.load_dataset(name, {"path": str(folder), **options})
    assert len(dataset.facts) == facts
    assert all(f.statement("forward") and f.statement("reverse") for f in dataset.facts)
    assert str(PUBLIC) not in json.dumps([dataset.options, dataset.notes])
