"""Training losses as data: what a model is shown, and how much each token counts. Shapes: B prompts, L length,
V vocabulary.

A masked objective draws which tokens are masked, among those that may be; n is their number in a statement.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rcprobe.adapter import Adapter
from rcprobe.errors import UnknownNameError, UsageError
from rcprobe.loaded import LoadedModel
from rcprobe.training.config import TrainConfig

LEAST_NOISE = 1e-3
BERT_SHARE = 0.15
CART_P = 0.1

Asked = tuple[Int[Tensor, "B L"], Float[Tensor, "B L"]]


@dataclass(frozen=True)
class Statements:
    """Texts to train on: their tokens, which of them are no padding, and which may be masked (of those)."""

    ids: Int[Tensor, "B L"]
    real: Bool[Tensor, "B L"]
    may: Bool[Tensor, "B L"]


def t_dce(m: LoadedModel, s: Statements, generator: torch.Generator) -> Asked:
    """t uniform, each token masked with probability p = (1 − ε)t + ε, cross-entropy of masked tokens weighted by 1/p,
    summed over a sequence, averaged over the batch. RADD's t-DCE (Ou et al., 2025), with LLaDA's floor ε = 0.001
    (Nie et al., 2025).
    """
    p = _rate(s, generator) * (1 - LEAST_NOISE) + LEAST_NOISE
    masked = (_each(s, generator) < p) & s.may
    return _hidden(m, s, masked), _predicted(m, masked) / (p * len(s.ids))


def lambda_dce(m: LoadedModel, s: Statements, generator: torch.Generator) -> Asked:
    """λ uniform in (0, 1], each token masked with probability λ, weighted by 1/λ: t-DCE with the share of masked
    tokens for its time, and no floor. RADD's λ-DCE (Ou et al., 2025).
    """
    rate = 1 - _rate(s, generator)
    masked = (_each(s, generator) < rate) & s.may
    return _hidden(m, s, masked), _predicted(m, masked) / (rate * len(s.ids))


def k_dce(m: LoadedModel, s: Statements, generator: torch.Generator) -> Asked:
    """k uniform in 1 … n, exactly k tokens masked, weighted by n/k: any-order autoregression, all orders at once.
    RADD's k-DCE (Ou et al., 2025).
    """
    n = s.may.sum(dim=1, keepdim=True)
    k = (_rate(s, generator) * n).long() + 1
    masked = _exactly(k, s, generator)
    return _hidden(m, s, masked), _predicted(m, masked) * n / (k * len(s.ids))


def uniform_mlm(m: LoadedModel, s: Statements, generator: torch.Generator) -> Asked:
    """A masked LM at a rate drawn uniformly: as λ-DCE masks, but every masked token of the batch counts alike, and
    sparse masks are no heavier. Mask-Predict's training (Ghazvininejad et al., 2019), with a rate for its count.
    """
    masked = (_each(s, generator) < 1 - _rate(s, generator)) & s.may
    return _hidden(m, s, masked), _mean(_predicted(m, masked))


def bert_mlm(m: LoadedModel, s: Statements, generator: torch.Generator) -> Asked:
    """15 % of the tokens, at least one, are asked for: of them 80 % are masked, 10 % replaced by a random token and
    10 % shown as they are; the mean over them. BERT's masked LM (Devlin et al., 2019).
    """
    k = (BERT_SHARE * s.may.sum(dim=1, keepdim=True)).round().long().clamp(min=1)
    chosen = _exactly(k, s, generator)
    fate = _each(s, generator)
    drawn = torch.randint(m.vocabulary - 1, s.ids.shape, generator=generator).to(s.ids.device)
    other = drawn + (drawn >= _mask(m))  # any token but the mask
    shown = _hidden(m, s, chosen & (fate < 0.8))
    return torch.where(chosen & (fate >= 0.9), other, shown), _mean(_predicted(m, chosen))


def single_mask(m: LoadedModel, s: Statements, generator: torch.Generator) -> Asked:
    """Exactly one token of each statement masked, the mean over statements: the paper's probe as a training
    objective (§3), k-DCE at k = 1 without its weight.
    """
    masked = _exactly(torch.ones_like(s.ids[:, :1]), s, generator)
    return _hidden(m, s, masked), _mean(_predicted(m, masked))


def cart(m: LoadedModel, s: Statements, generator: torch.Generator) -> Asked:
    """t uniform, each token masked with probability t; the mean over masked tokens of the batch, each weighted by
    ½ Σ p (1 − p)^(d − 1) over the tokens that are shown, d places away, with p = 0.1: what has more context around it
    counts more, and one in a statement that is masked whole adds nothing. Dream's context-adaptive noise rescheduling
    (Ye et al., 2025, Eq. 5; p as in its released fine-tuning).
    """
    masked = (_each(s, generator) < _rate(s, generator)) & s.may
    places = torch.arange(s.ids.shape[1], device=s.ids.device)
    distance = (places[:, None] - places).abs()
    near = CART_P * (1 - CART_P) ** (distance - 1) / 2
    return _hidden(m, s, masked), (s.real & ~masked).to(near.dtype) @ near * _mean(_predicted(m, masked))


def next_token(m: LoadedModel, s: Statements, generator: torch.Generator) -> Asked:
    """Next-token cross-entropy, averaged over the tokens that some row predicts (Radford et al., 2019)."""
    return s.ids, _mean(_predicted(m, s.may))


@dataclass(frozen=True)
class Objective:
    """A training loss by name: the kind of model it is for, what draws a batch's masks and weights, and its source."""

    name: str
    kind: Literal["masked", "causal"]
    draw: Callable[[LoadedModel, Statements, torch.Generator], Asked]
    source: str


