"""What is asked: facts, the two queries that each gives, and the tensors they become.

A ``Fact`` names two entities in training order, ``a`` before ``b``. Its *forward* statements put a before b, its
*reverse* statements b before a; training sees forward statements only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rcprobe.errors import DataError

Direction = Literal["forward", "reverse"]
Pairing = Literal["same_target", "swapped"]
Span = tuple[int, int]


@dataclass(frozen=True)
class Fact:
    """Two entities and the statements that relate them.

    ``forward`` and ``reverse`` are one template or as many as there are template pairs (the k-th forward belongs
    with the k-th reverse); each holds the slots ``{a}`` and ``{b}`` once, in its direction's order.
    ``a_answers`` and ``b_answers`` are other right answers for a and for b (a child has two parents).
    ``trained`` is false for facts held out of training. ``taught`` are the texts that training shows, where those
    aren't the forward statements that are asked (held-out templates). Raises ``DataError`` for templates out of order.

    >>> import rcprobe
    >>> oslo = rcprobe.Fact("Oslo", "Norway", forward="{a} is the capital of {b}.", reverse="{b}'s capital is {a}.")
    >>> oslo.statement("reverse")
    ("Norway's capital is Oslo.", (20, 24), (0, 6))
    """

    a: str
    b: str
    forward: str | tuple[str, ...]
    reverse: str | tuple[str, ...]
    a_answers: str | tuple[str, ...] = ()
    b_answers: str | tuple[str, ...] = ()
    trained: bool = True
    taught: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("forward", "reverse", "a_answers", "b_answers", "taught"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.a.strip() or not self.b.strip():
            raise DataError(f"a fact needs two entities; got a={self.a!r}, b={self.b!r}")
        if not self.forward or len(self.forward) != len(self.reverse):
            raise DataError(
                f"fact {self.a!r} – {self.b!r}: {len(self.forward)} forward and {len(self.reverse)} reverse "
                "templates; give as many of each, at least one (the k-th forward is asked beside the k-th reverse)"
            )
        for template in self.forward:
            _check_template(template, "{a}", "{b}", "forward")
        for template in self.reverse:
            _check_template(template, "{b}", "{a}", "reverse")

    def statement(self, direction: Direction, template: int = 0) -> tuple[str, Span, Span]:
        """The text of a statement and the character spans of a and of b in it."""
        return _fill((self.forward if direction == "forward" else self.reverse)[template], self.a, self.b)

    def lessons(self) -> list[tuple[str, tuple[Span, ...]]]:
        """The texts that training shows, and the character spans of a and b in each (of those that it holds)."""
        if not self.taught:
            return [(text, (a, b)) for text, a, b in (self.statement("forward", k) for k in range(len(self.forward)))]
        starts = [(text, [(text.find(name), len(name)) for name in (self.a, self.b)]) for text in self.taught]
        return [(text, tuple((at, at + size) for at, size in found if at >= 0)) for text, found in starts]


def _check_template(template: str, first: str, second: str, direction: str) -> None:
    if template.count(first) != 1 or template.count(second) != 1:
        raise DataError(f"{direction} template {template!r} needs the slots {first} and {second}, once each")
    if template.index(first) > template.index(second):
        raise DataError(f"{direction} template {template!r} must put {first} before {second}")


def _fill(template: str, a: str, b: str) -> tuple[str, Span, Span]:
    at, bt = template.index("{a}"), template.index("{b}")
    head, middle, tail = (
        template[: min(at, bt)],
        template[min(at, bt) + 3 : max(at, bt)],
        template[max(at, bt) + 3 :],
    )
    first, second = (a, b) if at < bt else (b, a)
    text = head + first + middle + second + tail
    first_span = (len(head), len(head) + len(first))
    second_start = first_span[1] + len(middle)
    second_span = (second_start, second_start + len(second))
    return (text, first_span, second_span) if at < bt else (text, second_span, first_span)


@dataclass(frozen=True)
class Query:
    """One prompt of one fact, with every position that a reading needs.

    ``input_ids`` holds masks (masked objective) or the left context with the target's tokens but the last forced
    (causal). ``rows`` are the positions whose logits predict ``target_ids``, one each; ``evidence_positions`` are
    those of the evidence's tokens. ``other_texts`` are other right answers, ``other_answers`` their tokens in the
    target's place. ``tokens`` are what each id shows of the text, None for a mask. A query that can't be asked carries
    the reason in ``unsupported`` and no positions.
    """

    direction: Direction
    text: str
    target: str
    evidence: str
    input_ids: tuple[int, ...] = ()
    target_ids: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    evidence_positions: tuple[int, ...] = ()
    unsupported: str | None = None
    other_texts: tuple[str, ...] = ()
    other_answers: tuple[tuple[int, ...], ...] = ()
    tokens: tuple[str | None, ...] = field(default=(), compare=False, repr=False)

    @property
    def row(self) -> int:
        """The query row of attention scores: where the first target token is predicted."""
        return self.rows[0]

    @property
    def offset(self) -> int:
        """Signed distance Δ, evidence minus query row, between the anchors (first tokens)."""
        return self.evidence_positions[0] - self.row


@dataclass(frozen=True)
class QueryPair:
    """The forward and the reverse query of one fact, from its ``template``-th template pair."""

    fact: int
    template: int
    pairing: Pairing
    forward: Query
    reverse: Query
    cluster: int
    trained: bool

    @property
    def unsupported(self) -> str | None:
        """Why this pair can't be asked, or None."""
        for query in (self.forward, self.reverse):
            if query.unsupported:
                return f"{query.direction} query, {query.unsupported}"
        return None

    @property
    def distances(self) -> tuple[int, int]:
        """(δ→, δ←): Δ of the forward query and −Δ of the reverse query."""
        return self.forward.offset, -self.reverse.offset

    @property
    def stratum(self) -> tuple[int, ...]:
        """Pairs that may be compared or exchanged: template pair, target and evidence tokens, both distances."""
        f, r = self.forward, self.reverse
        counts = (len(f.target_ids), len(r.target_ids), len(f.evidence_positions), len(r.evidence_positions))
        return (self.template, *counts, *self.distances, len(f.input_ids), len(r.input_ids))

    def _repr_html_(self) -> str:
        from rcprobe.drawn_pairs import pair_html

        return pair_html(self)


