"""Prompts as padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel


@dataclass(frozen=True)
class Batch:
    """B prompts, padded right to L tokens and to T target tokens.

    ``row`` and ``evidence`` are the anchors of the attention score; ``rows`` the positions whose logits predict
    ``targets``, valid where ``counts`` says so.
    """

    input_ids: Int[Tensor, "B L"]
    attention_mask: Int[Tensor, "B L"]
    rows: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    counts: Bool[Tensor, "B T"]
    row: Int[Tensor, " B"]
    evidence: Int[Tensor, " B"]


def collate(m: LoadedModel, queries: Sequence[Query]) -> Batch:
    """Pad queries right and move them to the model's device."""
    device = m.device
    lengths = torch.tensor([len(query.input_ids) for query in queries])
    asked = torch.tensor([len(query.rows) for query in queries])
    return Batch(
        input_ids=_padded([query.input_ids for query in queries], m.pad_id).to(device),
        attention_mask=(torch.arange(int(lengths.max())) < lengths[:, None]).long().to(device),
        rows=_padded([query.rows for query in queries]).to(device),
        targets=_padded([query.target_ids for query in queries]).to(device),
        counts=(torch.arange(int(asked.max())) < asked[:, None]).to(device),
        row=torch.tensor([query.row for query in queries], device=device),
        evidence=torch.tensor([query.evidence_positions[0] for query in queries], device=device),
    )


def relabelled(batch: Batch, queries: Sequence[Query]) -> Batch:
    """The same prompts asked at the same rows for the targets of ``queries``."""
    return replace(batch, targets=_padded([query.target_ids for query in queries]).to(batch.targets.device))


def _padded(rows: Sequence[Sequence[int]], fill: int = 0) -> Int[Tensor, "B L"]:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
