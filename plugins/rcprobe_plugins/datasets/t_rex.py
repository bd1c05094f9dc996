"""T-REx relations as LAMA selected them, with ParaRel's patterns: facts of Wikidata in plain sentences."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rcprobe.errors import DataError, UsageError
from rcprobe.facts import Dataset, Fact
from rcprobe_plugins.datasets.relation import SHUFFLED, one_to_one, told_apart, without_duplicates
from rcprobe_plugins.datasets.relation import shuffled as exchange
from rcprobe_plugins.datasets.rows import read_rows

SINGLE = ("P36", "P138")  # P1376 is P36 backwards: its forward statements would teach P36's reverse
REVERSED: Mapping[str, tuple[str, ...]] = {  # our own, where the patterns have none with the object first
    "P138": ("[Y] gave its name to [X].", "[Y] is what [X] is named after."),
}
NEEDED = (
    "t-rex: needs path=…, a folder with triples/P36.jsonl and so on (LAMA's TREx files) and patterns/P36.jsonl and so "
    "on (ParaRel's)"
)


def t_rex(
    path: str | None = None,
    *,
    relations: str | Sequence[str] = SINGLE,
    skip_invalid: bool = False,
    shuffled: bool = False,
) -> Dataset:
    """T-REx: a is the subject and b the object of one or several ``relations`` (P36, "P36,P138" or a list).

    Reads ``triples/RELATION.jsonl`` (``sub_label``, ``obj_label``) and ``patterns/RELATION.jsonl`` (``pattern`` with
    [X] and [Y]) under ``path``. Kept are objects with a single subject, so that the reverse question has one answer;
    the notes count the rest. Patterns with the subject first are forward, with the object first reverse. ``shuffled``
    gives every subject another's object, as a control. Raises ``UsageError``, or ``DataError`` naming file and line.
    """
    if path is None:
        raise UsageError(NEEDED)
    wanted = [name.strip() for name in relations.split(",")] if isinstance(relations, str) else list(relations)
    facts: list[Fact] = []
    notes: list[str] = []
    for relation in wanted:
        found, said = _relation(Path(path), relation, skip_invalid)
        facts += exchange(found) if shuffled else found
        notes += [f"{relation}: {note}" for note in said]
    forwards = {(fact.a, fact.b) for fact in facts}
    back = [fact for fact in facts if (fact.b, fact.a) in forwards]
    if back:
        raise DataError(
            f"t-rex: {back[0].a} – {back[0].b} is asked in both orders ({len(back)} facts are), so that one relation's "
            "forward statement would teach the other's reverse; take one of the relations"
        )
    notes += [SHUFFLED] if shuffled else []
    return Dataset("t-rex", tuple(facts), notes=(f"relations {', '.join(wanted)}", *notes))


def _relation(folder: Path, relation: str, skip_invalid: bool) -> tuple[list[Fact], list[str]]:
    triples, patterns = (folder / kind / f"{relation}.jsonl" for kind in ("triples", "patterns"))
    known = sorted(file.stem for file in (folder / "triples").glob("*.jsonl"))
    if not triples.is_file():
        raise UsageError(f"{folder}: no relation {relation!r} under triples; there are {', '.join(known) or 'none'}")
    texts = [str(row.get("pattern", "")) for _, row in read_rows(patterns)]
    forward, reverse = _sides([*texts, *REVERSED.get(relation, ())])
    pairs = min(len(forward), len(reverse))
    if not (forward and reverse):
        missing = "the subject" if not forward else "the object"
        raise DataError(f'{patterns}: no pattern with {missing} first; add one, {{"pattern": "… [X] … [Y] …"}}')
    facts, wrong = [], []
    for line, row in read_rows(triples):
        try:
            facts.append(
                Fact(str(row.get("sub_label", "")), str(row.get("obj_label", "")), forward[:pairs], reverse[:pairs])
            )
        except DataError as error:
            if not skip_invalid:
                shown = json.dumps(row, ensure_ascii=False)
                raise DataError(
                    f"{triples}:{line}: {error} in {shown} (the option skip_invalid=true leaves it out)"
                ) from error
            wrong.append(line)
    facts, repeated = without_duplicates(facts)
    facts, ambiguous = one_to_one(facts)
    facts, alike = told_apart(facts)
    if not facts:
        raise DataError(f"{triples}: no object has a single subject; every reverse question has several answers")
    return facts, [*([f"{len(wrong)} rows left out: a label is empty"] if wrong else []), *repeated, *ambiguous, *alike]


def _sides(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Forward and reverse templates."""
    whole = [text.replace(" .", ".") for text in texts if text.count("[X]") == 1 == text.count("[Y]")]
    slots = [text.replace("[X]", "{a}").replace("[Y]", "{b}") for text in whole]
    forward = [text for text in slots if text.index("{a}") < text.index("{b}")]
    reverse = [text for text in slots if text.index("{b}") < text.index("{a}")]
    return tuple(forward), tuple(reverse)
