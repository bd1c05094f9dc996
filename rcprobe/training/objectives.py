"""Training losses. Shapes: B prompts, L length, V vocabulary."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rcprobe.loaded import LoadedModel

LEAST_NOISE = 1e-3

Asked = tuple[Int[Tensor, "B L"], Float[Tensor, "B L"]]


def masked_diffusion(
    m: LoadedModel, ids: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], generator: torch.Generator
) -> Asked:
    """The t-DCE loss (RADD; LLaDA's loss): t uniform, each token masked with probability p = (1 − ε)t + ε,
    cross-entropy of masked tokens weighted by 1/p, summed over a sequence, averaged over the batch.

    Returns what the model is shown, and each token's weight in the loss.
    """
    assert m.mask_id is not None
    t = torch.rand(len(ids), 1, generator=generator)
    p = ((1 - LEAST_NOISE) * t + LEAST_NOISE).to(ids.device)
    masked = (torch.rand(ids.shape, generator=generator).to(ids.device) < p) & real
    return ids.masked_fill(masked, m.mask_id), _predicted(m, masked) / (p * len(ids))


def next_token(m: LoadedModel, ids: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], generator: torch.Generator) -> Asked:
    """Next-token cross-entropy, averaged over real tokens: what the model is shown, and each token's weight."""
    predicted = _predicted(m, real)
    return ids, predicted / predicted.sum()


OBJECTIVES = {"masked": masked_diffusion, "causal": next_token}


def training_loss(
    m: LoadedModel, ids: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """The loss of the model's objective on statements; ``real`` is false on padding."""
    shown, weight = OBJECTIVES[m.adapter.objective](m, ids, real, generator)
    mask = None if bool(real.all()) else real.long()  # without padding, attention takes its faster way
    logits = m.adapter.logits(m.model(input_ids=shown, attention_mask=mask).logits, m.mask_id)
    shift, counted = m.adapter.shift, weight > 0
    rows = logits[:, : logits.shape[1] - shift][counted[:, shift:]]
    return weighted_cross_entropy(rows, ids[counted], weight[counted])


def weighted_cross_entropy(
    rows: Float[Tensor, "*S M V"], targets: Int[Tensor, "*S M"], weights: Float[Tensor, "*S M"]
) -> Float[Tensor, "*S"]:
    """Σ weight · (−log p(target)) over the M rows of logits, in float32 at least."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    losses = torch.nn.functional.cross_entropy(rows.flatten(0, -2), targets.flatten(), reduction="none")
    return (losses.view_as(weights) * weights).sum(dim=-1)


def _predicted(m: LoadedModel, wanted: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """Wanted tokens that some row of logits predicts: token i is read from row i − shift."""
    predicted = wanted.clone()
    predicted[:, : m.adapter.shift] = False
    return predicted
