"""From facts to query pairs: where the target, the evidence and the query row stand, in tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unicodedata import combining

from rcprobe.errors import DataError
from rcprobe.facts import Direction, Fact, Pairing, Query, QueryPair, Span, clusters
from rcprobe.loaded import LoadedModel


def encode(m: LoadedModel, facts: Sequence[Fact], pairing: Pairing = "same_target") -> list[QueryPair]:
    """The query pairs of facts: one for each template pair of each fact.

    ``same_target``: both queries ask for a, the evidence b stands right of it (forward) or left of it (reverse).
    ``swapped``: the forward query asks for b from a, the reverse query for a from b.
    Spans come from the tokenizer's character offsets. What can't be asked is kept, with the reason in
    ``unsupported``. Raises ``DataError`` for no facts or a tokenizer without offsets.

    >>> import rcprobe
    >>> m = rcprobe.load("radd", options={"width": 8})
    >>> (pair,) = rcprobe.encode(m, [rcprobe.Fact("d", "D", forward="{a}00{b}", reverse="0{b}0{a}")])
    >>> pair.forward.target, pair.forward.evidence, pair.distances
    ('d', 'D', (3, 2))
    """
    if pairing not in ("same_target", "swapped"):
        raise DataError(f"pairing {pairing!r}; use 'same_target' or 'swapped'")
    if not facts:
        raise DataError("no facts to encode")
    if not getattr(m.tokenizer, "is_fast", False):
        raise DataError(
            f"{m.source}: spans need a fast tokenizer (character offsets); got {type(m.tokenizer).__name__}"
        )
    numbers = clusters(facts)
    pairs = []
    for i, fact in enumerate(facts):
        for template in range(len(fact.forward)):
            forward = _query(m, fact, template, "forward", asks_a=pairing == "same_target")
            reverse = _query(m, fact, template, "reverse", asks_a=True)
            pairs.append(QueryPair(i, template, pairing, forward, reverse, numbers[i], fact.trained))
    return pairs


def with_target(query: Query, target_ids: tuple[int, ...], m: LoadedModel) -> Query:
    """The same prompt asked for other target tokens, as many as before: a label for controls."""
    assert len(target_ids) == len(query.target_ids)
    if m.adapter.objective == "masked":
        return replace(query, target_ids=target_ids)
    prefix = query.input_ids[: query.rows[0] + 1]  # a causal model has all target tokens but the last forced
    return replace(query, target_ids=target_ids, input_ids=prefix + target_ids[:-1])


def _query(m: LoadedModel, fact: Fact, template: int, direction: Direction, *, asks_a: bool) -> Query:
    text, a_span, b_span = fact.statement(direction, template)
    target_span, evidence_span = (a_span, b_span) if asks_a else (b_span, a_span)
    target, evidence = (fact.a, fact.b) if asks_a else (fact.b, fact.a)
    empty = Query(direction, text, target, evidence)
    try:
        encoding = m.encoding(text)  # ten times faster than through the wrapper
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for a token it doesn't know
        return replace(empty, unsupported=f"the tokenizer can't read it: {error}")
    ids, offsets = tuple(encoding.ids), encoding.offsets
    target_positions, reason = _locate(text, offsets, target_span, "target")
    evidence_positions, evidence_reason = _locate(text, offsets, evidence_span, "evidence")
    reason = reason or evidence_reason or _unknown(m.tokenizer, ids, target_positions + evidence_positions)
    reason = reason or unreadable(m, ids) or _unaskable(m, len(ids), target_positions, evidence_positions)
    if reason is not None:
        return replace(empty, unsupported=reason)
    texts = tuple(fact.a_answers if asks_a else fact.b_answers)
    prompt = list(ids)
    tokens: list[str | None] = [
        text[s:e] or str(m.tokenizer.convert_ids_to_tokens(i)) for i, (s, e) in zip(ids, offsets, strict=True)
    ]
    if m.adapter.objective == "causal":
        del prompt[target_positions[-1] :], tokens[target_positions[-1] :]
    else:
        assert m.mask_id is not None
        for position in target_positions:
            prompt[position], tokens[position] = m.mask_id, None
    return replace(
        empty,
        input_ids=tuple(prompt),
        tokens=tuple(tokens),
        target_ids=tuple(ids[i] for i in target_positions),
        rows=tuple(position - m.adapter.shift for position in target_positions),
        evidence_positions=evidence_positions,
        other_texts=texts,
        other_answers=_answers(m, fact, template, direction, asks_a=asks_a, texts=texts),
    )


def _unaskable(m: LoadedModel, length: int, target: tuple[int, ...], evidence: tuple[int, ...]) -> str | None:
    """Why a model can't be asked at these positions, or None."""
    limit, adapter, row = m.max_length, m.adapter, target[0] - m.adapter.shift
    if limit is not None and length > limit:
        return f"it has {length} tokens, the model holds {limit}"
    if set(target) & set(evidence):
        return "target and evidence share a token"
    if row < 0:
        return "the target starts at a position that no logits predict"
    if adapter.objective == "causal" and evidence[-1] > target[0]:
        return "a causal model can't see evidence that stands after its target"
    if adapter.objective == "masked" and adapter.shift and row in evidence:
        return "the row that predicts the target lies inside the evidence"
    return None


