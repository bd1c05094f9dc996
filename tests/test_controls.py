import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch

from rcprobe.controls import BLOCK, assign, other_targets
from rcprobe.facts import Fact, clusters
from rcprobe.loaded import LoadedModel
from rcprobe.queries import encode
from rcprobe_plugins.datasets.letters import letters
from rcprobe_plugins.models.radd import Radd

ALPHABET = "0 .,abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
PARENT = (("{a} is a parent of {b}.", "{a}, of {b}"), ("{b} is a child of {a}.", "{b}, of {a}"))
NAMES = tuple("Ann Bob Cid Dan Eve Fay Gil Hal Ida Jim Kim Lea Max Ned Ola Pam".split())  # noqa: SIM905
MANY = tuple("".join(name) for name in itertools.product("ABCDEFGH", "aeiou", "lr"))  # 80 of three letters


@cache
def model():
    options = {**Radd.tiny, "alphabet": ALPHABET, "max_length": 64}
    return LoadedModel(Radd.build(options), Radd(), Radd.default_tokenizer(options), "a test")


def family(pairs, templates=PARENT, **others):
    return [Fact(a, b, *templates, **others) for a, b in pairs]


def two_by_two(names):
    return list(zip(names[::2], names[1::2], strict=True))


def asked(facts, pairing="same_target"):
    return encode(model(), facts, pairing)


def met(assignment, kind=None):
    """For each pair, the partners it has for controls of a kind."""
    columns = [k for k, name in enumerate(assignment.kinds) if kind in (None, name)]
    return [[j for j in row if j >= 0] for row in assignment.partner[:, columns].tolist()]


# --- partners ---


@pytest.mark.parametrize("pairing", ["same_target", "swapped"])
def test_partners_are_of_the_same_stratum_and_another_cluster(pairing):
    facts = [
        *family(two_by_two(NAMES)),
        *family([("Anna", "Tom"), ("Berta", "Kay"), ("Cleo", "Liv")]),  # other lengths
        *family([("Ann", "Tim")]),  # Ann's second child
    ]
    pairs = asked(facts, pairing)
    numbers = clusters(facts)
    found = met(assign(pairs, 100), "other_fact")
    assert len(found) == len(pairs)
    for i, own in enumerate(found):
        fits = {
            j
            for j, other in enumerate(pairs)
            if other.stratum == pairs[i].stratum and numbers[other.fact] != numbers[pairs[i].fact]
        }
        assert set(own) == fits
        assert len(own) == len(fits)
        assert {pairs[j].template for j in own} <= {pairs[i].template}
    first = {p.fact: {pairs[j].fact for j in own} for p, own in zip(pairs, found, strict=True) if p.template == 0}
    assert first[0] == set(range(1, 8))  # neither itself, nor Ann's other child, nor longer names
    assert (first[8], first[9]) == ({10}, set())  # Anna – Tom: Cleo – Liv alone; Berta: nobody


def test_no_partner_shares_a_word():
    names = "Ann Roe|Tom Lee|Bob Poe|Tim Lee|Cid Lee|Jim Fox|Dan Doe|Max Fay|Eve ROE|Sam Hal"
    facts = family(two_by_two(names.split("|")))
    pairs = [p for p in asked(facts) if p.template == 0]
    assert len({p.stratum for p in pairs}) == 1
    assert len(set(clusters(facts))) == 5
    # Lee is shared by 0, 1 and 2, on either side; Roe by 0 and 4 (in capitals)
    expected = [{3}, {3, 4}, {3, 4}, {0, 1, 2, 4}, {1, 2, 3}]
    found = assign(pairs, 9)
    assert [set(own) for own in met(found, "other_fact")] == expected
    for kind in ("same_target", "other_target"):
        assert all(set(own) <= free for own, free in zip(met(found, kind), expected, strict=True))
        assert any(met(found, kind))


def test_no_partner_is_related_through_others():
    names = "Ann Bob|Bob Cid|Cid Dan|Eve Fay"
    facts = family(tuple(pair.split()) for pair in names.split("|"))
    pairs = [p for p in asked(facts) if p.template == 0]
    # Ann – Bob and Cid – Dan share no word, but a chain of facts joins them
    assert [set(own) for own in met(assign(pairs, 9), "other_fact")] == [{3}, {3}, {3}, {0, 1, 2}]


