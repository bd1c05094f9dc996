"""Attention scores of selected cells, from the queries and keys of one attention call.

Shapes: B prompts, H heads, K key/value heads, L length, D head width. Scores are those the model uses: after the
positional encoding, scaled, with bias and soft cap, before the softmax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rcprobe.errors import CaptureError


@dataclass(frozen=True)
class AttentionCall:
    """What transformers hands to an attention function."""

    query: Float[Tensor, "B H L D"]
    key: Float[Tensor, "B K L D"]
    mask: Tensor | None
    scaling: float
    causal: bool
    bias: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True)
class CellScores:
    """One layer's reading at the cell (query row, evidence) of each prompt.

    ``log_weight`` is the score minus the row's logsumexp: the log attention weight. ``attendable`` is false where
    the model's mask forbids the cell; the score still exists there, the weight is zero.
    """

    score: Float[Tensor, "B H"]
    log_weight: Float[Tensor, "B H"]
    attendable: Bool[Tensor, "B H"]


def attention_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> AttentionCall:
    """Name the arguments of an attention function: ``f(module, query, key, value, mask, scaling=…)``."""
    module, query, key = args[0], args[1], args[2]
    mask = args[4] if len(args) > 4 else kwargs.get("attention_mask")
    if mask is not None and mask.ndim != 4:
        raise CaptureError(
            f"{type(module).__name__}: its attention mask has {mask.ndim} dimensions; scores need a 4-D mask, "
            "so load the model with attn_implementation 'sdpa' or 'eager'"
        )
    scaling = kwargs.get("scaling")
    causal = kwargs.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    return AttentionCall(
        query=query,
        key=key,
        mask=mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        causal=bool(causal) and mask is None and query.shape[2] > 1,
        bias=kwargs.get("position_bias"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )


def sdpa_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    """Name the arguments of torch's ``scaled_dot_product_attention``."""
    mask = attn_mask
    while mask is not None and mask.ndim < 4:
        mask = mask[None]
    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    return AttentionCall(query=query, key=key, mask=mask, scaling=scaling, causal=is_causal)


def softmax_cells(scores: Float[Tensor, "B H L L"], row: Int[Tensor, " B"], evidence: Int[Tensor, " B"]) -> CellScores:
    """The cells of scores on their way into a softmax, less the mean over the keys that their row may attend to.

    Some models add a constant that depends on how far the batch was padded (MPT), which the softmax doesn't see.
    The mask was added before, so a forbidden cell's score is gone: it gets the lowest of its row.
    """
    prompts = torch.arange(len(row), device=row.device)
    rows = scores[prompts, :, row]
    allowed = rows > torch.finfo(scores.dtype).min / 2
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    rows = rows - (rows.masked_fill(~allowed, 0.0).sum(dim=-1) / allowed.sum(dim=-1))[..., None]
    lowest = rows.masked_fill(~allowed, torch.inf).amin(dim=-1)
    attendable = allowed[prompts, :, evidence]
    cell = rows[prompts, :, evidence].where(attendable, lowest)
    log_weight = cell - rows.masked_fill(~allowed, -torch.inf).logsumexp(dim=-1)
    return CellScores(cell, log_weight.masked_fill(~attendable, -torch.inf), attendable)


def cell_scores(call: AttentionCall, row: Int[Tensor, " B"], evidence: Int[Tensor, " B"]) -> CellScores:
    """Score and log weight of the cell (row, evidence) of each prompt; half precision is raised to float32."""
    prompts = torch.arange(len(row), device=row.device)
    scores = _row_scores(call, prompts, row)
    allowed, scores = _allowed(call, scores, prompts, row)
    cell = scores[prompts, :, evidence]
    reachable = scores.masked_fill(~allowed, -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.to(scores.dtype).reshape(1, -1, 1).expand(len(row), -1, 1)
        reachable = torch.cat([reachable, sinks], dim=-1)
    attendable = allowed[prompts, :, evidence]
    log_weight = (cell - reachable.logsumexp(dim=-1)).masked_fill(~attendable, -torch.inf)
    return CellScores(cell, log_weight, attendable)


def _row_scores(call: AttentionCall, prompts: Tensor, row: Tensor) -> Float[Tensor, "B H L"]:
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    query = call.query[prompts, :, row].to(dtype)
    grouped = rearrange(query, "b (k g) d -> b k g d", k=call.key.shape[1])
    scores = torch.einsum("bkgd,bkld->bkgl", grouped, call.key.to(dtype)) * call.scaling
    scores = rearrange(scores, "b k g l -> b (k g) l")
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if call.bias is not None:
        scores = scores + _row_of(call.bias.to(dtype), prompts, row)
    return scores


def _allowed(call: AttentionCall, scores: Tensor, prompts: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Which keys the row may attend to [B, H, L], and scores with whatever finite the mask adds."""
    if call.mask is None:
        positions = torch.arange(scores.shape[-1], device=row.device)
        allowed = positions[None, None, :] <= row[:, None, None] if call.causal else torch.ones_like(scores[:1, :1]) > 0
        return allowed.expand(scores.shape), scores
    mask = _row_of(call.mask, prompts, row)
    if mask.dtype == torch.bool:
        return mask.expand(scores.shape), scores
    allowed = mask > torch.finfo(mask.dtype).min / 2
    return allowed.expand(scores.shape), scores + mask.to(scores.dtype).masked_fill(~allowed, 0.0)


def _row_of(table: Tensor, prompts: Tensor, row: Tensor) -> Tensor:
    """The given row of [B or 1, H or 1, L, L] for each prompt → [B, H or 1, L]."""
    return table.expand(len(prompts), -1, -1, -1)[prompts, :, row]
