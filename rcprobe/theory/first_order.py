"""How well the first order predicts a step: L(θ + Δ) − L(θ) = ⟨g, Δ⟩ + ½ΔᵀHΔ + O(‖Δ‖³) (§4.3).

Losses are pure functions of named parameters, in float64: ``lambda p: loss(torch.func.functional_call(model, p, x))``.
Take raw weights, not an average of them, and attention that can be differentiated twice ("eager").
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcprobe.errors import UsageError
from rcprobe.theory.rotary import Floats

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters], Tensor]


@dataclass(frozen=True)
class Change:
    """A loss's change along a step, in its units: what it was, and its first- and second-order terms."""

    actual: float
    first: float
    second: float


@dataclass(frozen=True)
class FirstOrder:
    """The reverse loss's change by a forward step −ηg→, at each rate η: [R] each.

    ``actual`` is the change, ``first`` −η⟨g→, g←⟩, ``second`` (η²/2)g→ᵀH←g→. ``tightness`` is (actual/first − 1)/η:
    linear in η where the rates are small, with the limit −½g→ᵀH←g→/⟨g→, g←⟩ at η → 0.
    """

    rates: Floats
    actual: Floats
    first: Floats
    second: Floats

    @property
    def tightness(self) -> Floats:
        """(actual/first − 1)/η, in 1/η; NaN where the first order is 0."""
        zero = np.full_like(self.first, np.nan)
        ratio = np.divide(self.actual, self.first, out=zero, where=self.first != 0)
        return np.asarray((ratio - 1) / self.rates)


def change_along(loss: Loss, parameters: Parameters, step: Parameters) -> Change:
    """The change of ``loss`` by θ → θ + Δ, with ⟨g, Δ⟩ and ½ΔᵀHΔ beside it (§4.3).

    ``step`` is Δ, by the parameters' names, whatever the optimiser: for AdamW what it really subtracted. Parameters
    without a step stay. Raises ``UsageError`` for a step of an unknown name, or numbers that aren't float64.
    """
    unknown = sorted(set(step) - set(parameters))
    if unknown:
        raise UsageError(f"the step names {unknown[0]!r}, which isn't among the parameters")
    at = _leaves(parameters)
    value = loss(at)
    gradient = _gradient(value, at, differentiable=True)
    first = sum(((gradient[name] * step[name]).sum() for name in step), torch.zeros((), dtype=torch.float64))
    second = 0.0
    if first.requires_grad:
        curved = _gradient(first, at)
        second = 0.5 * sum(float((curved[name] * step[name]).sum()) for name in step)
    with torch.no_grad():
        moved = loss({name: tensor + step[name] if name in step else tensor for name, tensor in at.items()})
    return Change(float(moved - value.detach()), float(first.detach()), second)


def gradient_step(loss: Loss, parameters: Parameters, rate: float) -> dict[str, Tensor]:
    """−η∇L, the step of plain gradient descent. Raises ``UsageError`` for numbers that aren't float64."""
    at = _leaves(parameters)
    return {name: -rate * gradient for name, gradient in _gradient(loss(at), at).items()}


def first_order(forward: Loss, reverse: Loss, parameters: Parameters, rates: Sequence[float]) -> FirstOrder:
    """How the reverse loss changes when the forward loss takes a gradient step, at each of ``rates`` (§4.3).

    L←(θ − ηg→) − L←(θ) = −η⟨g→, g←⟩ + (η²/2)g→ᵀH←g→ + O(η³). Raises ``UsageError`` for rates that aren't positive,
    or numbers that aren't float64.
    """
    if not rates or not all(rate > 0 for rate in rates):
        raise UsageError(f"learning rates must be positive numbers; they are {list(rates)}")
    changes = [change_along(reverse, parameters, gradient_step(forward, parameters, rate)) for rate in rates]
    columns = ([getattr(change, name) for change in changes] for name in ("actual", "first", "second"))
    return FirstOrder(np.array(rates), *(np.array(column) for column in columns))


def _leaves(parameters: Parameters) -> dict[str, Tensor]:
    for name, tensor in parameters.items():
        if tensor.dtype != torch.float64:
            raise UsageError(f"{name} is {tensor.dtype}; differences this small need float64: call model.double()")
    return {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}


def _gradient(value: Tensor, at: Mapping[str, Tensor], *, differentiable: bool = False) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(at.values()), create_graph=differentiable, materialize_grads=True)
    return dict(zip(at, found, strict=True))
