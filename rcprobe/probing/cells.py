"""Which attention scores of a batch stand for its queries: the anchors, and beside them slots and whole spans."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rcprobe.probing.batch import Batch
from rcprobe.probing.captured import Captured

Wide = Float[Tensor, "B N H R E"]


@dataclass(frozen=True)
class CellReading:
    """One score a query, layer and head, and the log attention weight; ``attendable`` where the mask allows it."""

    scores: Float[Tensor, "*B N H"]
    log_weights: Float[Tensor, "*B N H"]
    attendable: Bool[Tensor, "*B N H"]

    def map(self, change: Callable[[Tensor], Tensor]) -> "CellReading":
        """The same with each tensor changed alike."""
        return CellReading(change(self.scores), change(self.log_weights), change(self.attendable))


def cell_readings(batch: Batch, captured: Captured) -> dict[str, CellReading]:
    """``anchor``: first target row, first evidence token. For shifted models also ``slot``, the row of the target's
    own place; where spans were read, ``mean``, ``max`` and ``last`` over target rows × evidence tokens (forbidden
    cells left out of the first two).
    """
    found = {"anchor": _at(captured, 0, 0)}
    if batch.cells.slot:
        found["slot"] = _at(captured, 1, 0)
    if batch.cells.spans is not None:
        found |= _over_spans(captured, batch.cells.spans)
    return found


def _at(captured: Captured, row: int, token: int) -> CellReading:
    whole = CellReading(captured.scores, captured.log_weights, captured.attendable)
    return whole.map(lambda values: values[..., row, token])


def _over_spans(captured: Captured, spans: Bool[Tensor, "B R E"]) -> dict[str, CellReading]:
    kept = captured.attendable & spans[:, None, None]
    some = kept.flatten(-2).any(dim=-1)

    def mean(values: Wide) -> Float[Tensor, "B N H"]:
        return values.where(kept, 0.0).flatten(-2).sum(dim=-1) / kept.flatten(-2).sum(dim=-1)

    def largest(values: Wide) -> Float[Tensor, "B N H"]:
        return values.where(kept, -torch.inf).flatten(-2).amax(dim=-1).where(some, torch.nan)

    cells = spans.flatten(1)
    last = cells.shape[1] - 1 - cells.flip(1).int().argmax(dim=1)

    def at_last(values: Tensor) -> Tensor:
        flat = values.flatten(-2)
        return flat.gather(-1, last[:, None, None, None].expand(*flat.shape[:3], 1)).squeeze(-1)

    return {
        "mean": CellReading(mean(captured.scores), mean(captured.log_weights), some),
        "max": CellReading(largest(captured.scores), largest(captured.log_weights), some),
        "last": CellReading(captured.scores, captured.log_weights, captured.attendable).map(at_last),
    }
