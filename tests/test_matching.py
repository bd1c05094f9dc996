"""When a text is an answer."""

import pytest

from rcprobe.matching import Match, match

RIGHT = Match(True, True, True, True)
WRONG = Match(False, False, False, False)


def test_an_answer_of_marks_alone_is_written_as_it_stands_or_not_at_all():
    assert match("", ["?!"]) == match("Oslo.", ["?!"]) == WRONG
    assert match(" ?! ", ["?!"]) == Match(True, False, False, False)


def test_case_tells_answers_apart_where_it_must():
    assert match("D", ["d"], cased=True) == WRONG
    assert match(" d.", ["d"], cased=True) == Match(False, True, True, True)


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("Paris", ["Paris"], RIGHT),
        (" paris\n", ["Paris"], RIGHT),
        ("ＰＡＲＩＳ", ["Paris"], RIGHT),  # NFKC
        ("Ann  Low.", ["Ann Low"], Match(False, True, True, True)),
        ("Paris!", ["Lyon", "Paris"], Match(False, True, True, True)),
        ("Paris, of course", ["Paris"], Match(False, False, True, True)),
        ("Parisian", ["Paris"], WRONG),
        ("It is Paris", ["Paris"], Match(False, False, False, True)),
        ("comparison", ["paris"], WRONG),
        ("x+y", ["x+y"], RIGHT),
        ("N'Djamena", ["N'Djamena"], RIGHT),
        ("Lima", ["Paris"], WRONG),
        ("", ["Paris"], WRONG),
        ("Paris", [""], WRONG),
        ("", [""], WRONG),
        ("Paris", [], WRONG),
    ],
)
def test_what_counts_as_an_answer(text, answers, found):
    assert match(text, answers) == found
