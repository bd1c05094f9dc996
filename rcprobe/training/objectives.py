"""Training losses. Shapes: B prompts, L length, V vocabulary."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rcprobe.loaded import LoadedModel

LEAST_NOISE = 1e-3


def masked_diffusion(
    m: LoadedModel, ids: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """The t-DCE loss (RADD; LLaDA's loss): t uniform, each token masked with probability p = (1 − ε)t + ε,
    cross-entropy of masked tokens weighted by 1/p, summed over a sequence, averaged over the batch.
    """
    assert m.mask_id is not None
    t = torch.rand(len(ids), 1, generator=generator)
    p = ((1 - LEAST_NOISE) * t + LEAST_NOISE).to(ids.device).expand_as(ids)
    masked = (torch.rand(ids.shape, generator=generator).to(ids.device) < p) & real
    loss, counted = _cross_entropy(m, ids.masked_fill(masked, m.mask_id), ids, real, masked)
    return (loss / p[counted]).sum() / len(ids)


def next_token(
    m: LoadedModel, ids: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """Next-token cross-entropy, averaged over real tokens."""
    return _cross_entropy(m, ids, ids, real, real)[0].mean()


OBJECTIVES = {"masked": masked_diffusion, "causal": next_token}


def _cross_entropy(
    m: LoadedModel,
    shown: Int[Tensor, "B L"],
    ids: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    wanted: Bool[Tensor, "B L"],
) -> tuple[Float[Tensor, " M"], Bool[Tensor, "B L"]]:
    """−log p of the wanted tokens, token i read from the logits at i − shift, and which tokens those are."""
    shift = m.adapter.shift
    mask = None if bool(real.all()) else real.long()  # without padding, attention takes its faster way
    logits = m.adapter.logits(m.model(input_ids=shown, attention_mask=mask).logits, m.mask_id)
    counted = wanted.clone()
    counted[:, :shift] = False
    rows = logits[:, : logits.shape[1] - shift][counted[:, shift:]]
    return torch.nn.functional.cross_entropy(rows.float(), ids[counted], reduction="none"), counted