def test_no_partner_shares_a_word_with_another_right_answer():
    facts = [
        Fact("Ann Roe", "Tom Lee", *PARENT, a_answers=("Zoe Fox",)),
        Fact("Max Fox", "Tim Poe", *PARENT),
        Fact("Dan Doe", "Kim Fay", *PARENT),
    ]
    pairs = [p for p in asked(facts) if p.template == 0]
    assert [set(own) for own in met(assign(pairs, 9), "other_fact")] == [{2}, {2}, {0, 1}]


def test_kinds_and_how_many_there_are():
    pairs = asked(family(two_by_two(NAMES)))
    counts = {}
    for count in (*range(9), 16):
        found = assign(pairs, count)
        assert len(found.kinds) == count
        assert found.partner.shape == (len(pairs), count)
        counts[count] = tuple(found.kinds.count(kind) for kind in ("same_target", "other_target", "other_fact"))
        assert (found.partner[:, :8] >= 0).all()  # seven others are enough for these
        for kind in set(found.kinds):
            assert all(len(own) == len(set(own)) for own in met(found, kind))
    assert counts[0] == (0, 0, 0)
    assert counts[1] == (0, 0, 1)
    assert [counts[k] for k in (2, 3, 4, 8)] == [(1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 6)]


def test_one_relabelled_prompt_serves_two_pairs():
    """In round r, i's reverse prompt asked for j's target: another target for i, other evidence for j."""
    pairs = asked(family(two_by_two(NAMES)))
    found = assign(pairs, 16)
    assert found.kinds[:4] == ("same_target", "other_target") * 2
    for r in range(found.rounds):
        same, other = found.partner[:, 2 * r].tolist(), found.partner[:, 2 * r + 1].tolist()
        for j, i in enumerate(same):
            assert other[i] == j


def test_one_lender_gives_the_whole_two_by_two():
    """The evidence of ``same_target`` is also met with its own target, so that its readings serve twice."""
    found = assign(asked(family(two_by_two(NAMES))), 8)
    assert torch.equal(found.partner[:, 0], found.partner[:, 2])
    assert found.kinds[2] == "other_fact"


def test_a_lender_that_two_pairs_want_lends_to_one():
    names = "Ann Roe|Tom Lee|Bob Poe|Tim Lee|Cid Hay|Jim Fox"
    facts = family(two_by_two(names.split("|")))  # the first two share a word: both can take the third alone
    pairs = [p for p in asked(facts) if p.template == 0]
    found = assign(pairs, 2)
    same, other = found.partner.T.tolist()
    assert other[:2] == [2, 2]
    assert other[2] in (0, 1)
    assert same[2] in (0, 1)
    assert sorted((same[0], same[1])) == [-1, 2]
    assert same[other[2]] == 2


def test_controls_follow_from_the_seed_alone():
    pairs = asked(family(two_by_two(NAMES)))
    assert torch.equal(assign(pairs, 4, seed=1).partner, assign(pairs, 4, seed=1).partner)
    assert torch.equal(assign(pairs, 4).partner, assign(pairs, 4, seed=0).partner)
    assert len({str(assign(pairs, 4, seed=seed).partner.tolist()) for seed in range(5)}) == 5


def test_a_fact_meets_the_same_partners_at_every_template():
    pairs = asked(family(two_by_two(NAMES)))
    partner = assign(pairs, 8).partner.tolist()
    for fact in range(8):
        first, second = ([pairs[j].fact for j in row] for row, p in zip(partner, pairs, strict=True) if p.fact == fact)
        assert first == second
        assert fact not in first


def test_every_pair_serves_equally_often():
    pairs = [p for p in asked(family(two_by_two(NAMES))) if p.template == 0]
    found = assign(pairs, 8)
    for kind in set(found.kinds):
        served = sorted(itertools.chain(*met(found, kind)))
        assert served == sorted(list(range(8)) * found.kinds.count(kind))


def test_what_cannot_be_asked_has_no_partners_and_is_none():
    facts = family(two_by_two(NAMES[:8]))
    facts[1] = Fact("Zoé", "Pam", *PARENT)
    found = assign(asked(facts), 8)
    assert (found.partner[2:4] == -1).all()
    assert not torch.isin(found.partner, torch.tensor([2, 3])).any()
    assert sorted(itertools.chain(*found.blocks)) == [0, 1, 4, 5, 6, 7]
    assert [len(set(own)) for own in met(found)] == [2, 2, 0, 0, 2, 2, 2, 2]
    assert assign([], 3).partner.shape == (0, 3)
    nothing = assign(asked(facts[1:2]), 3)
    assert (nothing.partner == -1).all()
    assert nothing.blocks == ()


