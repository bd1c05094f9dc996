"""Knocking out attention: how far the target's log-probability falls when its rows can't see the evidence.

A cut forbids every cell from the rows that predict the target to the tokens of the evidence: in all layers and heads
at once, in each layer, and in each head. Each cut is made once more with as many other tokens, the control.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel
from rcprobe.probing.answers import FULL, Reading, judge_answers
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import capture
from rcprobe.probing.cut import AttentionCut, Cut
from rcprobe.probing.sizes import BatchSize, resolve, worked_through

ENDS = ("bos", "eos", "cls", "sep")  # tokens that begin and end texts, as tokenizers name them
Seen = tuple[Float[Tensor, " B"], Bool[Tensor, "B N H"], Bool[Tensor, " B"]]


@dataclass(frozen=True)
class Knockout:
    """Falls of log p(target), Σ over its tokens, in nats (float64); NaN where there was nothing to cut.

    The axis of two is (evidence, control). N counts layers with softmax attention, H heads.
    """

    everywhere: Float[Tensor, "*Q 2"]
    layers: Float[Tensor, "*Q 2 N"]
    heads: Float[Tensor, "*Q 2 N H"]


@dataclass(frozen=True)
class Trial:
    """One prompt of a sweep: which query, cut how; ``kind`` 0 for evidence, 1 for the control, −1 for no cut."""

    query: int
    kind: int
    cut: Cut


def control_tokens(m: LoadedModel, query: Query) -> tuple[int, ...]:
    """As many other tokens of the prompt as the evidence has, or none where there aren't as many.

    For each token of the evidence in turn: the free token whose distance to the first query row is nearest to that
    token's own; of two as near, the one on the other side of the row, and of two on one side the one further left.
    Free are tokens that are neither evidence, masks nor query rows, nor begin or end texts (to those much attention
    goes whatever is asked), and that a causal model's first query row can see. A causal model's first token draws
    attention as a begin token does, whatever it is: it is no control, and evidence that holds it has none.
    """
    causal = m.adapter.objective == "causal"
    if causal and 0 in query.evidence_positions:
        return ()
    special = {m.mask_id, *(getattr(m.tokenizer, f"{name}_token_id", None) for name in ENDS)}
    end = query.row if causal else len(query.input_ids)
    taken = {*query.rows, *query.evidence_positions, *([0] if causal else [])}
    free = [p for p in range(end) if p not in taken and query.input_ids[p] not in special]
    if len(free) < len(query.evidence_positions):
        return ()
    chosen: list[int] = []
    for token in query.evidence_positions:
        offset = token - query.row
        nearest = min(
            (p for p in free if p not in chosen),
            key=lambda p: (abs(abs(p - query.row) - abs(offset)), (p - query.row) * offset > 0, p),
        )
        chosen.append(nearest)
    return tuple(chosen)


def attention_size(m: LoadedModel, query: Query) -> tuple[int, int]:
    """How many layers with softmax attention a model has, and heads in each. Raises ``CaptureError`` for none."""
    _, reached, _ = _run(m, [query], [Cut()])
    return reached.shape[1], reached.shape[2]


def passes(size: tuple[int, int]) -> int:
    """Prompts that a sweep puts through the model for each query: 3 + 2N + 2NH, less what one layer or head saves."""
    layers, heads = size
    return 1 + 2 * (1 + (layers if layers > 1 else 0) + (layers * heads if heads > 1 else 0))


def knock_out(m: LoadedModel, queries: Sequence[Query], batch_size: BatchSize) -> Knockout:
    """Sweep over Q queries: falls [Q, 2], [Q, 2, N] and [Q, 2, N, H].

    Cuts of one query go through together, as prompts of one batch. Raises ``CaptureError`` for a model whose
    attention can't be reached.
    """
    shortest_first = sorted(range(len(queries)), key=lambda i: len(queries[i].input_ids))
    if not queries:
        return Knockout(*(torch.empty(shape, dtype=torch.float64) for shape in ((0, 2), (0, 2, 0), (0, 2, 0, 0))))
    layers, heads = size = attention_size(m, queries[shortest_first[0]])
    trials = [trial for i in shortest_first for trial in _trials(m, i, queries[i], size)]
    most = resolve(m, batch_size, len(queries[shortest_first[-1]].input_ids), gradients=False)
    whole = torch.full((len(queries),), torch.nan, dtype=torch.float64)
    cut = torch.full((len(queries), 2, layers + 1, heads + 1), torch.nan, dtype=torch.float64)  # last: all of them

    def work(some: list[Trial]) -> Seen:
        return _run(m, [queries[trial.query] for trial in some], [trial.cut for trial in some])

    for group, (log_probs, reached, blind), _ in worked_through(trials, most, lambda _: 1, work):
        sound = ~blind & log_probs.isfinite()
        met = reached.flatten(1).any(dim=1)
        for trial, value, ok, there in zip(group, log_probs.tolist(), sound.tolist(), met.tolist(), strict=True):
            if trial.kind < 0 and ok:
                whole[trial.query] = value
            elif ok and there:
                layer, head = (-1 if place is None else place for place in (trial.cut.layer, trial.cut.head))
                cut[trial.query, trial.kind, layer, head] = value
    fall = whole[:, None, None, None] - cut
    everywhere = fall[:, :, -1, -1]
    by_layer = fall[:, :, :-1, -1] if layers > 1 else everywhere[..., None]
    return Knockout(everywhere, by_layer, fall[:, :, :-1, :-1] if heads > 1 else by_layer[..., None])


def _trials(m: LoadedModel, i: int, query: Query, size: tuple[int, int]) -> list[Trial]:
    layers, heads = size
    places: list[tuple[int | None, int | None]] = [(None, None)]
    places += [(layer, None) for layer in range(layers)] if layers > 1 else []
    places += [(layer, head) for layer in range(layers) for head in range(heads)] if heads > 1 else []
    tokens = (query.evidence_positions, control_tokens(m, query))
    cuts = [Trial(i, k, Cut(query.rows, some, *place)) for k, some in enumerate(tokens) if some for place in places]
    return [Trial(i, -1, Cut()), *cuts]


def _run(m: LoadedModel, queries: Sequence[Query], cuts: Sequence[Cut]) -> Seen:
    """log p of each prompt's target under its cut, where the cut met a cell, and which prompts it blinded."""
    batch = collate(m, queries)
    with AttentionCut(batch, cuts) as attention:
        logits = capture(m, batch, scores=False).logits
    attention.check(m)
    log_probs = judge_answers(m.adapter.logits(logits, m.mask_id), batch, Reading(FULL, None))[0]
    return log_probs.cpu(), attention.reached.cpu(), attention.blind.cpu()
