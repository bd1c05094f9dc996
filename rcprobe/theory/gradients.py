"""Gradients of a one-layer, attention-only masked model, matrix by matrix (§3, App. C.1).

x is the masked prompt, i the row of the mask M, and z = U W_V E ᾱ the logits at that row. s_l = c·q_Mᵀ R_{l−i} k_{x_l}
− m|l − i| are its scores, with R the rotation of RoPE (none elsewhere), c the model's scale and m ALiBi's slope.

Shapes: V tokens that can be predicted, S symbols that can stand in a prompt (V and the mask), W the width of the
embedding, D of the head, L the length of the prompt.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rcprobe.errors import UsageError
from rcprobe.theory.rotary import rotation
from rcprobe.theory.storage import residual


@dataclass(frozen=True)
class OneLayer:
    """The weights of the one-layer model (§3), and its encoding.

    U ``unembed`` [V, D]; W_V, W_Q and W_K [D, W] ``value``, ``query``, ``key``; E ``embedding`` [W, S].
    ``base`` is RoPE's, None where nothing rotates; ``slope`` ALiBi's m, in score a position; ``scale`` multiplies
    q_Mᵀ R k, and is 1 in the paper. Raises ``UsageError`` for widths that don't fit together.
    """

    unembed: Tensor
    value: Tensor
    query: Tensor
    key: Tensor
    embedding: Tensor
    base: float | None = None
    slope: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        head, width = self.value.shape
        fits = self.unembed.shape[1] == head and self.embedding.shape[0] == width
        if not fits or not self.query.shape == self.key.shape == self.value.shape:
            raise UsageError(
                "U [V, D], W_V, W_Q and W_K [D, W] and E [W, S] don't fit together: "
                f"{[tuple(w.shape) for w in (self.unembed, self.value, self.query, self.key, self.embedding)]}"
            )

    def rotation(self, distance: float) -> Float[Tensor, "D D"]:
        """R_δ for this model, the identity where nothing rotates."""
        head = self.query.shape[0]
        turn = np.eye(head) if self.base is None else rotation(distance, head, self.base)
        return torch.from_numpy(turn).to(self.query)


@dataclass(frozen=True)
class Reading:
    """What one prompt does: ``scores`` s and ``weights`` α at the mask's row; ``attention`` ᾱ by token; p."""

    scores: Float[Tensor, " L"]
    weights: Float[Tensor, " L"]
    attention: Float[Tensor, " S"]
    probabilities: Float[Tensor, " V"]


@dataclass(frozen=True)
class Gradients:
    """∂L/∂ each matrix. ``embedding`` is by the path it goes: through the query, the keys, the values; it adds up."""

    unembed: Float[Tensor, "V D"]
    value: Float[Tensor, "D W"]
    query: Float[Tensor, "D W"]
    key: Float[Tensor, "D W"]
    embedding: Float[Tensor, "3 W S"]


def read(model: OneLayer, prompt: Int[Tensor, " L"], row: int) -> Reading:
    """Scores, attention and probabilities at ``row``, the mask's (§3).

    Raises ``UsageError`` for a row outside the prompt.
    """
    if not 0 <= row < prompt.numel():
        raise UsageError(f"row {row} isn't in a prompt of {prompt.numel()} tokens")
    content = model.embedding[:, prompt]
    scores = model.scale * (_turned_queries(model, prompt, row) * (model.key @ content).T).sum(dim=-1)
    distance = (torch.arange(prompt.numel(), device=prompt.device) - row).abs()
    scores = scores - model.slope * distance.to(scores)  # whole numbers times a float would be float32
    weights = scores.softmax(dim=0)
    attention = weights.new_zeros(model.embedding.shape[1]).index_add(0, prompt, weights)
    logits = model.unembed @ (model.value @ (model.embedding @ attention))
    return Reading(scores, weights, attention, logits.softmax(dim=0))


def score_gradient(weights: Float[Tensor, " L"], effects: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """g_l = ∂L/∂s_l = α_l(ε_l − Σ_m α_m ε_m) (App. C.1).

    ``weights`` are α; ``effects`` are ε_l = (p − onehot(a))ᵀW_eff[:, x_l].
    """
    return weights * (effects - weights @ effects)


def one_layer_gradients(model: OneLayer, prompt: Int[Tensor, " L"], row: int, target: int) -> Gradients:
    """The gradient of −log p_a in every matrix, for any prompt, in closed form (App. C.2).

    With r = p − onehot(a), q̃_l = R_{l−i}ᵀq_M, g_l = c·∂L/∂s_l and y = Σ_l g_l R_{l−i}k_{x_l}: ∇U = r(W_V E ᾱ)ᵀ,
    ∇W_V = Uᵀr(Eᾱ)ᵀ, ∇W_Q = y e_Mᵀ, ∇W_K = Σ_l g_l q̃_l e_{x_l}ᵀ, and ∇E[:, t] = 1[t = M]W_Qᵀy +
    Σ_{l: x_l = t}(g_l W_Kᵀq̃_l + α_l W_VᵀUᵀr). Raises ``UsageError`` for a row or target that doesn't exist.
    """
    seen = read(model, prompt, row)
    content = model.embedding[:, prompt]
    r = residual(seen.probabilities, target)
    back = model.unembed.T @ r
    effects = (model.value @ content).T @ back
    g = model.scale * score_gradient(seen.weights, effects)
    turned = _turned_queries(model, prompt, row)
    keys = (model.key @ content).T
    pulled = torch.stack([model.rotation(float(place - row)) @ keys[place] for place in range(prompt.numel())])
    y = g @ pulled
    mixed = content @ seen.weights
    paths = model.embedding.new_zeros(3, *model.embedding.shape)
    paths[0, :, prompt[row]] = model.query.T @ y
    paths[1].index_add_(1, prompt, model.key.T @ (g[:, None] * turned).T)
    paths[2].index_add_(1, prompt, torch.outer(model.value.T @ back, seen.weights))
    return Gradients(
        unembed=torch.outer(r, model.value @ mixed),
        value=torch.outer(back, mixed),
        query=torch.outer(y, content[:, row]),
        key=(g[:, None] * turned).T @ content.T,
        embedding=paths,
    )


def storage_velocity(model: OneLayer, gradients: Gradients) -> Float[Tensor, "V S"]:
    """dW_eff/dt under gradient flow on the matrices: −(∇U·W_V E + U·∇W_V·E + U W_V·∇E).

    Prop. 4.1 is about a step in W_eff itself. A step in U, W_V and E moves W_eff[a, b] by this instead, whose sign
    depends on the overlap of b's value with those of the other tokens in the prompt.
    """
    value, embedding = model.value, model.embedding
    return -(
        gradients.unembed @ value @ embedding
        + model.unembed @ gradients.value @ embedding
        + model.unembed @ value @ gradients.embedding.sum(dim=0)
    )


def _turned_queries(model: OneLayer, prompt: Int[Tensor, " L"], row: int) -> Float[Tensor, "L D"]:
    """q̃_l = R_{l−i}ᵀ q_M for every place l."""
    q = model.query @ model.embedding[:, prompt[row]]
    return torch.stack([model.rotation(float(place - row)).T @ q for place in range(prompt.numel())])
