"""Prompts as padded tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    ids = [torch.tensor(query.input_ids) for query in queries]
    pad = torch.nn.utils.rnn.pad_sequence
    device = m.device

    def padded(values: list[Tensor], fill: int = 0) -> Tensor:
        return pad(values, batch_first=True, padding_value=fill).to(device)

    return Batch(
        input_ids=padded(ids, m.pad_id),
        attention_mask=padded([torch.ones_like(x) for x in ids]),
        rows=padded([torch.tensor(query.rows) for query in queries]),
        targets=padded([torch.tensor(query.target_ids) for query in queries]),
        counts=padded([torch.ones(len(query.rows), dtype=torch.bool) for query in queries]),
        row=torch.tensor([query.row for query in queries], device=device),
        evidence=torch.tensor([query.evidence_positions[0] for query in queries], device=device),
    )


def in_batches(queries: Sequence[Query], size: int) -> Iterator[list[int]]:
    """Indices of queries in batches of at most ``size``, prompts of like length together."""
    order = sorted(range(len(queries)), key=lambda i: len(queries[i].input_ids))
    for start in range(0, len(order), size):
        yield order[start : start + size]
