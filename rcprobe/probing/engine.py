"""``observe``: everything that was asked about query pairs, as plain tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rcprobe.controls import assign, other_targets
from rcprobe.decoding import Answer, Decoding, decode
from rcprobe.errors import DataError, UsageError
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.probing.answers import FULL, Reading, judge_answers, mean_log_prob, readings
from rcprobe.probing.batch import Batch, collate
from rcprobe.probing.capture import capture
from rcprobe.probing.captured import Captured
from rcprobe.probing.cells import CellReading, cell_readings
from rcprobe.probing.continuation import greedy_to_the_end
from rcprobe.probing.coverage import UNREAD
from rcprobe.probing.gradients import GradientProducts, Reader, Scores, gradient_products
from rcprobe.probing.knockout import Knockout, knock_out
from rcprobe.probing.parameters import Which
from rcprobe.probing.sizes import BatchSize, resolve, worked_through
from rcprobe.probing.stored import stored
from rcprobe.probing.training_gradients import training_cosine
from rcprobe.queries import with_target

READS = frozenset(
    {"scores", "span_scores", "log_probs", "alternatives", "answers", "gradients", "training_gradients", "storage"}
    | {"knockout"}
)
ALTERNATIVES = 4  # other targets a causal model is asked for, each at the price of a prompt


@dataclass(frozen=True)
class Observation:
    """Readings of B query pairs; what wasn't asked for is None, what couldn't be read is NaN.

    The axis of two is (forward, reverse). N layers with softmax attention, H heads (those asked for). Everything is
    float64.

    Attributes:
        pairs: the pairs, in the order asked.
        excluded: pair index → why it carries no numbers (unsupported, or non-finite and where).
        scores, log_weights, attendable: at (query row, evidence), anchors the first tokens.
        other_cells: the same three elsewhere: ``slot`` (of shifted models), and ``mean``, ``max``, ``last`` over the
            tokens of target and evidence (``span_scores``).
        log_probs: Σ over target tokens of log p, full vocabulary.
        readings: reading → (log p, right or wrong as 1 or 0), the full vocabulary among them.
        continued: 1 where a causal model, writing on greedily from the evidence, gives the target, else 0.
        answers: what the model wrote for the forward and for the reverse query, by pair index.
        alternatives: mean log p of other trained targets at the reverse query (of ``ALTERNATIVES`` of them, where each
            needs a prompt of its own).
        saturated: p(target) so near 1 that its gradient is rounding noise.
        gradients: inner products of gradients, with controls.
        training_cosine: cos(g_train, g←), g_train the gradient of the training objective on the forward statement.
        storage, storage_mismatched, storage_spread: W̃[a, b], its mean over other facts' a, and its spread over places
            where those count.
        knockout: falls of log p [B, 2, …] where attention cells to the evidence, and to its control, are cut.
        batch_size: how many prompts went through at once, at the least.
    """

    pairs: tuple[QueryPair, ...]
    excluded: Mapping[int, str]
    scores: Float[Tensor, "B 2 N H"] | None = None
    log_weights: Float[Tensor, "B 2 N H"] | None = None
    attendable: Bool[Tensor, "B 2 N H"] | None = None
    other_cells: Mapping[str, CellReading] = field(default_factory=dict)
    log_probs: Float[Tensor, "B 2"] | None = None
    readings: Mapping[str, tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]] | None = None
    continued: Float[Tensor, "B 2"] | None = None
    answers: Mapping[int, tuple[Answer, Answer]] | None = None
    alternatives: Float[Tensor, " B"] | None = None
    saturated: Bool[Tensor, "B 2"] | None = None
    gradients: GradientProducts | None = None
    training_cosine: Float[Tensor, " B"] | None = None
    storage: Float[Tensor, "B N H"] | None = None
    storage_mismatched: Float[Tensor, "B N H"] | None = None
    storage_spread: Float[Tensor, "B N H"] | None = None
    knockout: Knockout | None = None
    batch_size: int = 0

    def _repr_html_(self) -> str:
        from rcprobe.drawn_observation import observation_html

        return observation_html(self)


def observe(
    m: LoadedModel,
    pairs: Sequence[QueryPair],
    *,
    read: frozenset[str] | set[str] = frozenset({"scores", "log_probs"}),
    parameters: Which = "trainable",
    controls: int = 8,
    batch_size: BatchSize = "auto",
    candidates: Mapping[str, Sequence[Sequence[str]]] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    continued: bool = False,
    decoding: Decoding | None = None,
) -> Observation:
    """Read what the metrics need of query pairs in one pass, each query once.

    ``read`` is a subset of ``READS``; ``parameters`` and ``controls`` concern gradients (controls a pair, of three
    kinds); ``candidates`` names readings beside the full vocabulary. ``layers`` and ``heads`` (numbers from 0) keep
    only those of the scores and, of gradients, only those layers' parameters; where nothing but scores is read, the
    pass ends with the last layer asked for. ``continued`` lets a causal model also write from the evidence to the
    statement's end (with ``log_probs``), ``decoding`` says how ``answers`` are written; ``knockout`` always sweeps all
    layers and heads. ``batch_size`` is in prompts;
    "auto" takes what memory holds, and either is halved where memory runs out. Pairs that can't be asked keep their
    row, as NaN, and their reason.
    Raises ``DataError`` for no pairs or an unknown reading, ``UsageError`` for a layer or head the model lacks.

    >>> import rcprobe
    >>> m = rcprobe.load("radd", options={"width": 8, "heads": 2})
    >>> pairs = rcprobe.encode(m, rcprobe.load_dataset("letters", {"length": 4}).facts)
    >>> rcprobe.observe(m, pairs[:5], read={"scores"}).scores.shape  # pairs, (forward, reverse), layers, heads
    torch.Size([5, 2, 1, 2])
    """
    if not pairs:
        raise DataError("no pairs to observe")
    unknown = set(read) - READS
    if unknown:
        raise DataError(f"read: {sorted(unknown)[0]!r} is none of {', '.join(sorted(READS))}")
    seen = Observation(tuple(pairs), {i: p.unsupported for i, p in enumerate(pairs) if p.unsupported})
    asked = [i for i, pair in enumerate(pairs) if pair.unsupported is None]
    kinds = readings(m, candidates or {}) if read & {"log_probs", "alternatives"} else []
    scores: Scores = "spans" if "span_scores" in read else "anchors" if "scores" in read else None
    others = other_targets(pairs) if "alternatives" in read else None
    answers = _Answers(m, seen.pairs, asked, kinds, scores, layers, others)
    if "gradients" in read:

        def products(indices: Sequence[int], reader: Reader | None) -> GradientProducts:
            of = [pairs[i] for i in indices]
            return gradient_products(
                m,
                of,
                assign(of, controls),
                parameters=parameters,
                batch_size=batch_size,
                layers=layers,
                reader=reader,
                scores=answers.scores,
            )

        found = products(asked, answers.take if answers.wanted else None)
        seen = answers.put(seen, heads)
        sound = [i for i in asked if i not in seen.excluded]
        if len(sound) < len(asked):  # a broken pair is nobody's control
            found = products(sound, None)
        seen = replace(_spread_gradients(seen, sound, found), batch_size=found.batch_size)
    elif answers.wanted:
        size = answers.read_all(batch_size)
        seen = replace(answers.put(seen, heads), batch_size=size)
    if continued and kinds and m.adapter.objective == "causal" and asked:
        seen = _continued(m, seen, asked, batch_size)
    if "answers" in read:
        sound = [i for i in asked if i not in seen.excluded]
        queries = [query for i in sound for query in (pairs[i].forward, pairs[i].reverse)]
        written = decode(m, queries, decoding, batch_size=batch_size)
        seen = replace(seen, answers=dict(zip(sound, zip(written[::2], written[1::2], strict=True), strict=True)))
    if "training_gradients" in read:
        seen = _training_cosine(m, seen, parameters, batch_size)
    if "storage" in read:
        seen = _storage_readings(m, seen)
    if "knockout" in read:
        seen = _knocked_out(m, seen, batch_size)
    return seen


def _continued(m: LoadedModel, seen: Observation, asked: Sequence[int], batch_size: BatchSize) -> Observation:
    queries = [query for i in asked for query in (seen.pairs[i].forward, seen.pairs[i].reverse)]
    right = torch.full((len(seen.pairs), 2), torch.nan, dtype=torch.float64)
    right[list(asked)] = greedy_to_the_end(m, queries, batch_size).reshape(-1, 2)
    right[list(seen.excluded)] = torch.nan
    return replace(seen, continued=right)


def _training_cosine(m: LoadedModel, seen: Observation, parameters: Which, batch_size: BatchSize) -> Observation:
    sound = [i for i in range(len(seen.pairs)) if i not in seen.excluded]
    cosine = torch.full((len(seen.pairs),), torch.nan, dtype=torch.float64)
    cosine[sound] = training_cosine(m, [seen.pairs[i] for i in sound], parameters=parameters, batch_size=batch_size)
    return replace(seen, training_cosine=cosine)


def _knocked_out(m: LoadedModel, seen: Observation, batch_size: BatchSize) -> Observation:
    sound = [i for i in range(len(seen.pairs)) if i not in seen.excluded]
    both = [(seen.pairs[i].forward, seen.pairs[i].reverse) for i in sound]
    queries = list(dict.fromkeys(query for pair in both for query in pair))
    found = knock_out(m, queries, batch_size)
    number = {query: k for k, query in enumerate(queries)}
    rows = torch.tensor([[number[query] for query in pair] for pair in both], dtype=torch.long).reshape(-1, 2)

    def spread(values: Tensor) -> Tensor:
        out = torch.full((len(seen.pairs), 2, *values.shape[1:]), torch.nan, dtype=torch.float64)
        out[sound] = values[rows]
        return out

    return replace(seen, knockout=Knockout(spread(found.everywhere), spread(found.layers), spread(found.heads)))


class _Answers:
    """Scores and probabilities of queries, gathered batch by batch, whichever pass runs them."""

    def __init__(
        self,
        m: LoadedModel,
        pairs: Sequence[QueryPair],
        asked: Sequence[int],
        kinds: Sequence[Reading],
        scores: Scores,
        layers: Sequence[int] | None,
        others: Sequence[tuple[tuple[int, ...], ...]] | None,
    ) -> None:
        self.m, self.pairs, self.asked, self.kinds, self.scores, self.layers = m, pairs, asked, kinds, scores, layers
        self.wanted = bool(scores or kinds)
        self.others = {pairs[i].reverse: others[i] for i in asked} if others is not None else None
        self.columns: dict[str, list[Tensor]] = {}
        self.cells: dict[str, list[CellReading]] = {}
        self.row: dict[Query, int] = {}
        self.taken = 0

    def read_all(self, batch_size: BatchSize) -> int:
        """Run every query once, without gradients; the batch size that was used."""
        queries = list(dict.fromkeys(q for i in self.asked for q in (self.pairs[i].forward, self.pairs[i].reverse)))
        queries.sort(key=lambda query: len(query.input_ids))
        length = len(queries[-1].input_ids) if queries else 1
        size = resolve(self.m, batch_size, length, gradients=False)
        for _, _, used in worked_through(queries, size, lambda query: 1, self._run):
            size = used
        return size

    def _run(self, queries: list[Query]) -> None:
        batch = collate(self.m, queries, spans=self.scores == "spans")
        logits, scores = bool(self.kinds), self.scores is not None
        self.take(queries, batch, capture(self.m, batch, scores=scores, layers=self.layers, logits=logits))

    def take(self, queries: Sequence[Query], batch: Batch, captured: Captured) -> None:
        """Keep what a pass over the queries showed, once all of it is there; a pass tried again is kept again."""
        cells = cell_readings(batch, captured) if self.scores else {}
        columns = self._judged(queries, batch, captured.logits.detach()) if self.kinds else {}
        for name, part in cells.items():
            self.cells.setdefault(name, []).append(part.map(Tensor.cpu))
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(values.cpu())
        self.row.update({query: self.taken + k for k, query in enumerate(queries)})
        self.taken += len(queries)

    def _judged(self, queries: Sequence[Query], batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        m = self.m
        logits = m.adapter.logits(logits, m.mask_id)
        found = {} if self.others is None else {"alternatives": self._alternatives(queries, batch, logits)}
        for kind in self.kinds:
            log_probs, right = judge_answers(logits, batch, kind)
            found |= {f"p {kind.name}": log_probs, f"right {kind.name}": right}
        return found

    def _alternatives(self, queries: Sequence[Query], batch: Batch, logits: Tensor) -> Tensor:
        """The mean of log p over other targets of each query, NaN where it has none."""
        assert self.others is not None
        others = [self.others.get(query, ()) for query in queries]
        free = [self.m.adapter.objective == "masked" or len(query.rows) == 1 for query in queries]
        means = mean_log_prob(logits, batch, [o if f else () for o, f in zip(others, free, strict=True)])
        for b, (query, targets) in enumerate(zip(queries, others, strict=True)):
            if targets and not free[b]:
                means[b] = _forced_mean(self.m, query, targets[:ALTERNATIVES])
        return means

    def put(self, seen: Observation, heads: Sequence[int] | None) -> Observation:
        """The observation with what was gathered; broken pairs named and blanked."""
        if not self.wanted:
            return seen
        if not self.asked:
            return _no_readings(seen, self.scores is not None, self.kinds, self.others is not None)
        columns = {name: torch.cat(values) for name, values in self.columns.items()}
        rows = torch.tensor([[self.row[seen.pairs[i].forward], self.row[seen.pairs[i].reverse]] for i in self.asked])

        def spread(values: Tensor, fill: float | bool = torch.nan) -> Tensor:
            out = torch.full((len(seen.pairs), 2, *values.shape[1:]), fill, dtype=values.dtype)
            out[self.asked] = values[rows]
            return out

        if self.kinds:
            read = {k.name: (spread(columns[f"p {k.name}"]), spread(columns[f"right {k.name}"])) for k in self.kinds}
            log_probs = read[FULL][0]
            seen = replace(
                seen,
                log_probs=log_probs,
                readings=read,
                alternatives=spread(columns["alternatives"])[:, 1] if self.others is not None else None,
                saturated=log_probs.exp() > 1 - (1e-3 if self.m.dtype.itemsize < 4 else 1e-6),
            )
        if self.scores:
            at = _heads(heads, self.cells["anchor"][0].scores.shape[2])
            cells = {
                name: CellReading(
                    spread(torch.cat([part.scores for part in parts]).double())[..., at],
                    spread(torch.cat([part.log_weights for part in parts]).double())[..., at],
                    spread(torch.cat([part.attendable for part in parts]), False)[..., at],
                )
                for name, parts in self.cells.items()
            }
            anchor = cells.pop("anchor")
            seen = replace(
                seen,
                scores=anchor.scores,
                log_weights=anchor.log_weights,
                attendable=anchor.attendable,
                other_cells=cells,
            )
        return _mark_non_finite(seen)


def _heads(heads: Sequence[int] | None, count: int) -> list[int]:
    wrong = [h for h in heads or () if not 0 <= h < count]
    if wrong:
        raise UsageError(f"heads: {wrong[0]} is none of the model's {count}, numbered from 0")
    return list(range(count)) if heads is None else list(heads)


def _no_readings(seen: Observation, scores: bool, kinds: Sequence[Reading], others: bool) -> Observation:
    """Where no pair can be asked: rows of NaN, and no layer to speak of."""
    size = len(seen.pairs)
    blank = torch.full((size, 2), torch.nan, dtype=torch.float64)
    cells = torch.empty(size, 2, 0, 0, dtype=torch.float64) if scores else None
    return replace(
        seen,
        log_probs=blank if kinds else None,
        readings={kind.name: (blank, blank) for kind in kinds} if kinds else None,
        alternatives=blank[:, 0] if others else None,
        saturated=torch.zeros(size, 2, dtype=torch.bool) if kinds else None,
        scores=cells,
        log_weights=cells,
        attendable=None if cells is None else cells.bool(),
    )


def _forced_mean(m: LoadedModel, query: Query, targets: Sequence[tuple[int, ...]]) -> Tensor:
    """The mean of log p over other targets whose own tokens a causal model must read: a prompt each."""
    asked = [with_target(query, ids, m) for ids in targets]
    batch = collate(m, asked)
    logits = m.adapter.logits(capture(m, batch, scores=False).logits, m.mask_id)
    return judge_answers(logits, batch, Reading(FULL, None))[0].mean().cpu()


def _mark_non_finite(seen: Observation) -> Observation:
    """Name pairs with a NaN or infinite reading, and blank them."""
    broken: dict[int, str] = {}
    if seen.scores is not None:
        wrong = ~seen.scores.isfinite().all(dim=3).all(dim=1)  # B N
        for i, layer in wrong.nonzero().tolist():
            broken.setdefault(i, f"non-finite attention score at layer {layer}")
    if seen.log_probs is not None:
        for i in (~seen.log_probs.isfinite().all(dim=1)).nonzero().flatten().tolist():
            broken.setdefault(i, "non-finite log-probability")
    rows = torch.tensor([i for i in broken if i not in seen.excluded], dtype=torch.long)

    def blank(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.index_fill(0, rows, torch.nan)

    def both(reading: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return reading[0].index_fill(0, rows, torch.nan), reading[1].index_fill(0, rows, torch.nan)

    return replace(
        seen,
        excluded={**broken, **seen.excluded},
        log_probs=blank(seen.log_probs),
        alternatives=blank(seen.alternatives),
        readings=None if seen.readings is None else {name: both(reading) for name, reading in seen.readings.items()},
        scores=blank(seen.scores),
        log_weights=blank(seen.log_weights),
        other_cells={
            name: replace(
                cells,
                scores=cells.scores.index_fill(0, rows, torch.nan),
                log_weights=cells.log_weights.index_fill(0, rows, torch.nan),
            )
            for name, cells in seen.other_cells.items()
        },
    )


def _spread_gradients(seen: Observation, asked: Sequence[int], products: GradientProducts) -> Observation:
    """The products of the asked pairs, at the rows of all; broken pairs named and blanked."""
    excluded = dict(seen.excluded)
    read = torch.tensor([products.rules.get(part.parameter) != UNREAD for part in products.parts])
    for row, i in enumerate(asked):
        bad = read & ~(products.forward_norm2[row].isfinite() & products.reverse_norm2[row].isfinite())
        if bad.any() and i not in excluded:
            excluded[i] = f"non-finite gradient of {products.parts[int(bad.int().argmax())].name}"

    def spread(values: Tensor) -> Tensor:
        out = torch.full((len(seen.pairs), *values.shape[1:]), torch.nan, dtype=torch.float64)
        out[list(asked)] = values
        out[list(excluded)] = torch.nan
        return out

    partner = torch.full((len(seen.pairs), len(products.kinds)), -1)
    numbers = torch.tensor(asked, dtype=torch.long)
    if len(numbers):
        partner[numbers] = torch.where(products.partner < 0, -1, numbers[products.partner])
    spreaded = replace(
        products,
        inner=spread(products.inner),
        forward_norm2=spread(products.forward_norm2),
        reverse_norm2=spread(products.reverse_norm2),
        partner=partner,
        control_inner=spread(products.control_inner),
        control_norm2=spread(products.control_norm2),
    )
    return replace(seen, excluded=excluded, gradients=spreaded)


def _storage_readings(m: LoadedModel, seen: Observation) -> Observation:
    asked = [i for i, pair in enumerate(seen.pairs) if pair.unsupported is None]
    found = stored(m, [seen.pairs[i].reverse for i in asked])
    if not asked:
        return seen

    def spread(values: Tensor) -> Tensor:
        out = torch.full((len(seen.pairs), *values.shape[1:]), torch.nan, dtype=torch.float64)
        out[asked] = values
        return out

    return replace(
        seen,
        storage=spread(found.own),
        storage_mismatched=spread(found.mismatched),
        storage_spread=spread(found.spread),
    )
