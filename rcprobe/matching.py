"""Whether what a model wrote is an answer."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """``exact`` after NFKC, lower case and outer white space; ``loose`` also without final punctuation and with white
    space collapsed; ``prefix`` where the text starts with an answer, ``contains`` where it holds one, at word
    boundaries both.
    """

    exact: bool
    loose: bool
    prefix: bool
    contains: bool


def match(text: str, answers: Sequence[str], *, cased: bool = False) -> Match:
    """Compare a text with the right answers, any of which will do. An empty answer matches nothing.

    ``cased`` keeps upper and lower case apart, where they tell answers from evidence.
    """
    found, wanted = _folded(text, cased), [folded for answer in answers if (folded := _folded(answer, cased))]
    loose, bare = _bare(found), [words for answer in wanted if (words := _bare(answer))]
    return Match(
        exact=found in wanted,
        loose=loose in bare,
        prefix=any(re.match(rf"{re.escape(answer)}(?!\w)", loose) for answer in bare),
        contains=any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", loose) for answer in bare),
    )


def _folded(text: str, cased: bool) -> str:
    text = unicodedata.normalize("NFKC", text).strip()
    return text if cased else text.lower()


def _bare(text: str) -> str:
    return re.sub(r"[\s.,;:!?…]+$", "", " ".join(text.split()))
