"""Facts from CSV files: what they become, and which line is at fault."""

import pytest

import rcprobe
from rcprobe.errors import DataError, UnknownNameError, UsageError
from rcprobe.facts_file import read_facts

HEAD = "a,b,forward,reverse"
ROW = '{a} is the capital of {b}.,"{b}, whose capital is {a}."'


def written(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_row_is_a_template_pair(tmp_path):
    path = written(
        tmp_path / "facts.csv",
        HEAD + ",b_answers",
        f"Oslo,Norway,{ROW},Kingdom of Norway|Noreg",
        f"Lima,Perú,{ROW},",
        "Oslo,Norway,{a} governs {b}.,{b} is governed from {a}.,Norge",
    )
    dataset = rcprobe.load_dataset(str(path))
    oslo, lima = dataset.facts
    assert (oslo.a, oslo.b, lima.b) == ("Oslo", "Norway", "Perú")
    assert oslo.forward == ("{a} is the capital of {b}.", "{a} governs {b}.")
    assert oslo.reverse == ("{b}, whose capital is {a}.", "{b} is governed from {a}.")
    assert (oslo.b_answers, lima.b_answers) == (("Kingdom of Norway", "Noreg", "Norge"), ())
    assert dataset.name == "facts.csv"  # nothing of this machine's paths


def test_a_relative_path_is_kept_so_that_the_run_can_be_repeated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "facts.csv", HEAD, f"Oslo,Norway,{ROW}")
    assert rcprobe.load_dataset("data/facts.csv").name == "data/facts.csv"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["a,b,forward", "1,2,3"], "no column 'reverse'; it has a, b, forward, and needs a, b, forward, reverse"),
        ([HEAD + ",parent"], "column 'parent' means nothing here; known: a, b, forward"),
        ([], "no column 'a'; it has none"),
        ([HEAD, f"Oslo,,{ROW}"], r"facts\.csv, line 2: b is empty"),
        ([HEAD, f"Oslo,Norway,{ROW}", "Lima,Peru,{b} by {a},{b} of {a}"], r"line 3: .*must put \{a\} before \{b\}"),
        ([HEAD, "Oslo,Norway,{a}, so {b},{b} {a}"], "line 2: more cells than columns; put quotes"),
        ([HEAD], "is empty"),
    ],
)
def test_what_is_no_fact_is_named(lines, complaint, tmp_path):
    with pytest.raises((UsageError, DataError), match=complaint):
        read_facts(written(tmp_path / "facts.csv", *lines))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"none\.csv: can't be read as a CSV file of facts \(No such file"):
        rcprobe.load_dataset(str(tmp_path / "none.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.csv: can't be read"):
        rcprobe.load_dataset(str(tmp_path / "binary.csv"))
    with pytest.raises(UsageError, match="takes no options"):
        rcprobe.load_dataset(str(tmp_path / "none.csv"), {"length": 4})
    with pytest.raises(UnknownNameError):
        rcprobe.load_dataset("nothing")
