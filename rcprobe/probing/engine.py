"""``observe``: everything that was asked about query pairs, as plain tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rcprobe.controls import assign, other_targets
from rcprobe.errors import CaptureError, DataError
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.probing.answers import FULL, Reading, judge_answers, mean_log_prob, readings
from rcprobe.probing.batch import collate, in_batches
from rcprobe.probing.capture import capture
from rcprobe.probing.gradients import GradientProducts, gradient_products
from rcprobe.probing.parameters import Which
from rcprobe.probing.storage import storage
from rcprobe.queries import with_target

READS = frozenset({"scores", "log_probs", "gradients", "storage"})
ALTERNATIVES = 8  # other targets a causal model is asked for, each at the price of a prompt


@dataclass(frozen=True)
class Observation:
    """Readings of B query pairs; what wasn't asked for is None, what couldn't be read is NaN.

    The axis of two is (forward, reverse). N layers with softmax attention, H heads. Everything is float64.

    Attributes:
        pairs: the pairs, in the order asked.
        excluded: pair index → why it carries no numbers (unsupported, or non-finite and where).
        scores, log_weights, attendable: at (query row, evidence), anchors the first tokens.
        log_probs: Σ over target tokens of log p, full vocabulary.
        readings: reading → (log p, right or wrong as 1 or 0), the full vocabulary among them.
        alternatives: mean log p of other trained targets at the reverse query.
        saturated: p(target) so near 1 that its gradient is rounding noise.
        gradients: inner products of gradients, with controls.
        storage, storage_mismatched: W̃[a, b], and its mean over other facts' a.
    """

    pairs: tuple[QueryPair, ...]
    excluded: Mapping[int, str]
    scores: Float[Tensor, "B 2 N H"] | None = None
    log_weights: Float[Tensor, "B 2 N H"] | None = None
    attendable: Bool[Tensor, "B 2 N H"] | None = None
    log_probs: Float[Tensor, "B 2"] | None = None
    readings: Mapping[str, tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]] | None = None
    alternatives: Float[Tensor, " B"] | None = None
    saturated: Bool[Tensor, "B 2"] | None = None
    gradients: GradientProducts | None = None
    storage: Float[Tensor, "B N H"] | None = None
    storage_mismatched: Float[Tensor, "B N H"] | None = None


def observe(
    m: LoadedModel,
    pairs: Sequence[QueryPair],
    *,
    read: frozenset[str] | set[str] = frozenset({"scores", "log_probs"}),
    parameters: Which = "trainable",
    controls: int = 8,
    batch_size: int = 256,
    candidates: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Observation:
    """Read what the metrics need of query pairs, each query once.

    ``read`` is a subset of ``READS``; ``parameters`` and ``controls`` concern gradients (controls a pair, the three
    kinds in turn); ``candidates`` names readings beside the full vocabulary. Pairs that can't be asked keep their
    row, as NaN, and their reason. Raises ``DataError`` for no pairs or an unknown reading.
    """
    if not pairs:
        raise DataError("no pairs to observe")
    unknown = set(read) - READS
    if unknown:
        raise DataError(f"read: {sorted(unknown)[0]!r} is none of {', '.join(sorted(READS))}")
    seen = Observation(tuple(pairs), {i: p.unsupported for i, p in enumerate(pairs) if p.unsupported})
    if {"scores", "log_probs"} & set(read):
        seen = _forward_readings(m, seen, "scores" in read, readings(m, candidates or {}), batch_size)
    if "gradients" in read:
        seen = _gradient_readings(m, seen, controls, parameters, batch_size)
    if "storage" in read:
        seen = _storage_readings(m, seen)
    return seen


def _askable(seen: Observation) -> list[int]:
    return [i for i, pair in enumerate(seen.pairs) if pair.unsupported is None]


def _forward_readings(
    m: LoadedModel, seen: Observation, scores: bool, kinds: Sequence[Reading], batch_size: int
) -> Observation:
    asked = _askable(seen)
    if not asked:
        return _no_readings(seen, scores, kinds)
    others = other_targets(seen.pairs)
    wanted: dict[Query, int] = {}
    for i in asked:
        for query in (seen.pairs[i].forward, seen.pairs[i].reverse):
            wanted.setdefault(query, len(wanted))
    alternatives = {seen.pairs[i].reverse: others[i] for i in asked}
    table = _ask(m, list(wanted), alternatives, kinds, scores, batch_size)
    rows = torch.tensor([[wanted[seen.pairs[i].forward], wanted[seen.pairs[i].reverse]] for i in asked])
    size = len(seen.pairs)

    def spread(values: Tensor, fill: float | bool = torch.nan) -> Tensor:
        out = torch.full((size, 2, *values.shape[1:]), fill, dtype=values.dtype)
        out[asked] = values[rows]
        return out

    read = {name: (spread(p), spread(right)) for name, (p, right) in table.readings.items()}
    log_probs = read[FULL][0]
    found = replace(
        seen,
        log_probs=log_probs,
        readings=read,
        alternatives=spread(table.alternatives)[:, 1],
        saturated=log_probs.exp() > 1 - (1e-3 if m.dtype.itemsize < 4 else 1e-6),
    )
    if scores:
        found = replace(
            found,
            scores=spread(table.scores),
            log_weights=spread(table.log_weights),
            attendable=spread(table.attendable, False),
        )
    return _mark_non_finite(found)


def _no_readings(seen: Observation, scores: bool, kinds: Sequence[Reading]) -> Observation:
    """Where no pair can be asked: rows of NaN, and no layer to speak of."""
    size = len(seen.pairs)
    blank = torch.full((size, 2), torch.nan, dtype=torch.float64)
    cells = torch.empty(size, 2, 0, 0, dtype=torch.float64) if scores else None
    return replace(
        seen,
        log_probs=blank,
        readings={kind.name: (blank, blank) for kind in kinds},
        alternatives=blank[:, 0],
        saturated=torch.zeros(size, 2, dtype=torch.bool),
        scores=cells,
        log_weights=cells,
        attendable=None if cells is None else cells.bool(),
    )


@dataclass(frozen=True)
class _Table:
    scores: Tensor
    log_weights: Tensor
    attendable: Tensor
    alternatives: Tensor
    readings: dict[str, tuple[Tensor, Tensor]]


def _ask(
    m: LoadedModel,
    queries: list[Query],
    alternatives: Mapping[Query, Sequence[tuple[int, ...]]],
    kinds: Sequence[Reading],
    scores: bool,
    batch_size: int,
) -> _Table:
    columns: dict[str, list[Tensor]] = {}
    order: list[int] = []
    for indices in in_batches(queries, batch_size):
        chosen = [queries[i] for i in indices]
        batch = collate(m, chosen)
        captured = capture(m, batch, scores=scores)
        logits = m.adapter.logits(captured.logits, m.mask_id)
        others = [alternatives.get(query, ()) for query in chosen]
        shared = [
            o if m.adapter.objective == "masked" or len(q.rows) == 1 else ()
            for q, o in zip(chosen, others, strict=True)
        ]
        means = mean_log_prob(logits, batch, shared)
        for b, (query, targets) in enumerate(zip(chosen, others, strict=True)):
            if targets and not shared[b]:
                means[b] = _forced_mean(m, query, targets)
        answers = {kind.name: judge_answers(logits, batch, kind) for kind in kinds}
        found = {"scores": captured.scores.double(), "log_weights": captured.log_weights.double()}
        found |= {"attendable": captured.attendable, "alternatives": means}
        for name, (log_probs, right) in answers.items():
            found |= {f"p {name}": log_probs, f"right {name}": right}
        for name, values in found.items():
            columns.setdefault(name, []).append(values.cpu())
        order.extend(indices)
    back = torch.tensor(order, dtype=torch.long).argsort()
    joined = {name: torch.cat(values)[back] for name, values in columns.items()}
    read = {kind.name: (joined[f"p {kind.name}"], joined[f"right {kind.name}"]) for kind in kinds}
    return _Table(joined["scores"], joined["log_weights"], joined["attendable"], joined["alternatives"], read)


def _forced_mean(m: LoadedModel, query: Query, targets: Sequence[tuple[int, ...]]) -> Tensor:
    """The mean of log p over other targets whose own tokens a causal model must read: a prompt each."""
    asked = [with_target(query, ids, m) for ids in targets[:ALTERNATIVES]]
    batch = collate(m, asked)
    logits = m.adapter.logits(capture(m, batch, scores=False).logits, m.mask_id)
    return judge_answers(logits, batch, Reading(FULL, None))[0].mean().cpu()


def _mark_non_finite(seen: Observation) -> Observation:
    """Name pairs with a NaN or infinite reading, and blank them."""
    assert seen.log_probs is not None
    assert seen.readings is not None
    broken: dict[int, str] = {}
    if seen.scores is not None:
        wrong = ~seen.scores.isfinite().all(dim=3).all(dim=1)  # B N
        for i, layer in wrong.nonzero().tolist():
            broken.setdefault(i, f"non-finite attention score at layer {layer}")
    for i in (~seen.log_probs.isfinite().all(dim=1)).nonzero().flatten().tolist():
        broken.setdefault(i, "non-finite log-probability")
    rows = torch.tensor([i for i in broken if i not in seen.excluded], dtype=torch.long)

    def blank(values: Tensor) -> Tensor:
        return values.index_fill(0, rows, torch.nan)

    assert seen.alternatives is not None
    found = replace(
        seen,
        excluded={**broken, **seen.excluded},
        log_probs=blank(seen.log_probs),
        alternatives=blank(seen.alternatives),
        readings={name: (blank(p), blank(right)) for name, (p, right) in seen.readings.items()},
    )
    if seen.scores is None or seen.log_weights is None:
        return found
    return replace(found, scores=blank(seen.scores), log_weights=blank(seen.log_weights))


def _gradient_readings(
    m: LoadedModel, seen: Observation, controls: int, parameters: Which, batch_size: int
) -> Observation:
    asked = [i for i in range(len(seen.pairs)) if i not in seen.excluded]
    pairs = [seen.pairs[i] for i in asked]
    products = gradient_products(m, pairs, assign(pairs, controls), parameters=parameters, batch_size=batch_size)
    excluded = dict(seen.excluded)
    for row, i in enumerate(asked):
        bad = ~(products.forward_norm2[row].isfinite() & products.reverse_norm2[row].isfinite())
        if bad.any():
            excluded[i] = f"non-finite gradient of {products.parts[int(bad.int().argmax())].name}"

    def spread(values: Tensor) -> Tensor:
        out = torch.full((len(seen.pairs), *values.shape[1:]), torch.nan, dtype=torch.float64)
        out[asked] = values
        out[list(excluded)] = torch.nan
        return out

    partner = torch.full((len(seen.pairs), controls), -1)
    partner[asked] = torch.where(products.partner < 0, -1, torch.tensor(asked, dtype=torch.long)[products.partner])
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
    circuit = m.adapter.ov_circuit
    if circuit is None:
        raise CaptureError(f"{m.adapter.name}: it declares no ov_circuit, so storage can't be read")
    asked = _askable(seen)
    cells = {i: (seen.pairs[i].reverse.target_ids[0], _evidence_token(seen.pairs[i].reverse)) for i in asked}
    answers = sorted({a for a, _ in cells.values()})
    evidence = sorted({b for _, b in cells.values()})
    if not cells:
        return seen
    table = storage(m.model, circuit, answers, evidence).cpu()
    shape = (len(seen.pairs), *table.shape[:2])
    own = torch.full(shape, torch.nan, dtype=torch.float64)
    mismatched = own.clone()
    right: dict[int, set[int]] = {}
    for i, (a, b) in cells.items():
        right.setdefault(b, set()).update({a, *(ids[0] for ids in seen.pairs[i].reverse.other_answers)})
    for i, (a, b) in cells.items():
        column = table[..., evidence.index(b)]
        own[i] = column[..., answers.index(a)]
        others = [k for k, token in enumerate(answers) if token not in right[b]]
        mismatched[i] = column[..., others].mean(dim=-1)
    return replace(seen, storage=own, storage_mismatched=mismatched)


def _evidence_token(query: Query) -> int:
    return query.input_ids[query.evidence_positions[0]]
