"""Attention scores of selected cells, from the queries and keys of one attention call.

Shapes: B prompts, H heads, K key/value heads, L length, D head width, R query rows, E evidence tokens. Scores are
those the model uses: after the positional encoding, scaled, with bias and soft cap, before the softmax.
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
    """One layer's readings at the cells (query row, evidence) of each prompt, R rows by E evidence tokens.

    ``log_weight`` is the score minus the row's logsumexp: the log attention weight. ``attendable`` is false where
    the model's mask forbids the cell; the score still exists there, the weight is zero.
    """

    score: Float[Tensor, "B H R E"]
    log_weight: Float[Tensor, "B H R E"]
    attendable: Bool[Tensor, "B H R E"]


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


def softmax_cells(
    scores: Float[Tensor, "B H L L"], rows: Int[Tensor, "B R"], evidence: Int[Tensor, "B E"]
) -> CellScores:
    """The cells of scores on their way into a softmax, less the mean over the keys that their row may attend to.

    Some models add a constant that depends on how far the batch was padded (MPT), which the softmax doesn't see.
    The mask was added before, so a forbidden cell's score is gone: it gets the lowest of its row.
    """
    found = _rows_of(scores, rows)
    allowed = found > torch.finfo(scores.dtype).min / 2
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    found = found - (found.masked_fill(~allowed, 0.0).sum(dim=-1) / allowed.sum(dim=-1))[..., None]
    lowest = found.masked_fill(~allowed, torch.inf).amin(dim=-1, keepdim=True)
    attendable = _at(allowed, evidence)
    cell = _at(found, evidence).where(attendable, lowest)
    log_weight = cell - found.masked_fill(~allowed, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return CellScores(cell, log_weight.masked_fill(~attendable, -torch.inf), attendable)


def cell_scores(call: AttentionCall, rows: Int[Tensor, "B R"], evidence: Int[Tensor, "B E"]) -> CellScores:
    """Scores and log weights of the cells (row, evidence) of each prompt; half precision is raised to float32."""
    allowed, scores = _allowed(call, _row_scores(call, rows), rows)
    reachable = scores.masked_fill(~allowed, -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        reachable = torch.cat([reachable, sinks], dim=-1)
    cell, attendable = _at(scores, evidence), _at(allowed, evidence)
    log_weight = cell - reachable.logsumexp(dim=-1, keepdim=True)
    return CellScores(cell, log_weight.masked_fill(~attendable, -torch.inf), attendable)


def _row_scores(call: AttentionCall, rows: Int[Tensor, "B R"]) -> Float[Tensor, "B H R L"]:
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    query = rearrange(_rows_of(call.query, rows).to(dtype), "b (k g) r d -> b k (g r) d", k=call.key.shape[1])
    scores = query @ call.key.to(dtype).transpose(2, 3) * call.scaling
    scores = rearrange(scores, "b k (g r) l -> b (k g) r l", r=rows.shape[1])
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    return scores


def _allowed(call: AttentionCall, scores: Float[Tensor, "B H R L"], rows: Int[Tensor, "B R"]) -> tuple[Tensor, Tensor]:
    """Which keys the rows may attend to [B, H, R, L], and scores with whatever finite bias and mask add."""
    within, scores = _added(torch.ones_like(scores, dtype=torch.bool), scores, call.bias, rows)
    if call.mask is None:
        positions = torch.arange(scores.shape[-1], device=rows.device)
        allowed = positions <= rows[:, None, :, None] if call.causal else torch.ones_like(scores[:1, :1, :1]) > 0
        return allowed & within, scores
    if call.mask.dtype == torch.bool:
        return _rows_of(call.mask, rows) & within, scores
    return _added(within, scores, call.mask, rows)


def _added(allowed: Tensor, scores: Tensor, table: Tensor | None, rows: Int[Tensor, "B R"]) -> tuple[Tensor, Tensor]:
    """What stays allowed, and scores plus the table's entries; an entry of −∞ (or the lowest number) forbids."""
    if table is None:
        return allowed, scores
    found = _rows_of(table, rows)
    forbidden = found <= torch.finfo(found.dtype).min / 2  # NaN forbids nothing: it is a broken score
    return allowed & ~forbidden, scores + found.to(scores.dtype).masked_fill(forbidden, 0.0)


def _rows_of(table: Tensor, rows: Int[Tensor, "B R"]) -> Tensor:
    """The given rows of [B or 1, H or 1, L, X] for each prompt → [B, H or 1, R, X]."""
    prompts = torch.arange(len(rows), device=rows.device)[:, None]
    return table.expand(len(rows), -1, -1, -1)[prompts, :, rows].transpose(1, 2)


def _at(values: Float[Tensor, "B H R L"] | Bool[Tensor, "B H R L"], evidence: Int[Tensor, "B E"]) -> Tensor:
    return values.gather(-1, evidence[:, None, None, :].expand(*values.shape[:3], -1))
