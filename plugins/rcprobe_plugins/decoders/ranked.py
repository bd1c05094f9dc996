"""Decoders that commit the positions due at a step in order of what the model says of them."""

import torch
from torch import Tensor

from rcprobe.decoding import Open, decoder


@decoder()
def confidence(state: Open) -> Tensor:
    """The likeliest tokens first, the rest stay masked: low-confidence remasking (LLaDA, Nie et al., 2025)."""
    return state.confidence.topk(state.count).indices


@decoder()
def entropy(state: Open) -> Tensor:
    """Where the model is least in doubt first: the lowest entropy over the vocabulary (Dream's entropy order)."""
    odds = state.log_probs.exp()
    doubt = -(odds * state.log_probs.clamp(min=torch.finfo(odds.dtype).min)).sum(dim=-1)
    return (-doubt).topk(state.count).indices


@decoder()
def margin(state: Open) -> Tensor:
    """Where the best token leads the second by most in probability (top-k margin, Kim et al., 2025)."""
    best = state.log_probs.exp().topk(2, dim=-1).values
    return (best[:, 0] - best[:, 1]).topk(state.count).indices


@decoder()
def random(state: Open) -> Tensor:
    """Any positions, drawn: the order that masked diffusion was trained on."""
    return torch.randperm(len(state.positions), generator=state.generator)[: state.count]


@decoder()
def sequential(state: Open) -> Tensor:
    """From left to right, as a causal model must."""
    return torch.arange(state.count)
