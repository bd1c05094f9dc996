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
    """  # noqa: D205
    assert m.mask_id is not None
    t = torch.rand(len(ids), 1, generator=generator)
    p = ((1 - LEAST_NOISE) * t + LEAST_NOISE).to(ids.device)
    masked = (torch.rand(ids.shape, generator=generator).to(ids.device) < p) & real
    logits = m.model(input_ids=ids.masked_fill(masked, m.mask_id), attention_mask=real.long()).logits
    loss = _cross_entropy(m, logits, ids, m.adapter.shift)
    keep = masked[:, m.adapter.shift :]
    return (loss * keep / p).sum() / len(ids)


def next_token(
    m: LoadedModel, ids: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """Next-token cross-entropy, averaged over real tokens."""
    logits = m.model(input_ids=ids, attention_mask=real.long()).logits
    loss = _cross_entropy(m, logits, ids, m.adapter.shift)
    keep = real[:, m.adapter.shift :]
    return (loss * keep).sum() / keep.sum()


OBJECTIVES = {"masked": masked_diffusion, "causal": next_token}


def _cross_entropy(m: LoadedModel, logits: Tensor, ids: Tensor, shift: int) -> Float[Tensor, "B L-shift"]:
    """−log p of token i from the logits at i − shift."""
    logits = m.adapter.logits(logits, m.mask_id)
    predicted = logits[:, : logits.shape[1] - shift].transpose(1, 2)
    return torch.nn.functional.cross_entropy(predicted.float(), ids[:, shift:], reduction="none")