def unreadable(m: LoadedModel, ids: Sequence[int]) -> str | None:
    """Why a model can't read the tokens of a text, or None: its tokenizer may be another model's."""
    if max(ids, default=0) >= m.vocabulary:
        return (
            f"the tokenizer gives {m.tokenizer.convert_ids_to_tokens(max(ids))!r} the id {max(ids)}, and the model's "
            f"vocabulary is {m.vocabulary}; use the tokenizer that belongs to the model, or a model with a larger one"
        )
    if m.mask_id in ids and getattr(m.tokenizer, "mask_token_id", None) != m.mask_id:
        token = m.tokenizer.convert_ids_to_tokens(m.mask_id)
        return (
            f"the text holds {token!r}, whose id {m.mask_id} is the model's mask; use the tokenizer that belongs to "
            "the model, or another text"
        )
    return None


def _locate(text: str, offsets: Sequence[Any], span: Span, what: str) -> tuple[tuple[int, ...], str | None]:
    """Positions of the tokens that cover a character span; a token may take white space beside it, nothing else."""
    start, end = span
    positions = tuple(i for i, (s, e) in enumerate(offsets) if s < end and e > start)
    covered: set[int] = set()
    for i in positions:
        s, e = offsets[i]
        outside = text[s : max(s, start)] + text[min(e, end) : e]
        if outside.strip():
            return (), f"the token {text[s:e]!r} crosses the border of the {what} {text[start:end]!r}"
        covered.update(range(s, e))
    # a normaliser that composes é of two characters gives it the place of the first
    missing = [c for c in range(start, end) if not (c in covered or text[c].isspace() or combining(text[c]))]
    if not positions or missing:
        return (), f"the {what} {text[start:end]!r} can't be located in the tokens"
    return positions, None


def _unknown(tokenizer: Any, ids: tuple[int, ...], positions: tuple[int, ...]) -> str | None:
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and any(ids[i] == unknown for i in positions):
        return "the tokenizer doesn't know a part of the target or evidence"
    return None


def _answers(
    m: LoadedModel, fact: Fact, template: int, direction: Direction, *, asks_a: bool, texts: tuple[str, ...]
) -> tuple[tuple[int, ...], ...]:
    """The tokens of other right answers as they are cut in the target's place."""
    found = []
    for text in texts:
        other = replace(fact, a=text, a_answers=()) if asks_a else replace(fact, b=text, b_answers=())
        query = _query(m, other, template, direction, asks_a=asks_a)
        if query.unsupported is None:
            found.append(query.target_ids)
    return tuple(found)


def token_ids(tokenizer: Any, text: str) -> tuple[int, ...] | None:
    """The tokens of a text without special ones; None where the tokenizer can't read it."""
    try:
        return tuple(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception:  # noqa: BLE001 - tokenizers raises bare Exception for a token it doesn't know
        return None
