"""What a pass over a batch yields, whichever way it was tapped: plain tensors."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import Batch
from rcprobe.probing.scores import CellScores, attention_call, cell_scores


@dataclass(frozen=True)
class Captured:
    """Readings of B prompts. N counts the layers with softmax attention; no scores were asked where it is 0."""

    logits: Float[Tensor, "B T V"]
    scores: Float[Tensor, "B N H"]
    log_weights: Float[Tensor, "B N H"]
    attendable: Bool[Tensor, "B N H"]


def read_call(args: Sequence[Any], kwargs: Mapping[str, Any], batch: Batch) -> CellScores:
    """The batch's cells in one attention call, cut loose from the graph."""
    with torch.no_grad():
        return cell_scores(attention_call(args, kwargs), batch.row, batch.evidence)


def stack(cells: Sequence[CellScores], prompts: int) -> dict[str, Tensor]:
    """Layers' readings as the fields of ``Captured``."""
    if not cells:
        empty = torch.empty(prompts, 0, 0)
        return {"scores": empty, "log_weights": empty, "attendable": empty.bool()}
    return {
        "scores": torch.stack([cell.score for cell in cells], dim=1),
        "log_weights": torch.stack([cell.log_weight for cell in cells], dim=1),
        "attendable": torch.stack([cell.attendable for cell in cells], dim=1),
    }


def target_logits(logits: Float[Tensor, "B L V"], batch: Batch) -> Float[Tensor, "B T V"]:
    """Logits at the rows that predict the targets."""
    return logits[torch.arange(len(batch.row), device=batch.row.device)[:, None], batch.rows]


def negative_log_prob(m: LoadedModel, logits: Float[Tensor, "B L V"], batch: Batch) -> Float[Tensor, ""]:
    """Σ over prompts and target tokens of −log p(target): the loss whose gradients are compared."""
    rows = m.adapter.logits(target_logits(logits, batch), m.mask_id)
    dtype = torch.promote_types(rows.dtype, torch.float32)
    log_probs = torch.log_softmax(rows.to(dtype), dim=-1).gather(-1, batch.targets[..., None]).squeeze(-1)
    return -log_probs[batch.counts].sum()


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The keyword arguments of a forward pass over the batch."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        inputs["use_cache"] = False
    return inputs
