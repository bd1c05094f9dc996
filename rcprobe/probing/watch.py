"""Scores of models that call no attention interface (Bloom, MPT, Falcon, many a remote code's shape).

What they all do is call torch's own attention, or its softmax over a square of scores; a watch over those calls
reads the cells there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rcprobe.probing.batch import Batch
from rcprobe.probing.scores import CellScores, cell_scores, sdpa_call, softmax_cells

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class AttentionWatch(TorchFunctionMode):
    """While it is entered, every attention over the batch's prompts leaves its cells in ``cells``, in order."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch
        self.cells: list[CellScores] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch.no_grad():
            if func is F.scaled_dot_product_attention:
                self.cells.append(cell_scores(sdpa_call(*args, **kwargs), self.batch.score_rows, self.batch.evidence))
            elif func in SOFTMAX and is_attention(args, self.batch):
                self.cells.append(softmax_cells(args[0], self.batch.score_rows, self.batch.evidence))
        return func(*args, **kwargs)


def is_attention(args: Sequence[Any], batch: Batch) -> bool:
    """Whether a softmax's arguments are scores of the batch's prompts, [B, H, L, L]."""
    prompts, length = batch.input_ids.shape
    values = args[0] if args else None
    return (
        isinstance(values, Tensor)
        and values.ndim == 4
        and (values.shape[0], *values.shape[2:]) == (prompts, length, length)
    )
