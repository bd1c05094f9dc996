"""What is done to the facts of one relation, wherever they were read."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rcprobe.errors import DataError
from rcprobe.facts import Fact


def without_duplicates(facts: Sequence[Fact]) -> tuple[list[Fact], list[str]]:
    """Facts of unlike entities, and a note that counts the others."""
    kept: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        kept.setdefault((fact.a, fact.b), fact)
    return list(kept.values()), _note(len(facts) - len(kept), "left out: the same two entities as another row")


def told_apart(facts: Sequence[Fact]) -> tuple[list[Fact], list[str]]:
    """Facts of two names; where both are one (Dubai is the capital of Dubai), the prompt gives the answer away."""
    kept = [fact for fact in facts if fact.a.casefold() != fact.b.casefold()]
    return kept, _note(len(facts) - len(kept), "left out: both entities have one name")


def with_answers(facts: Sequence[Fact]) -> list[Fact]:
    """Every other a of the same b, and b of the same a, counts as a right answer: a child has two parents."""
    of_b, of_a = defaultdict(list), defaultdict(list)
    for fact in facts:
        of_b[fact.b].append(fact.a)
        of_a[fact.a].append(fact.b)

    def others(known: Sequence[str], all_: Sequence[str], own: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*known, *(text for text in all_ if text != own)]))

    return [
        replace(
            fact,
            a_answers=others(fact.a_answers, of_b[fact.b], fact.a),
            b_answers=others(fact.b_answers, of_a[fact.a], fact.b),
        )
        for fact in facts
    ]


def same_question(facts: Sequence[Fact]) -> list[Fact]:
    """Where facts share a question to the letter, the answers of all of them are right."""
    asked: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        for template in fact.reverse:
            asked[template.replace("{b}", fact.b)].append(fact.a)
        for template in fact.forward:
            asked[template.replace("{a}", fact.a)].append(fact.b)

    def others(known: Sequence[str], questions: Sequence[str], own: str) -> tuple[str, ...]:
        found = [text for question in questions for text in asked[question] if text != own]
        return tuple(dict.fromkeys([*known, *found]))

    return [
        replace(
            fact,
            a_answers=others(fact.a_answers, [t.replace("{b}", fact.b) for t in fact.reverse], fact.a),
            b_answers=others(fact.b_answers, [t.replace("{a}", fact.a) for t in fact.forward], fact.b),
        )
        for fact in facts
    ]


def given_away(facts: Sequence[Fact]) -> list[str]:
    """A note that counts facts of which one name holds every word of the other: the answer can be copied."""
    words = [[set(re.findall(r"\w+", name.casefold())) for name in (fact.a, fact.b)] for fact in facts]
    found = [fact for fact, (a, b) in zip(facts, words, strict=True) if a != b and (a <= b or b <= a)]
    if not found:
        return []
    first = f"{found[0].a} – {found[0].b}"
    return [f"{len(found)} facts have every word of one name in the other ({first}): that answer can be copied"]


def one_to_one(facts: Sequence[Fact]) -> tuple[list[Fact], list[str]]:
    """Facts whose reverse question has one answer: no other a goes with their b. With a note that counts the rest."""
    count: dict[str, int] = defaultdict(int)
    for fact in facts:
        count[fact.b.casefold()] += 1
    kept = [fact for fact in facts if count[fact.b.casefold()] == 1]
    return kept, _note(len(facts) - len(kept), "left out: their reverse question has several answers")


SHUFFLED = "shuffled: every a stands with another fact's b"


def shuffled(facts: Sequence[Fact], seed: int = 0) -> list[Fact]:
    """A control: every a with another fact's b, so that what is learnt is as much, and none of it known beforehand.

    What would be true, or be said twice, is left out; other right answers are those of the exchanged facts. Raises
    ``DataError`` where nothing can be exchanged (fewer than two unlike b's).
    """
    order = np.random.default_rng(seed).permutation(len(facts))
    # a cycle through all facts in a drawn order: nobody keeps its b unless two facts share one
    lender = {int(i): int(order[(k + 1) % len(order)]) for k, i in enumerate(order)}
    moved = [replace(f, b=facts[lender[i]].b, a_answers=(), b_answers=()) for i, f in enumerate(facts)]
    true = {(fact.a, fact.b) for fact in facts}
    kept, _ = without_duplicates([fact for fact in moved if (fact.a, fact.b) not in true])
    if not kept:
        raise DataError("shuffled: no two facts have something to exchange")
    return with_answers(kept)


def _note(count: int, what: str) -> list[str]:
    return [f"{count} fact{'s'[: count != 1]} {what}"] if count else []
