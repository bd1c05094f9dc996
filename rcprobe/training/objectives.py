"""Training losses as data: what a model is shown, and how much each token counts. Shapes: B prompts, L length,
V vocabulary.

A masked objective draws which tokens are masked, among those that may be. Of ``may``, n is a statement's count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rcprobe.errors import UnknownNameError, UsageError
from rcprobe.loaded import LoadedModel
from rcprobe.training.config import TrainConfig

LEAST_NOISE = 1e-3
BERT_SHARE = 0.15

Asked = tuple[Int[Tensor, "B L"], Float[Tensor, "B L"]]


def t_dce(m: LoadedModel, ids: Int[Tensor, "B L"], may: Bool[Tensor, "B L"], generator: torch.Generator) -> Asked:
    """t uniform, each token masked with probability p = (1 − ε)t + ε, cross-entropy of masked tokens weighted by 1/p,
    summed over a sequence, averaged over the batch. RADD's t-DCE (Ou et al., 2025), with LLaDA's floor ε = 0.001
    (Nie et al., 2025).
    """
    p = _uniform(ids, 1, generator) * (1 - LEAST_NOISE) + LEAST_NOISE
    masked = (_uniform(ids, ids.shape[1], generator) < p) & may
    return _hidden(m, ids, masked), _predicted(m, masked) / (p * len(ids))


def lambda_dce(m: LoadedModel, ids: Int[Tensor, "B L"], may: Bool[Tensor, "B L"], generator: torch.Generator) -> Asked:
    """λ uniform in (0, 1], each token masked with probability λ, weighted by 1/λ: t-DCE with the share of masked
    tokens for its time, and no floor. RADD's λ-DCE (Ou et al., 2025).
    """
    rate = 1 - _uniform(ids, 1, generator)
    masked = (_uniform(ids, ids.shape[1], generator) < rate) & may
    return _hidden(m, ids, masked), _predicted(m, masked) / (rate * len(ids))


def k_dce(m: LoadedModel, ids: Int[Tensor, "B L"], may: Bool[Tensor, "B L"], generator: torch.Generator) -> Asked:
    """k uniform in 1 … n, exactly k tokens masked, weighted by n/k: any-order autoregression, all orders at once.
    RADD's k-DCE (Ou et al., 2025).
    """
    n = may.sum(dim=1, keepdim=True)
    k = (_uniform(ids, 1, generator) * n).long() + 1
    masked = _exactly(k, ids, may, generator)
    return _hidden(m, ids, masked), _predicted(m, masked) * n / (k * len(ids))


def uniform_mlm(m: LoadedModel, ids: Int[Tensor, "B L"], may: Bool[Tensor, "B L"], generator: torch.Generator) -> Asked:
    """A masked LM at a rate drawn uniformly: as λ-DCE masks, but every masked token of the batch counts alike, and
    sparse masks are no heavier. Mask-Predict's training (Ghazvininejad et al., 2019), with a rate for its count.
    """
    masked = (_uniform(ids, ids.shape[1], generator) < 1 - _uniform(ids, 1, generator)) & may
    return _hidden(m, ids, masked), _mean(_predicted(m, masked))


def bert_mlm(m: LoadedModel, ids: Int[Tensor, "B L"], may: Bool[Tensor, "B L"], generator: torch.Generator) -> Asked:
    """15 % of the tokens, at least one, are asked for: of them 80 % are masked, 10 % replaced by a random token and
    10 % shown as they are; the mean over them. BERT's masked LM (Devlin et al., 2019).
    """
    k = (BERT_SHARE * may.sum(dim=1, keepdim=True)).round().long().clamp(min=1)
    chosen = _exactly(k, ids, may, generator)
    fate = _uniform(ids, ids.shape[1], generator)
    drawn = torch.randint(m.vocabulary - 1, ids.shape, generator=generator).to(ids.device)
    other = drawn + (drawn >= _mask(m))  # any token but the mask
    shown = _hidden(m, ids, chosen & (fate < 0.8))
    return torch.where(chosen & (fate >= 0.9), other, shown), _mean(_predicted(m, chosen))


def single_mask(m: LoadedModel, ids: Int[Tensor, "B L"], may: Bool[Tensor, "B L"], generator: torch.Generator) -> Asked:
    """Exactly one token of each statement masked, the mean over statements: the paper's probe as a training
    objective (§3), k-DCE at k = 1 without its weight.
    """
    masked = _exactly(torch.ones_like(ids[:, :1]), ids, may, generator)
    return _hidden(m, ids, masked), _mean(_predicted(m, masked))


def next_token(m: LoadedModel, ids: Int[Tensor, "B L"], may: Bool[Tensor, "B L"], generator: torch.Generator) -> Asked:
    """Next-token cross-entropy, averaged over the tokens that some row predicts (Radford et al., 2019)."""
    return ids, _mean(_predicted(m, may))


@dataclass(frozen=True)
class Objective:
    """A training loss by name: for which kind of model it is, and what draws the masks and weights of a batch.

    ``hides``: every token that is asked for is shown as the mask.
    """

    name: str
    kind: Literal["masked", "causal"]
    draw: Callable[[LoadedModel, Tensor, Tensor, torch.Generator], Asked]
    hides: bool = True


OBJECTIVES: Mapping[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("t-dce", "masked", t_dce),
        Objective("lambda-dce", "masked", lambda_dce),
        Objective("k-dce", "masked", k_dce),
        Objective("uniform-mlm", "masked", uniform_mlm),
        Objective("bert-mlm", "masked", bert_mlm, hides=False),
        Objective("single-mask", "masked", single_mask),
        Objective("next-token", "causal", next_token, hides=False),
    )
}
DEFAULT = {"masked": "t-dce", "causal": "next-token"}


def objective_of(m: LoadedModel, config: TrainConfig) -> Objective:
    """The objective that a model is trained with: the config's, or its family's default.

    Raises ``UnknownNameError``; ``UsageError`` for one of the other kind, or for masks where nothing is masked.
    """
    name = config.objective or DEFAULT[m.adapter.objective]
    if name not in OBJECTIVES:
        raise UnknownNameError("objective", name, OBJECTIVES)
    objective = OBJECTIVES[name]
    if objective.kind != m.adapter.objective:
        fitting = ", ".join(o.name for o in OBJECTIVES.values() if o.kind == m.adapter.objective)
        raise UsageError(
            f"training: objective {name!r} is for {objective.kind} models, and {m.adapter.name} is a "
            f"{m.adapter.objective} one; use {fitting}"
        )
    if objective.kind == "causal" and config.maskable != "all":
        raise UsageError(f"training: maskable = {config.maskable!r} says what may be masked, and {name} masks nothing")
    return objective


def training_loss(
    m: LoadedModel,
    objective: Objective,
    ids: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    may: Bool[Tensor, "B L"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """The loss of an objective on statements; ``real`` is false on padding, ``may`` on what is never masked."""
    return weighted_loss(m, ids, real, *objective.draw(m, ids, may, generator))


def weighted_loss(
    m: LoadedModel,
    ids: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    shown: Int[Tensor, "B L"],
    weight: Float[Tensor, "B L"],
) -> Float[Tensor, ""]:
    """Σ weight · (−log p) of the tokens of statements, given what is shown of them."""
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


def _uniform(ids: Int[Tensor, "B L"], columns: int, generator: torch.Generator) -> Float[Tensor, "B C"]:
    return torch.rand(len(ids), columns, generator=generator).to(ids.device)


def _exactly(
    k: Int[Tensor, "B 1"], ids: Int[Tensor, "B L"], may: Bool[Tensor, "B L"], generator: torch.Generator
) -> Bool[Tensor, "B L"]:
    """k tokens of each statement, every choice of them as likely."""
    drawn = _uniform(ids, ids.shape[1], generator).masked_fill(~may, 2.0)
    return (drawn.argsort(dim=1).argsort(dim=1) < k) & may


def _mask(m: LoadedModel) -> int:
    assert m.mask_id is not None
    return m.mask_id


def _hidden(m: LoadedModel, ids: Int[Tensor, "B L"], masked: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    return ids.masked_fill(masked, _mask(m))


def _mean(predicted: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Equal weights that add up to one; all zero where nothing is predicted."""
    return predicted / predicted.sum().clamp(min=1)


def _predicted(m: LoadedModel, wanted: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """Wanted tokens that some row of logits predicts: token i is read from row i − shift."""
    predicted = wanted.clone()
    predicted[:, : m.adapter.shift] = False
    return predicted
