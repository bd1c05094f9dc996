"""Facts from a table: a file of one's own, or a dataset of the hub."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rcprobe.errors import DataError, UsageError
from rcprobe.facts import Dataset, Fact
from rcprobe.hub import from_hub
from rcprobe.manifest import without_path
from rcprobe_plugins.datasets.relation import SHUFFLED, given_away, same_question, with_answers
from rcprobe_plugins.datasets.relation import shuffled as exchange
from rcprobe_plugins.datasets.rows import READERS, Row, read_rows

NEEDED = ("a", "b", "forward", "reverse")
OPTIONAL = ("a_answers", "b_answers", "trained")
YES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": True}
Templates = str | Sequence[str] | None
Cells = Mapping[str, Any]


def table(
    path: str,
    *,
    a: str = "a",
    b: str = "b",
    forward: Templates = None,
    reverse: Templates = None,
    skip_invalid: bool = False,
    shuffled: bool = False,
    split: str = "train",
    revision: str | None = None,
) -> Dataset:
    """The facts of a CSV, TSV, JSON-lines or parquet file, or of a dataset of the hub (``owner/name``).

    Without templates the columns are those of ``Fact``: a, b, forward and reverse, one row a template pair (rows of
    the same a and b are template pairs of one fact, rows of one question and unlike answers make all of them right),
    and perhaps a_answers and b_answers (other right answers, with |
    between them) and trained (false: held out). With the templates ``forward`` and ``reverse``, one or as many of
    each, the columns named by ``a`` and ``b`` hold the entities, their names serve as slots too, other columns are
    passed over, and every other a of a row's b counts as right.

    ``skip_invalid`` leaves out rows that are no facts and counts them; ``shuffled`` gives every a another row's b, as
    a control. ``split`` and ``revision`` are the hub's. Raises ``UsageError`` for a table that can't be read or lacks
    a column, ``DataError`` naming file and line of a row that is no fact.
    """
    local = Path(path).suffix in READERS
    rows, notes = (read_rows(path), []) if local else _hub_rows(path, split, revision)
    if (forward is None) != (reverse is None):
        raise UsageError(f"{path}: give both templates, forward and reverse, or neither")
    if forward is None or reverse is None:
        _check_columns(path, rows, {**dict.fromkeys(NEEDED), a: None, b: None})
        read: Callable[[Cells], Fact] = _whole
    else:
        pairs = _templates(path, forward, reverse, {a: "{a}", b: "{b}"})

        def read(cells: Cells) -> Fact:
            return Fact(_text(cells, a), _text(cells, b), *pairs, **_extras(cells))

    facts, broken = _facts(path, rows, read, skip_invalid)
    notes += broken
    merged = _merged(facts)
    again = len(facts) - sum(len(fact.forward) for fact in merged) // len(facts[0].forward) if facts else 0
    what = "name the same two entities as another" if forward is not None else "say the same as another"
    notes += [f"{again} rows {what}: taken once"] if again else []
    merged = with_answers(merged) if forward is not None else same_question(merged)
    notes += given_away(merged)
    if shuffled:
        merged = exchange(merged)
        notes.append(SHUFFLED)
    return Dataset(without_path(path) if local else "table", tuple(merged), notes=tuple(notes))


def _hub_rows(name: str, split: str, revision: str | None) -> tuple[list[Row], list[str]]:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(f"{name}: neither a file of {', '.join(READERS)} nor a dataset of the hub (owner/name)")
    try:
        import datasets
    except ImportError as error:
        from rcprobe.errors import MissingExtraError

        raise MissingExtraError(f"the hub's dataset {name}", "datasets", "data") from error
    found = from_hub(
        name, f"dataset with a split {split!r}", lambda: datasets.load_dataset(name, split=split, revision=revision)
    )
    return list(enumerate(found.to_list(), start=1)), [f"{name}: {found._fingerprint}, revision {revision or 'newest'}"]


def _check_columns(path: str, rows: Sequence[Row], known: Mapping[str, None]) -> None:
    if not rows:
        raise UsageError(f"{path}: holds no rows; it needs the columns {', '.join(NEEDED)} and a row a fact")
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise UsageError(
            f"{path}: no column {missing[0]!r}; it has {', '.join(columns) or 'none'}, and needs {', '.join(NEEDED)} "
            "(forward: a statement with {a} before {b}; reverse: one with {b} before {a}), or give the templates as "
            "options"
        )
    unknown = [name for name in columns if name not in (*known, *OPTIONAL)]
    if unknown:
        raise UsageError(f"{path}: column {unknown[0]!r} means nothing here; known: {', '.join(NEEDED + OPTIONAL)}")


def _templates(
    path: str, forward: str | Sequence[str], reverse: str | Sequence[str], slots: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    def named(templates: str | Sequence[str]) -> tuple[str, ...]:
        found = [templates] if isinstance(templates, str) else list(templates)
        for column, slot in slots.items():
            found = [template.replace(f"{{{column}}}", slot) for template in found]
        return tuple(found)

    pairs = named(forward), named(reverse)
    try:
        Fact("a", "b", *pairs)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return pairs


def _facts(path: str, rows: Sequence[Row], read: Callable[[Cells], Fact], skip: bool) -> tuple[list[Fact], list[str]]:
    facts, wrong = [], []
    for line, row in rows:
        try:
            facts.append(_of_two(read(row)))
        except DataError as error:
            if not skip:
                raise DataError(
                    f"{path}:{line}: {error} (the option skip_invalid=true leaves such rows out)"
                ) from error
            wrong.append(f"line {line}: {error}")
    return facts, [f"{len(wrong)} rows of {without_path(path)} are no facts; the first, {wrong[0]}"] if wrong else []


def _of_two(fact: Fact) -> Fact:
    if fact.a == fact.b:
        raise DataError(f"a and b are both {fact.a!r}, so that the question holds its answer")
    return fact


def _whole(cells: Cells) -> Fact:
    """A row that has it all."""
    a, b, forward, reverse = (_text(cells, name) for name in NEEDED)
    return Fact(a, b, forward, reverse, **_extras(cells))


def _extras(cells: Cells) -> dict[str, Any]:
    trained = str(cells.get("trained", "")).strip().lower()
    if trained not in YES:
        raise DataError(f"trained is {trained!r}; use true or false")
    return {**{name: _answers(cells.get(name)) for name in ("a_answers", "b_answers")}, "trained": YES[trained]}


def _text(cells: Cells, column: str) -> str:
    if column not in cells:
        raise DataError(f"no column {column!r}; there are {', '.join(map(str, cells)) or 'none'}")
    text = cells[column]
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"{column} is {'empty' if text in (None, '') or isinstance(text, str) else f'no text: {text!r}'}"
        )
    return text.strip()


def _answers(cell: object) -> tuple[str, ...]:
    texts = cell.split("|") if isinstance(cell, str) else cell if isinstance(cell, list | tuple) else ()
    return tuple(dict.fromkeys(str(text).strip() for text in texts if str(text).strip()))


def _merged(facts: Sequence[Fact]) -> list[Fact]:
    """One fact of all rows that speak of the same two entities, its unlike template pairs side by side."""
    found: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        known = found.get((fact.a, fact.b))
        if known is None:
            found[fact.a, fact.b] = fact
            continue
        if fact.trained != known.trained:
            raise DataError(f"{fact.a} – {fact.b}: one row says trained, another held out; a fact is one or the other")
        pairs = dict.fromkeys(
            [*zip(known.forward, known.reverse, strict=True), *zip(fact.forward, fact.reverse, strict=True)]
        )
        found[fact.a, fact.b] = replace(
            known,
            forward=tuple(forward for forward, _ in pairs),
            reverse=tuple(reverse for _, reverse in pairs),
            a_answers=tuple(dict.fromkeys([*known.a_answers, *fact.a_answers])),
            b_answers=tuple(dict.fromkeys([*known.b_answers, *fact.b_answers])),
        )
    return list(found.values())
