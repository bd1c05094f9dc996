"""The controlled task (§5, App. D.1): a lower-case letter, its capital, and placeholders elsewhere."""

from itertools import combinations
from string import ascii_lowercase, ascii_uppercase

from rcprobe.errors import DataError
from rcprobe.facts import Dataset, Fact

PLACEHOLDER = "0"
ALPHABET = PLACEHOLDER + ascii_lowercase + ascii_uppercase
LONGEST = 500  # its templates take 125 MB, and grow as length to the power of three


def letters(length: int = 10) -> Dataset:
    """26 facts (a = "d", b = "D") over every placement of the two in a sequence of ``length`` characters.

    The forward templates put a at i and b at j for all i < j (length 3: ``dD0 d0D 0dD``); the k-th reverse
    template is the k-th forward one read backwards, so both have one distance. Readings: all 52 letters, and the
    26 of the target's case (easy: knowing which case comes next leaves half the work undone); causal models are
    also asked to write the rest. Raises ``DataError`` for a length below 2 or above 500.
    """
    if length < 2:
        raise DataError(f"letters: length {length} has no room for two letters; use 2 or more")
    if length > LONGEST:
        raise DataError(
            f"letters: length {length} has {length * (length - 1) // 2} placements of each pair, and every one is "
            f"asked; use {LONGEST} or less"
        )
    placements = list(combinations(range(length), 2))
    forward = tuple(_template(length, a=i, b=j) for i, j in placements)
    reverse = tuple(_template(length, a=length - 1 - i, b=length - 1 - j) for i, j in placements)
    facts = tuple(Fact(a, b, forward, reverse) for a, b in zip(ascii_lowercase, ascii_uppercase, strict=True))
    lower, upper = tuple(ascii_lowercase), tuple(ascii_uppercase)
    readings = {"52 letters": (lower + upper,), "26 letters": (lower, upper)}
    return Dataset("letters", facts, readings, "seed", continued=True)


def _template(length: int, a: int, b: int) -> str:
    slots = {a: "{a}", b: "{b}"}
    return "".join(slots.get(position, PLACEHOLDER) for position in range(length))
