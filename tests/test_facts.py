import itertools
import random

import pytest

from rcprobe.errors import DataError
from rcprobe.facts import Dataset, Fact, Query, QueryPair, clusters

# --- facts and their statements ---


def test_a_fact_takes_one_template_or_several():
    one = Fact("Ann", "Bob", forward="{a}'s child is {b}.", reverse="{b}'s parent is {a}.")
    assert one.forward == ("{a}'s child is {b}.",)
    assert one.reverse == ("{b}'s parent is {a}.",)
    several = Fact("Ann", "Bob", forward=("{a} {b}", "{a}, {b}"), reverse=("{b} {a}", "{b}, {a}"))
    assert several.forward == ("{a} {b}", "{a}, {b}")
    assert several.reverse == ("{b} {a}", "{b}, {a}")


def test_other_answers_may_be_given_as_one_text():
    fact = Fact("Ann", "Bob", "{a} {b}", "{b} {a}", a_answers="Dan", b_answers="Eve")
    assert fact.a_answers == ("Dan",)
    assert fact.b_answers == ("Eve",)


@pytest.mark.parametrize(
    ("direction", "template", "complaint"),
    [
        ("forward", "{b} of {a}", "must put {a} before {b}"),
        ("reverse", "{a} of {b}", "must put {b} before {a}"),
        ("forward", "{a} alone", "needs the slots {a} and {b}, once each"),
        ("forward", "{b} alone", "needs the slots {a} and {b}, once each"),
        ("forward", "{a} {a} {b}", "once each"),
        ("reverse", "{b} {a} {b}", "once each"),
        ("reverse", "nothing", "once each"),
        ("forward", "{A} and {B}", "once each"),
    ],
)
def test_templates_in_the_wrong_order_or_without_slots(direction, template, complaint):
    templates = {"forward": "{a} {b}", "reverse": "{b} {a}", direction: template}
    with pytest.raises(DataError) as caught:
        Fact("Ann", "Bob", **templates)
    assert complaint in str(caught.value)
    assert direction in str(caught.value)
    assert repr(template) in str(caught.value)
    good = "{a} {b}" if direction == "forward" else "{b} {a}"
    templates = {"forward": ("{a} {b}",) * 2, "reverse": ("{b} {a}",) * 2, direction: (good, template)}
    with pytest.raises(DataError, match=r"once each|must put"):  # the second template is looked at too
        Fact("Ann", "Bob", **templates)


@pytest.mark.parametrize(("forward", "reverse"), [((), ()), (("{a} {b}",) * 2, ("{b} {a}",)), ((), ("{b} {a}",))])
def test_templates_come_in_pairs(forward, reverse):
    with pytest.raises(DataError, match=f"{len(forward)} forward and {len(reverse)} reverse"):
        Fact("Ann", "Bob", forward, reverse)


@pytest.mark.parametrize(("a", "b"), [("", "Bob"), ("Ann", ""), (" ", "Bob"), ("Ann", "\t\n")])
def test_a_fact_needs_two_entities(a, b):
    with pytest.raises(DataError, match="two entities"):
        Fact(a, b, "{a} {b}", "{b} {a}")


def test_statements_and_their_spans():
    fact = Fact("Ann", "Bob", ("{a}'s child is {b}.", "{a}{b}"), ("{b} is of {a}", "So {b}, says {a}!"))
    assert fact.statement("forward") == ("Ann's child is Bob.", (0, 3), (15, 18))
    assert fact.statement("forward", 1) == ("AnnBob", (0, 3), (3, 6))
    assert fact.statement("reverse") == ("Bob is of Ann", (10, 13), (0, 3))
    assert fact.statement("reverse", 1) == ("So Bob, says Ann!", (13, 16), (3, 6))


@pytest.mark.parametrize(("a", "b"), [("{b}", "{a}"), ("{a}", "x"), ("an", "banana an"), ("b}", "{"), ("é", "日本")])
def test_spans_are_those_of_the_slots_whatever_the_entities_look_like(a, b):
    fact = Fact(a, b, "an {a} an {b} an", "{{b}} an {a}}")
    text, (a0, a1), (b0, b1) = fact.statement("forward")
    assert text == "an " + a + " an " + b + " an"
    assert (text[a0:a1], text[b0:b1], a0, b0) == (a, b, 3, 3 + len(a) + 4)
    text, (a0, a1), (b0, b1) = fact.statement("reverse")
    assert text == "{" + b + "} an " + a + "}"
    assert (text[a0:a1], text[b0:b1], b0, a0) == (a, b, 1, 1 + len(b) + 5)


# --- queries and pairs ---


def query(direction="forward", ids=6, targets=1, rows=(2,), evidence=(4,), **others):
    return Query(direction, "", "t", "e", (0,) * ids, (1,) * targets, rows, evidence, **others)


def pair(forward=None, reverse=None, template=0):
    forward, reverse = forward or query(), reverse or query("reverse", rows=(4,), evidence=(1,))
    return QueryPair(0, template, "same_target", forward, reverse, 0, True)


