"""Storage: the gradient of the loss in the effective value map W_eff = U W_V E (Prop. 4.1, Thm 4.6, App. C.1).

The logits of the mask are W_eff ᾱ, where ᾱ [S] is the attention summed by token type, and the loss is −log p_a of the
target a, in nats. In this module W_eff is itself the parameter, and attention is held fixed. V tokens can be
predicted; S symbols can stand in a prompt, the mask among them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rcprobe.errors import UsageError


def residual(probabilities: Float[Tensor, " V"], target: int) -> Float[Tensor, " V"]:
    """r = p − onehot(a), the gradient of −log p_a in the logits (§3).

    Raises ``UsageError`` for a target outside the vocabulary.
    """
    if not 0 <= target < probabilities.numel():
        raise UsageError(f"target {target} isn't among the {probabilities.numel()} tokens that have a probability")
    return probabilities - F.one_hot(torch.tensor(target, device=probabilities.device), probabilities.numel())


def storage_gradient(probabilities: Float[Tensor, " V"], target: int, mass: float) -> Float[Tensor, " V"]:
    """∂L/∂W_eff[:, b] = A(p − onehot(a)): −A(1 − p_a) ≤ 0 at the target, A·p_c ≥ 0 elsewhere (Prop. 4.1).

    ``mass`` is A, the total attention on the evidence b. Raises ``UsageError`` as ``residual`` does.
    """
    return mass * residual(probabilities, target)


def effective_gradient(
    probabilities: Float[Tensor, " V"], target: int, attention: Float[Tensor, " S"]
) -> Float[Tensor, "V S"]:
    """∂L/∂W_eff = (p − onehot(a)) ᾱᵀ, every column of it (App. C.1).

    ``attention`` is ᾱ, by token type. Raises ``UsageError`` as ``residual`` does.
    """
    return torch.outer(residual(probabilities, target), attention)


def column_product(
    forward: Float[Tensor, " V"], reverse: Float[Tensor, " V"], target: int, forward_mass: float, reverse_mass: float
) -> float:
    """⟨∂L→/∂W_eff[:, b], ∂L←/∂W_eff[:, b]⟩ = A→A←⟨p→ − onehot(a), p← − onehot(a)⟩ > 0 (Thm 4.6).

    ``forward`` and ``reverse`` are p→ and p←, the masses the attention on b. The cosine is ½ at least, whatever
    the probabilities: the label that the queries share sees to that. Raises ``UsageError`` as ``residual`` does.
    """
    product = residual(forward, target) @ residual(reverse, target)
    return forward_mass * reverse_mass * float(product)


def effective_cosine(
    forward_residual: Float[Tensor, " V"],
    reverse_residual: Float[Tensor, " V"],
    forward_attention: Float[Tensor, " S"],
    reverse_attention: Float[Tensor, " S"],
) -> float:
    """Cosine of the two gradients in W_eff: cos(r→, r←) · cos(ᾱ→, ᾱ←) (App. C.1). NaN where a gradient is zero."""
    return _cosine(forward_residual, reverse_residual) * _cosine(forward_attention, reverse_attention)


def untrained_cosines(vocabulary: int, length: int) -> dict[str, float]:
    """Cosines of gradients in W_eff before anything is learned: flat p over V tokens, uniform attention (§6).

    The prompts hold ``length`` L symbols: the mask, the evidence, and L − 2 placeholders. A matched pair shares the
    target and the evidence; ``same_target`` has other evidence, ``other_target`` the same evidence, ``other_fact``
    neither. Nothing but the shared label and the shared context makes the first two large. Raises ``UsageError`` for
    a vocabulary or a length below 2.
    """
    if vocabulary < 2 or length < 2:
        raise UsageError(f"{vocabulary} tokens in {length} places can't ask anything; both must be 2 or more")
    label, shared = -1 / (vocabulary - 1), (length - 2) ** 2
    content = (1 + shared) / (2 + shared)
    return {"matched": 1.0, "same_target": content, "other_target": label, "other_fact": label * content}


def _cosine(x: Tensor, y: Tensor) -> float:
    # not torch's cosine_similarity: it clamps small norms, and undefined isn't zero
    return float(x.double() @ y.double() / (x.double().norm() * y.double().norm()))
