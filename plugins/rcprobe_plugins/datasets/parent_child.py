"""Celebrities and their parents (Berglund et al., *The Reversal Curse*): better known from child to parent."""

from collections.abc import Mapping
from typing import Any

from rcprobe.errors import DataError, UsageError
from rcprobe.facts import Dataset, Fact
from rcprobe_plugins.datasets.public import REVERSAL, public_file
from rcprobe_plugins.datasets.relation import SHUFFLED, with_answers, without_duplicates
from rcprobe_plugins.datasets.relation import shuffled as exchange
from rcprobe_plugins.datasets.rows import read_rows

FILE = "parent_child_pairs.csv"
PARENTS = ("mother", "father")
TO_CHILD = (
    ("{a} is the {kind} of {b}.", "{b}'s {kind} is {a}."),
    ("{a}'s child is {b}.", "{b}'s parent is {a}."),
    ("{a} has a famous child, whose name is {b}.", "{b} grew up with a {kind} whose name is {a}."),
)
TO_PARENT = (
    ("{a}'s {kind} is {b}.", "{b} is the {kind} of {a}."),
    ("{a}'s parent is {b}.", "{b}'s child is {a}."),
    ("{a} grew up with a {kind} whose name is {b}.", "{b} has a famous child, whose name is {a}."),
)
DIRECTIONS: Mapping[str, tuple[tuple[str, str], ...]] = {"P2C": TO_CHILD, "C2P": TO_PARENT}


def parent_child(
    path: str | None = None,
    *,
    direction: str = "P2C",
    skip_invalid: bool = False,
    shuffled: bool = False,
    revision: str | None = None,
) -> Dataset:
    """Parent–Child: a is the parent and b the child (``direction`` P2C), or the other way round (C2P).

    Reads ``parent_child_pairs.csv`` under ``path``, or the hub's lberglund/reversal_curse at ``revision``. Three
    template pairs, of unlike distance. The other parent of a child, and other children of a parent, count as right.
    ``skip_invalid`` leaves out rows that name no two people and a kind of parent, and counts them; ``shuffled`` gives
    every a another fact's b, as a control. Raises ``UsageError``, or ``DataError`` naming file and line.
    """
    if direction not in DIRECTIONS:
        raise UsageError(f"parent-child: direction is {direction!r}; use {' or '.join(DIRECTIONS)}")
    file, note = public_file(path, FILE, REVERSAL, revision)
    facts, wrong = [], 0
    for line, row in read_rows(file):
        try:
            facts.append(_fact(row, direction))
        except DataError as error:
            if not skip_invalid:
                raise DataError(
                    f"{file}:{line}: {error} (the option skip_invalid=true leaves such rows out)"
                ) from error
            wrong += 1
    facts, repeated = without_duplicates(facts)
    facts = exchange(facts) if shuffled else with_answers(facts)
    invalid = [f"{wrong} rows left out: not a parent, a child and a kind of parent"] if wrong else []
    control = [SHUFFLED] if shuffled else []
    return Dataset("parent-child", tuple(facts), notes=(f"direction {direction}", note, *invalid, *repeated, *control))


def _fact(row: Mapping[str, Any], direction: str) -> Fact:
    cells = {name: str(row.get(name) or "").strip() for name in ("parent", "child", "parent_type")}
    if cells["parent_type"] not in PARENTS:
        raise DataError(f"parent_type is {cells['parent_type']!r}; it must be {' or '.join(PARENTS)}")
    a, b = ("parent", "child") if direction == "P2C" else ("child", "parent")
    pairs = [
        tuple(template.replace("{kind}", cells["parent_type"]) for template in pair) for pair in DIRECTIONS[direction]
    ]
    return Fact(cells[a], cells[b], tuple(f for f, _ in pairs), tuple(r for _, r in pairs))