def test_letters_meet_other_letters_at_their_placement():
    pairs = asked(letters(length=3).facts)
    for i, own in enumerate(met(assign(pairs, 100), "other_fact")):
        assert len(own) == 25
        assert {pairs[j].template for j in own} == {pairs[i].template}
        assert pairs[i].fact not in {pairs[j].fact for j in own}


# --- blocks and batches ---


def test_blocks_part_the_pairs_and_hold_their_partners():
    facts = family(two_by_two(MANY), ("{a} {b}", "{b} {a}"))
    pairs = asked(facts)
    assert len(pairs) == 40 > BLOCK
    found = assign(pairs, 8)
    assert sorted(itertools.chain(*found.blocks)) == list(range(40))
    assert sorted(len(block) for block in found.blocks) == [20, 20]
    home = {i: n for n, block in enumerate(found.blocks) for i in block}
    for i, own in enumerate(met(found)):
        assert {home[j] for j in own} == {home[i]}
    assert (found.partner >= 0).all()


def test_batches_are_whole_blocks():
    short, long = ("{a} {b}", "{b} {a}"), ("{a} is of {b}", "{b} is of {a}")
    facts = [*family(two_by_two(MANY), short), *family(two_by_two(MANY[:12]), long)]
    found = assign(asked(facts), 4)
    assert sorted(len(block) for block in found.blocks) == [6, 20, 20]
    for blocks in (found.blocks[:1], found.blocks[1:]):
        batch = list(itertools.chain(*blocks))
        inside = found.within(batch)
        assert inside.kinds == found.kinds
        assert inside.rounds == found.rounds
        for n, i in enumerate(batch):
            assert [batch[j] for j in inside.partner[n].tolist()] == found.partner[i].tolist()


def test_a_missing_partner_is_missing_within_a_batch():
    pairs = asked(family([("Ann", "Bob"), ("Berta", "Kay")]))
    found = assign(pairs, 4)
    assert (found.within([i for block in found.blocks for i in block]).partner == -1).all()


# --- other targets ---


def ids(text):
    return tuple(model().tokenizer(text)["input_ids"])


@pytest.mark.parametrize("pairing", ["same_target", "swapped"])  # both ask the reverse query for a
def test_other_targets_have_as_many_tokens_and_are_neither_right_nor_untrained(pairing):
    facts = [
        Fact("Ann", "Bob", *PARENT, a_answers=("Dan", "Noone")),
        Fact("Dan", "Bob", *PARENT),
        Fact("Eve", "Fay", *PARENT),
        Fact("Gil", "Hal", *PARENT, trained=False),
        Fact("Berta", "Kim", *PARENT),
        Fact("Zoé", "Lea", *PARENT),
        Fact("Eve", "Max", *PARENT),
    ]
    pairs = asked(facts, pairing)
    others = other_targets(pairs)
    assert {p.fact: set(own) for p, own in zip(pairs, others, strict=True)} == {
        0: {ids("Eve")},  # Dan is right too
        1: {ids("Ann"), ids("Eve")},
        2: {ids("Ann"), ids("Dan")},
        3: {ids("Ann"), ids("Dan"), ids("Eve")},  # itself held out, asked against what was trained
        4: set(),
        5: set(),
        6: {ids("Ann"), ids("Dan")},
    }
    assert all(len(own) == len(set(own)) for own in others)


def test_other_targets_are_cut_as_their_template_cuts_them():
    """As where " Oslo" after a blank is another token than "Oslo" on a new line."""
    facts = [Fact(a, b, ("{a} {b}", "{a} {b}"), ("{b} {a}", "{b} {a}")) for a, b in (("Ann", "Bob"), ("Eve", "Fay"))]
    pairs = [
        replace(p, reverse=replace(p.reverse, target_ids=tuple(100 * p.template + i for i in p.reverse.target_ids)))
        for p in asked(facts)
    ]
    of = {(p.fact, p.template): p.reverse.target_ids for p in pairs}
    assert other_targets(pairs) == [(of[1 - p.fact, p.template],) for p in pairs]


def test_other_targets_of_letters_are_the_25_others():
    pairs = asked(letters(length=3).facts)
    for pair, own in zip(pairs, other_targets(pairs), strict=True):
        assert len(own) == 25
        assert pair.reverse.target_ids not in own
    assert other_targets([]) == []
