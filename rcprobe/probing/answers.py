"""What the logits at the target rows say: log-probabilities and right or wrong, in each named reading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rcprobe.errors import DataError
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import Batch
from rcprobe.queries import token_ids

FULL = "full vocabulary"


@dataclass(frozen=True)
class Reading:
    """A candidate set: which tokens a target competes with. ``rivals[t]`` are those of token t (V × V, boolean)."""

    name: str
    groups: Bool[Tensor, "G V"] | None

    def restrict(self, logits: Float[Tensor, "B T V"], batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits with tokens out of the running at −inf, and which targets this reading can judge [B]."""
        if self.groups is None:
            return logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        groups = self.groups.to(logits.device)
        member = groups[:, batch.targets]  # G B T
        rivals = groups[member.int().argmax(dim=0)]  # B T V
        return logits.masked_fill(~rivals, -torch.inf), (member.any(dim=0) | ~batch.counts).all(dim=1)


def readings(m: LoadedModel, candidates: Mapping[str, Sequence[Sequence[str]]]) -> list[Reading]:
    """The full vocabulary and each candidate set. Raises ``DataError`` for a candidate of more than one token."""
    found = [Reading(FULL, None)]
    for name, groups in candidates.items():
        table = torch.zeros(len(groups), m.vocabulary, dtype=torch.bool)
        for g, answers in enumerate(groups):
            for answer in answers:
                ids = token_ids(m.tokenizer, answer)
                if ids is None:
                    continue  # what the model has no token for can't compete
                if len(ids) != 1:
                    raise DataError(f"reading {name!r}: candidate {answer!r} has {len(ids)} tokens; it needs one")
                table[g, ids[0]] = True
        found.append(Reading(name, table))
    return found


def judge_answers(
    logits: Float[Tensor, "B T V"], batch: Batch, reading: Reading
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """(log p of the target, summed over its tokens; 1 if every token beats all rivals, else 0) in float64.

    A tie is wrong. NaN where the reading has no candidates for the target.
    """
    restricted, judged = reading.restrict(logits.double(), batch)
    index = batch.targets[..., None]
    own = restricted.gather(-1, index).squeeze(-1)
    log_probs = (own - restricted.logsumexp(dim=-1)).masked_fill(~batch.counts, 0.0).sum(dim=1)
    best_rival = restricted.scatter(-1, index, -torch.inf).amax(dim=-1)
    right = ((own > best_rival) | ~batch.counts).all(dim=1).double()
    return log_probs.masked_fill(~judged, torch.nan), right.masked_fill(~judged, torch.nan)


def mean_log_prob(
    logits: Float[Tensor, "B T V"], batch: Batch, others: Sequence[Sequence[tuple[int, ...]]]
) -> Float[Tensor, " B"]:
    """The mean over other targets a′ of log p(a′) at the same rows, in float64; NaN where there are none."""
    log_probs = torch.log_softmax(logits.double(), dim=-1)
    means = torch.full((len(logits),), torch.nan, dtype=torch.float64, device=logits.device)
    asked = [b for b, targets in enumerate(others) if targets]
    if not asked:
        return means
    most = max(len(others[b]) for b in asked)
    padding = (-1,) * logits.shape[1]
    rows = [[(*ids, *padding[len(ids) :]) for ids in others[b]] for b in asked]
    table = torch.tensor([row + [padding] * (most - len(row)) for row in rows], device=logits.device)
    found = log_probs[asked].gather(-1, table.clamp(min=0).transpose(1, 2)).transpose(1, 2)  # Q M T
    whole = found.masked_fill(table < 0, 0.0).sum(dim=-1)
    real = table[..., 0] >= 0
    means[asked] = whole.masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1)
    return means
