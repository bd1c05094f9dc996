"""What a pass over a batch yields, whichever way it was tapped: plain tensors."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rcprobe.errors import CaptureError
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import Batch
from rcprobe.probing.scores import CellScores, attention_call, cell_scores


@dataclass(frozen=True)
class Call:
    """What went into a module, and what came out, in one visit."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Tensor

    @property
    def input(self) -> Tensor:
        """The first argument, by place or by name."""
        first: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return first


@dataclass(frozen=True)
class Captured:
    """Readings of B prompts, scores at R query rows by E evidence tokens, the first of each the anchor.

    N counts the layers with softmax attention; no scores were asked where it is 0.
    """

    logits: Float[Tensor, "B T V"]
    scores: Float[Tensor, "B N H R E"]
    log_weights: Float[Tensor, "B N H R E"]
    attendable: Bool[Tensor, "B N H R E"]
    calls: Mapping[str, Sequence[Call]] = field(default_factory=dict)


def read_call(args: Sequence[Any], kwargs: Mapping[str, Any], batch: Batch) -> CellScores:
    """The batch's cells in one attention call, cut loose from the graph."""
    with torch.no_grad():
        return cell_scores(attention_call(args, kwargs), batch.score_rows, batch.evidence)


def stack(cells: Sequence[CellScores], batch: Batch) -> dict[str, Any]:
    """Layers' readings as the fields of ``Captured``."""
    if not cells:
        empty = torch.empty(len(batch.rows), 0, 0, batch.score_rows.shape[1], batch.evidence.shape[1])
        return {"scores": empty, "log_weights": empty, "attendable": empty.bool()}
    return {
        "scores": torch.stack([cell.score for cell in cells], dim=1),
        "log_weights": torch.stack([cell.log_weight for cell in cells], dim=1),
        "attendable": torch.stack([cell.attendable for cell in cells], dim=1),
    }


def target_rows(values: Float[Tensor, "B L X"], batch: Batch) -> Float[Tensor, "B T X"]:
    """Hidden states or logits at the rows that predict the targets."""
    return values[torch.arange(len(batch.rows), device=batch.rows.device)[:, None], batch.rows]


def log_softmax(m: LoadedModel, logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T V"]:
    """Log-probabilities of the full vocabulary as the family reads it; half precision is raised to float32."""
    rows = m.adapter.logits(logits, m.mask_id)
    return torch.log_softmax(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)


def negative_log_prob(log_probs: Float[Tensor, "B T V"], batch: Batch) -> Float[Tensor, " B"]:
    """Σ over target tokens of −log p(target) of each prompt: the losses whose gradients are compared."""
    own = log_probs.gather(-1, batch.targets[..., None]).squeeze(-1)
    return -own.masked_fill(~batch.counts, 0.0).sum(dim=1)


def model_inputs(model: nn.Module, batch: Batch, expand_positions: bool = False) -> dict[str, Any]:
    """The keyword arguments of a forward pass over the batch.

    ``expand_positions`` gives each prompt position ids of its own, where the model would share one row of them
    among all prompts (and so add up their gradients).
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "use_cache" in forward_arguments(model):
        inputs["use_cache"] = False
    if expand_positions:
        length = batch.input_ids.shape[1]
        inputs["position_ids"] = torch.arange(length, device=batch.rows.device).expand_as(batch.input_ids).contiguous()
    return inputs


def forward_arguments(model: nn.Module) -> Collection[str]:
    """What a forward pass takes by name; a model in peft's wrapper hands everything on."""
    wrapped = getattr(model, "get_base_model", None)
    return inspect.signature(type(wrapped() if wrapped else model).forward).parameters


def head_path(model: nn.Module) -> str:
    """The dotted name of the output head. Raises ``CaptureError`` for a model without one."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for path, module in model.named_modules():
        if module is head:
            return str(path)
    raise CaptureError(f"{type(model).__name__} has no output head (get_output_embeddings() gives {head})")