@dataclass(frozen=True)
class Dataset:
    """Facts, and how answers about them are read.

    ``readings`` names candidate sets beside the full vocabulary: each is a tuple of groups of answers, and a target
    competes within the groups it belongs to (``{"26 letters": (lower case, upper case)}``); the first reading
    decides whether a model counts as trained. ``replicate`` says what repeats the experiment: facts of one model,
    or seeds (a task whose facts share one small vocabulary). ``continued`` says that causal models are also read by
    what they write from the evidence to the statement's end. ``options`` are those of a whole registered dataset, as
    ``load_dataset`` makes it; None for any other. ``notes`` are what a reader of the results should know of where
    the facts come from and which were left out.
    """

    name: str
    facts: tuple[Fact, ...]
    readings: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    replicate: Literal["fact", "seed"] = "fact"
    options: Mapping[str, Any] | None = None
    continued: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.facts:
            raise DataError(f"dataset {self.name!r} is empty: it gave no facts")

    def limited(self, limit: int | None) -> "Dataset":
        """The first ``limit`` facts. Raises ``DataError`` for a limit below one."""
        if limit is None:
            return self
        if limit < 1:
            raise DataError(f"limit {limit} leaves no facts; use 1 or more")
        return replace(self, facts=self.facts[:limit], options=None)


def clusters(facts: Sequence[Fact]) -> list[int]:
    """Number the connected components of facts that share an entity or an answer; one number a fact."""
    parent = list(range(len(facts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[str, int] = {}
    for i, fact in enumerate(facts):
        for entity in _entities(fact):
            parent[root(i)] = root(owner.setdefault(entity, i))
    roots = [root(i) for i in range(len(facts))]
    number = {r: n for n, r in enumerate(dict.fromkeys(roots))}
    return [number[r] for r in roots]


def _entities(fact: Fact) -> Iterable[str]:
    # a and A are different entities of the letters task, so case is kept
    return (text.strip() for text in (fact.a, fact.b, *fact.a_answers, *fact.b_answers))
