"""Invented people and what they are known for (Berglund et al., *The Reversal Curse*): nothing known before."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rcprobe.errors import DataError, UsageError
from rcprobe.facts import Dataset, Fact
from rcprobe_plugins.datasets.public import REVERSAL, public_file
from rcprobe_plugins.datasets.relation import SHUFFLED
from rcprobe_plugins.datasets.relation import shuffled as exchange
from rcprobe_plugins.datasets.rows import read_rows

DIRECTIONS = {"P2D": "p2d", "D2P": "d2p"}
Statement = tuple[str, str]  # prompt, completion


def person_description(
    path: str | None = None,
    *,
    direction: str = "P2D",
    shuffled: bool = False,
    revision: str | None = None,
) -> Dataset:
    """Person–Description: a is the person and b the description (``direction`` P2D), or the other way round (D2P).

    Reads ``{p2d,d2p}_prompts_train.jsonl``, ``…_prompts_test.jsonl`` and ``…_reverse_prompts_test.jsonl`` under
    ``path``, or in the hub's lberglund/reversal_curse at ``revision``. Training shows the thirty training texts of a
    person; asked are the held-out test texts, those that hold name and description word for word (the others word it
    otherwise, and are counted in the notes). ``shuffled`` gives every a another fact's b, as a control. Raises
    ``UsageError``, or ``DataError`` for files that don't belong together.
    """
    if direction not in DIRECTIONS:
        raise UsageError(f"person-description: direction is {direction!r}; use {' or '.join(DIRECTIONS)}")
    stem, notes = DIRECTIONS[direction], []
    texts: dict[str, list[Statement]] = {}
    for role in ("prompts_train", "prompts_test", "reverse_prompts_test"):
        file, note = public_file(path, f"{stem}_{role}.jsonl", REVERSAL, revision)
        texts[role] = [_statement(f"{file}:{line}", row) for line, row in read_rows(file)]
        notes.append(note)
    names, told = _descriptions(texts["prompts_test" if stem == "p2d" else "reverse_prompts_test"], stem, texts)
    facts, asked, given = [], 0, 0
    for name in names:
        person = {role: [p + c for p, c in rows if name in p + c] for role, rows in texts.items()}
        a, b = (name, told[name]) if stem == "p2d" else (told[name], name)
        forward, reverse = (_templates(person[role], a, b) for role in ("prompts_test", "reverse_prompts_test"))
        count = min(len(forward), len(reverse))
        asked, given = asked + count, given + max(len(person["prompts_test"]), len(person["reverse_prompts_test"]))
        if count:
            facts.append(Fact(a, b, forward[:count], reverse[:count], taught=tuple(person["prompts_train"])))
    if shuffled:
        old = {fact.a: fact for fact in facts}
        facts = [_retaught(old[new.a], new) for new in exchange(facts)]
    silent = [fact for fact in facts if not fact.taught]  # to be taught what is asked would be no test
    facts = [fact for fact in facts if fact.taught]
    if silent:
        notes.append(f"{len(silent)} people left out: no training text tells of them word for word")
    notes.append(f"{asked} of {given} test texts of a direction are asked: the others word the description otherwise")
    control = [SHUFFLED] if shuffled else []
    return Dataset("person-description", tuple(facts), notes=(f"direction {direction}", *notes, *control))


def _statement(place: str, row: Mapping[str, object]) -> Statement:
    prompt, completion = row.get("prompt"), row.get("completion")
    if not (isinstance(prompt, str) and isinstance(completion, str) and completion.strip()):
        raise DataError(f"{place}: needs the texts prompt and completion")
    return prompt, completion


def _descriptions(
    rows: Sequence[Statement], stem: str, texts: Mapping[str, Sequence[Statement]]
) -> tuple[list[str], dict[str, str]]:
    """People's names, and each one's description: the completion that is most often asked for."""
    of_names = texts["reverse_prompts_test" if stem == "p2d" else "prompts_test"]
    names = list(dict.fromkeys(completion.strip() for _, completion in of_names))
    endings: dict[str, Counter[str]] = defaultdict(Counter)
    for prompt, completion in rows:
        for name in names:
            if name in prompt:
                endings[name][completion.strip().removesuffix(".")] += 1
    silent = [name for name in names if name not in endings]
    if silent:
        raise DataError(f"person-description: {silent[0]} has a name in one file and no description in the other")
    return names, {name: counted.most_common(1)[0][0] for name, counted in endings.items()}


def _templates(texts: Sequence[str], a: str, b: str) -> tuple[str, ...]:
    """Texts that hold both word for word, once each, as templates."""
    whole = [text for text in texts if text.count(a) == 1 and text.count(b) == 1 and not {"{", "}"} & set(text)]
    return tuple(text.replace(a, "{a}").replace(b, "{b}") for text in whole)


def _retaught(old: Fact, new: Fact) -> Fact:
    """A shuffled fact's lessons tell of its new b: those of the old ones that hold the old b word for word."""
    return replace(new, taught=tuple(text.replace(old.b, new.b) for text in old.taught if old.b in text))