def test_distances_are_signed_from_the_row_to_the_evidence():
    assert query(rows=(2, 3), targets=2, evidence=(4, 5)).offset == 2
    assert query(rows=(4,), evidence=(1, 2)).offset == -3
    assert pair().distances == (2, 3)
    crossed = pair(query(rows=(4,), evidence=(1,)), query("reverse", rows=(0,), evidence=(3,)))
    assert crossed.distances == (-3, -3)


def test_a_stratum_is_template_counts_distances_and_lengths():
    usual = pair()
    assert usual.stratum == pair().stratum
    others = [
        pair(template=1),
        pair(query(rows=(1,))),
        pair(query(targets=2, rows=(2, 3))),
        pair(query(evidence=(4, 5))),
        pair(query(ids=7)),
        pair(reverse=query("reverse", rows=(5,), evidence=(1,))),
        pair(reverse=query("reverse", rows=(4, 5), targets=2, evidence=(1,))),
        pair(reverse=query("reverse", rows=(4,), evidence=(1, 2))),
        pair(reverse=query("reverse", ids=5, rows=(4,), evidence=(1,))),
    ]
    assert len({p.stratum for p in (usual, *others)}) == 1 + len(others)
    # what is asked doesn't matter, where it stands does
    assert pair(query(other_answers=((3,),))).stratum == usual.stratum


def test_a_pair_is_unsupported_if_either_query_is():
    assert pair().unsupported is None
    broken = query("reverse", unsupported="too long")
    assert pair(reverse=broken).unsupported == "reverse query, too long"
    assert pair(query(unsupported="cut"), broken).unsupported == "forward query, cut"


# --- datasets ---

FACTS = tuple(Fact(a, b, "{a} {b}", "{b} {a}") for a, b in zip("abc", "xyz", strict=True))


def test_a_dataset_can_be_cut_short():
    dataset = Dataset("few", FACTS, {"letters": (("a", "b"),)}, "seed")
    assert dataset.limited(None) is dataset
    cut = dataset.limited(2)
    assert (cut.name, cut.facts, cut.readings, cut.replicate) == ("few", FACTS[:2], dataset.readings, "seed")
    assert dataset.limited(9).facts == FACTS
    for limit in (0, -1):
        with pytest.raises(DataError, match=f"limit {limit} leaves no facts"):
            dataset.limited(limit)
    with pytest.raises(DataError, match="dataset 'none' is empty"):
        Dataset("none", ())


# --- clusters ---


def fact(a, b, a_answers=(), b_answers=()):
    return Fact(a, b, "{a} {b}", "{b} {a}", a_answers=a_answers, b_answers=b_answers)


def test_facts_that_share_an_entity_are_one_cluster():
    assert clusters([fact("Ann", "Bob"), fact("Cid", "Dee"), fact("Bob", "Eve")]) == [0, 1, 0]
    assert clusters([fact("Ann", "Bob"), fact("Ann", "Dee"), fact("Fay", "Gil")]) == [0, 0, 1]
    assert clusters([fact("Ann", "Kid"), fact("Dan", "Kid")]) == [0, 0]


def test_an_entity_may_stand_on_the_other_side():
    assert clusters([fact("Ann", "Bob"), fact("Bob", "Ann"), fact("x", "Ann")]) == [0, 0, 0]


def test_other_answers_join_clusters():
    assert clusters([fact("Ann", "Kid", a_answers=("Dan",)), fact("Dan", "Foe"), fact("u", "v")]) == [0, 0, 1]
    assert clusters([fact("Ann", "Kid", b_answers=("Tim",)), fact("u", "v", a_answers=("Tim",))]) == [0, 0]


def test_clusters_are_joined_through_a_chain_met_late():
    chain = [fact("a", "b"), fact("c", "d"), fact("e", "f"), fact("b", "c"), fact("d", "e")]
    assert clusters(chain) == [0] * 5


def test_case_tells_entities_apart_and_outer_space_does_not():
    assert clusters([fact("a", "A"), fact("b", "B")]) == [0, 1]
    assert clusters([fact("a", "x"), fact("A", "y")]) == [0, 1]
    assert clusters([fact("Ann ", "x"), fact(" Ann", "y")]) == [0, 0]


def test_clusters_equal_connected_components_found_by_brute_force():
    draw = random.Random(0)
    for _ in range(20):
        names = [f"n{k}" for k in range(14)]
        facts = [fact(*draw.sample(names, 2), a_answers=tuple(draw.sample(names, k % 2))) for k in range(9)]
        sets = [{f.a, f.b, *f.a_answers} for f in facts]
        joined = [{i} for i in range(9)]
        for _, i, j in itertools.product(range(9), range(9), range(9)):
            if sets[i] & sets[j] and joined[i] is not joined[j]:
                whole = joined[i] | joined[j]
                for k in whole:
                    joined[k] = whole
        found = clusters(facts)
        for i, j in itertools.product(range(9), repeat=2):
            assert (found[i] == found[j]) is (j in joined[i])
        assert sorted(set(found)) == list(range(max(found) + 1))