OBJECTIVES: Mapping[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("t-dce", "masked", t_dce, "RADD, Ou et al., 2025"),
        Objective("lambda-dce", "masked", lambda_dce, "RADD, Ou et al., 2025"),
        Objective("k-dce", "masked", k_dce, "RADD, Ou et al., 2025"),
        Objective("uniform-mlm", "masked", uniform_mlm, "after Mask-Predict, Ghazvininejad et al., 2019"),
        Objective("bert-mlm", "masked", bert_mlm, "BERT, Devlin et al., 2019"),
        Objective("single-mask", "masked", single_mask, "the probe of arXiv 2602.02133, §3, as an objective"),
        Objective("cart", "masked", cart, "Dream, Ye et al., 2025, Eq. 5"),
        Objective("next-token", "causal", next_token, "GPT-2, Radford et al., 2019"),
    )
}
DEFAULT = {"masked": "t-dce", "causal": "next-token"}


def own_objective(family: type[Adapter]) -> str:
    """The name of the objective that a family is trained with, unless a config says otherwise."""
    return family.loss or DEFAULT[family.objective]


def misnamed_loss(family: type[Adapter]) -> str:
    """What is wrong with the loss that a family names; empty where nothing is."""
    fitting = _fitting(family)
    return "" if own_objective(family) in fitting else f"loss is {family.loss!r}; use {', '.join(fitting)}"


def _fitting(family: type[Adapter]) -> list[str]:
    return [o.name for o in OBJECTIVES.values() if o.kind == family.objective]


def objective_of(m: LoadedModel, config: TrainConfig) -> Objective:
    """The objective that a model is trained with: the config's, or its family's own.

    Raises ``UnknownNameError``; ``UsageError`` for one of the other kind, or for masks where nothing is masked.
    """
    name = config.objective or own_objective(type(m.adapter))
    if name not in OBJECTIVES:
        raise UnknownNameError("objective", name, OBJECTIVES)
    objective = OBJECTIVES[name]
    if objective.kind != m.adapter.objective:
        raise UsageError(
            f"training: objective {name!r} is for {objective.kind} models, and {m.adapter.name} is a "
            f"{m.adapter.objective} one; use {', '.join(_fitting(type(m.adapter)))}"
        )
    if objective.kind == "causal" and config.maskable != "all":
        raise UsageError(f"training: maskable = {config.maskable!r} says what may be masked, and {name} masks nothing")
    return objective


def training_loss(m: LoadedModel, objective: Objective, s: Statements, generator: torch.Generator) -> Float[Tensor, ""]:
    """The loss of an objective on statements."""
    return weighted_loss(m, s.ids, s.real, *objective.draw(m, s, generator))


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


def _rate(s: Statements, generator: torch.Generator) -> Float[Tensor, "B 1"]:
    """A number from [0, 1) for each statement."""
    return torch.rand(len(s.ids), 1, generator=generator).to(s.ids.device)


def _each(s: Statements, generator: torch.Generator) -> Float[Tensor, "B L"]:
    """A number from [0, 1) for each token."""
    return torch.rand(s.ids.shape, generator=generator).to(s.ids.device)


def _exactly(k: Int[Tensor, "B 1"], s: Statements, generator: torch.Generator) -> Bool[Tensor, "B L"]:
    """k maskable tokens of each statement, every choice of them as likely."""
    drawn = _each(s, generator).masked_fill(~s.may, 2.0)
    return (drawn.argsort(dim=1).argsort(dim=1) < k) & s.may


def _mask(m: LoadedModel) -> int:
    assert m.mask_id is not None
    return m.mask_id


def _hidden(m: LoadedModel, s: Statements, masked: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    return s.ids.masked_fill(masked, _mask(m))


def _mean(predicted: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Equal weights that add up to one; all zero where nothing is predicted."""
    return predicted / predicted.sum().clamp(min=1)


def _predicted(m: LoadedModel, wanted: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """Wanted tokens that some row of logits predicts: token i is read from row i − shift."""
    predicted = wanted.clone()
    predicted[:, : m.adapter.shift] = False
    return predicted
