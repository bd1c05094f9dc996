"""Prompts as padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel


@dataclass(frozen=True)
class Cells:
    """What the score rows and evidence tokens after the anchors are.

    ``slot``: the second row is the target's own place, where a shifted model predicts from the row before it.
    ``spans``: which cells join a row that predicts the target with a token of the evidence, where all are read.
    """

    slot: bool = False
    spans: Bool[Tensor, "B R E"] | None = None


@dataclass(frozen=True)
class Batch:
    """B prompts, padded right to L tokens and to T target tokens.

    ``rows`` are the positions whose logits predict ``targets``, valid where ``counts`` says so. Scores are read at
    every cell of ``score_rows`` × ``evidence``; of each the first is the anchor, and the others are what ``cells``
    says of them.
    """

    input_ids: Int[Tensor, "B L"]
    attention_mask: Int[Tensor, "B L"]
    rows: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    counts: Bool[Tensor, "B T"]
    score_rows: Int[Tensor, "B R"]
    evidence: Int[Tensor, "B E"]
    cells: Cells = Cells()


def collate(m: LoadedModel, queries: Sequence[Query], *, spans: bool = False) -> Batch:
    """Pad queries right and move them to the model's device; ``spans`` asks for scores of whole spans too."""
    device = m.device
    lengths = torch.tensor([len(query.input_ids) for query in queries])
    asked = torch.tensor([len(query.rows) for query in queries])
    slot = m.adapter.objective == "masked" and m.adapter.shift > 0
    slots = [(query.row + m.adapter.shift,) if slot else () for query in queries]
    evidence = [query.evidence_positions if spans else query.evidence_positions[:1] for query in queries]
    rows = [(q.row, *s, *(q.rows[1:] if spans else ())) for q, s in zip(queries, slots, strict=True)]
    cells = Cells(slot, _span_cells(rows, evidence, slot).to(device) if spans else None)
    return Batch(
        input_ids=padded([query.input_ids for query in queries], m.pad_id).to(device),
        attention_mask=(torch.arange(int(lengths.max())) < lengths[:, None]).long().to(device),
        rows=padded([query.rows for query in queries]).to(device),
        targets=padded([query.target_ids for query in queries]).to(device),
        counts=(torch.arange(int(asked.max())) < asked[:, None]).to(device),
        score_rows=padded(rows).to(device),
        evidence=padded(evidence).to(device),
        cells=cells,
    )


def _span_cells(rows: Sequence[Sequence[int]], evidence: Sequence[Sequence[int]], slot: bool) -> Bool[Tensor, "B R E"]:
    of_target = padded([[1] * len(row) for row in rows]).bool()
    if slot:
        of_target[:, 1] = False
    return of_target[:, :, None] & padded([[1] * len(tokens) for tokens in evidence]).bool()[:, None, :]


def relabelled(batch: Batch, queries: Sequence[Query]) -> Batch:
    """The same prompts asked at the same rows for the targets of ``queries``."""
    return replace(batch, targets=padded([query.target_ids for query in queries]).to(batch.targets.device))


def padded(rows: Sequence[Sequence[int]], fill: int = 0) -> Int[Tensor, "B L"]:
    """Rows of numbers as a tensor, filled up on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
