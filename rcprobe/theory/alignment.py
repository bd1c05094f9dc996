"""Inner products of forward and reverse gradients, split by matrix (App. C.1, C.2).

Both queries ask for the target a from the evidence b. R_Σ = R_{δ→+δ←}; the forward score turns by δ→, the reverse one
by −δ←.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rcprobe.errors import UsageError
from rcprobe.theory.gradients import Gradients, OneLayer
from rcprobe.theory.rotary import BASE, rotation
from rcprobe.theory.storage import residual


@dataclass(frozen=True)
class Split:
    """⟨∇L→, ∇L←⟩ by matrix; ``embedding`` by forward path × reverse path (query, key, value), crosses included."""

    unembed: float
    value: float
    query: float
    key: float
    embedding: Float[Tensor, "3 3"]

    @property
    def total(self) -> float:
        """The inner product over all parameters: what the parts add up to."""
        return self.unembed + self.value + self.query + self.key + float(self.embedding.sum())


def split_product(forward: Gradients, reverse: Gradients) -> Split:
    """The inner product of two gradients of one model, matrix by matrix and path by path (App. C.2, any prompt)."""
    return Split(
        unembed=float((forward.unembed * reverse.unembed).sum()),
        value=float((forward.value * reverse.value).sum()),
        query=float((forward.query * reverse.query).sum()),
        key=float((forward.key * reverse.key).sum()),
        embedding=torch.einsum("pws,qws->pq", forward.embedding, reverse.embedding).double(),
    )


def toy_split(model: OneLayer, evidence: int, mask: int, target: int, forward: float, reverse: float) -> Split:
    """The same split in closed form for the toy of App. C.2: z = αUv_b with α = σ(s).

    ``evidence`` and ``mask`` are the symbols b and M, ``forward`` and ``reverse`` the distances δ→ and δ←. With
    γ = ∂L/∂s: U: α→α←⟨r→, r←⟩‖v_b‖²; V: α→α←⟨Uᵀr→, Uᵀr←⟩‖e_b‖²; Q: γ→γ← k_bᵀR_Σk_b ‖e_M‖²; K: γ→γ← q_MᵀR_Σq_M
    ‖e_b‖²; E: the query path in the mask's column, key and value paths and their two crosses in b's. Raises
    ``UsageError`` where ``evidence`` is the mask, or for a target that doesn't exist.
    """
    if evidence == mask:
        raise UsageError("the evidence can't be the mask; pass two symbols")
    e_b, e_m = model.embedding[:, evidence], model.embedding[:, mask]
    k, q, v = model.key @ e_b, model.query @ e_m, model.value @ e_b
    ahead, behind = model.rotation(forward), model.rotation(-reverse)
    logits = model.unembed @ v

    def side(turn: Tensor, distance: float) -> tuple[Tensor, Tensor, Tensor]:
        alpha = (model.scale * (q @ turn @ k) - model.slope * distance).sigmoid()
        r = residual((alpha * logits).softmax(dim=0), target)
        return alpha, r, model.scale * alpha * (1 - alpha) * (r @ logits)

    a_f, r_f, g_f = side(ahead, forward)
    a_r, r_r, g_r = side(behind, reverse)
    both = model.rotation(forward + reverse)
    back_f, back_r = model.unembed.T @ r_f, model.unembed.T @ r_r
    # what reaches the embedding, by path: the scores' query and keys, and the values
    query_f, query_r = g_f * (model.query.T @ ahead @ k), g_r * (model.query.T @ behind @ k)
    key_f, key_r = g_f * (model.key.T @ ahead.T @ q), g_r * (model.key.T @ behind.T @ q)
    value_f, value_r = a_f * (model.value.T @ back_f), a_r * (model.value.T @ back_r)
    zero = torch.zeros_like(a_f)  # query and key paths touch different columns here
    crossed = [
        [query_f @ query_r, zero, zero],
        [zero, key_f @ key_r, key_f @ value_r],
        [zero, value_f @ key_r, value_f @ value_r],
    ]
    return Split(
        unembed=float(a_f * a_r * (r_f @ r_r) * (v @ v)),
        value=float(a_f * a_r * (back_f @ back_r) * (e_b @ e_b)),
        query=float(g_f * g_r * (k @ both @ k) * (e_m @ e_m)),
        key=float(g_f * g_r * (q @ both @ q) * (e_b @ e_b)),
        embedding=torch.stack([torch.stack(line) for line in crossed]).detach().double(),
    )


def routing_cosine(
    vector: Float[Tensor, " D"],
    forward: float,
    reverse: float,
    forward_gradient: float,
    reverse_gradient: float,
    base: float | None = BASE,
) -> float:
    """Cosine of the gradients that reach a query or key through the evidence's score (App. C.1).

    cos_q = sgn(g→g←) k̂ᵀR_Σk̂ takes the key as ``vector``, cos_k = sgn(g→g←) q̂ᵀR_Σq̂ the query. The gradients are g→
    and g←, of which the signs count; ``base`` None is an encoding that doesn't rotate: ±1. NaN where the vector or a
    gradient is zero. Raises ``UsageError`` for a vector of odd width under RoPE.
    """
    square = float(vector @ vector)
    if not (forward_gradient and reverse_gradient and square):
        return math.nan
    # not the sign of the product, which may underflow
    sign = math.copysign(1, forward_gradient) * math.copysign(1, reverse_gradient)
    if base is None:
        return sign
    turn = torch.from_numpy(rotation(forward + reverse, vector.numel(), base)).to(vector)
    return sign * float(vector @ turn @ vector) / square
