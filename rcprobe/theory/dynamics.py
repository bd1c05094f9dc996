"""Gradient flow of the toy model on the forward query alone, and what becomes of the reverse query (App. C.3).

The toy's logits are z = αw with w = W_eff[:, b] and α = σ(s). It starts from w(0) = c·1, so that one gap D = w_a − w_c
stands for all c ≠ a, and from a key k and a query q. Under RoPE q is fixed and k̇ = hR_{δ→}ᵀq; under ALiBi q̇ = hk and
k̇ = hq, with h = −∂L→/∂s→. n = ‖q‖², ρ = q̂ᵀR_Σq̂ with R_Σ = R_{δ→+δ←}. T times; V tokens; d width of the head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp
from scipy.special import expit, wrightomega

from rcprobe.errors import RcprobeError, UsageError
from rcprobe.theory.rotary import BASE, Floats, rotation

TOLERANCE = 1e-10  # of the integrator, relative


@dataclass(frozen=True)
class Flow:
    """A trajectory, [T] each: the gap D, the scores s→ and s←, and the probabilities p→ and p← of the target."""

    gap: Floats
    forward_score: Floats
    reverse_score: Floats
    forward_probability: Floats
    reverse_probability: Floats


def rope_flow(
    times: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    forward: float,
    reverse: float,
    vocabulary: int,
    base: float = BASE,
) -> Flow:
    """Integrate ẇ = α→(onehot(a) − p→) and k̇ = hR_{δ→}ᵀq from t = 0 (App. C.3, RoPE), q fixed.

    ``times`` [T] increase from 0 on, in units of 1/learning rate; ``query`` and ``key`` [d] are q and k(0); ``forward``
    and ``reverse`` are δ→ and δ←. Raises ``UsageError`` for shapes, times or a vocabulary that can't be, and
    ``RcprobeError`` where the integrator fails.
    """
    q, k = _vectors(query, key)
    ahead, behind = rotation(forward, q.size, base), rotation(-reverse, q.size, base)
    return _integrate(
        times,
        k,
        vocabulary,
        scores=lambda state: (float(q @ ahead @ state), float(q @ behind @ state)),
        push=lambda state: ahead.T @ q,
    )


def alibi_flow(
    times: ArrayLike, query: ArrayLike, key: ArrayLike, forward: float, reverse: float, vocabulary: int, slope: float
) -> Flow:
    """Integrate ẇ = α→(onehot(a) − p→), q̇ = hk and k̇ = hq from t = 0 (App. C.3, ALiBi).

    ``slope`` is m, in score a position; the rest, and the errors, are those of ``rope_flow``.
    """
    q, k = _vectors(query, key)
    width = q.size

    def scores(state: Floats) -> tuple[float, float]:
        content = float(state[:width] @ state[width:])
        return content - slope * forward, content - slope * reverse

    return _integrate(times, np.concatenate((q, k)), vocabulary, scores, push=lambda state: np.roll(state, width))


def velocities(w: ArrayLike, score: float) -> tuple[Floats, float]:
    """ẇ = α→(onehot(a) − p→) [V] and h = α→(1 − α→)(onehot(a) − p→)ᵀw, by which k̇ = hR_{δ→}ᵀq under RoPE, and q̇ = hk,
    k̇ = hq under ALiBi (App. C.3).

    ``w`` [V] holds the target a first, ``score`` is s→; α→ = σ(s→), and p→ is the softmax of α→w.
    """
    stored = np.asarray(w, dtype=np.float64)
    alpha = float(expit(score))
    odds = np.exp(alpha * (stored - stored.max()))
    toward = -odds / odds.sum()
    toward[0] += 1
    return np.asarray(alpha * toward), alpha * (1 - alpha) * float(toward @ stored)


def rope_curve(
    gap: ArrayLike, forward_score: float, reverse_score: float, square: float, rho: float, vocabulary: int
) -> Flow:
    """The trajectory of ``rope_flow`` as a function of the gap D ≥ 0, in closed form (App. C.3, without an integrator).

    dH/dD = h/Ḋ = (1 − α→)D(V − 1)/V holds exactly, and separates: with x = nH,
    x + e^{s→(0)}(e^x − 1) = n(V − 1)D²/(2V), so that s→ = s→(0) + x is a Wright ω function and s← = s←(0) + ρx.
    ``gap`` [T]; ``forward_score`` and ``reverse_score`` are s→(0) and s←(0); ``square`` is n = ‖q‖². Time is
    t = ∫dD (V − 1)/(V·α→(1 − p→)). Raises ``UsageError`` for a negative gap, an n ≤ 0, or |ρ| > 1.
    """
    d = np.asarray(gap, dtype=np.float64)
    if (d < 0).any():
        raise UsageError("the gap starts at 0 and grows; pass values from 0 up")
    _possible(square, rho, vocabulary)
    start = np.exp(forward_score)
    spent = square * (vocabulary - 1) * d**2 / (2 * vocabulary)
    forward = np.log(wrightomega(forward_score + start + spent))
    reverse = reverse_score + rho * (forward - forward_score)
    return Flow(d, forward, reverse, _answered(forward, d, vocabulary), _answered(reverse, d, vocabulary))


def reverse_limit(forward_score: float, reverse_score: float, square: float, rho: float, vocabulary: int) -> float:
    """lim p← under RoPE as training goes on (App. C.3, sharper than the paper's sufficient ρ ≥ 0).

    As D → ∞, e^{s→} ~ n(V − 1)D²/(2V), so α←D ~ D^{1+2·min(ρ, 0)}: p← → 1 if and only if ρ > −½, and p← → 1/V if
    ρ < −½. At ρ = −½ exactly, α←D tends to e^{s←(0) + s→(0)/2}·√(2V/(n(V − 1))), and p← to a value in between.
    Arguments and errors are those of ``rope_curve``.
    """
    _possible(square, rho, vocabulary)
    if rho > -0.5:
        return 1.0
    if rho < -0.5:
        return 1 / vocabulary
    margin = np.exp(reverse_score + forward_score / 2) * np.sqrt(2 * vocabulary / (square * (vocabulary - 1)))
    return float(expit(margin - np.log(vocabulary - 1)))


def _integrate(
    times: ArrayLike,
    start: Floats,
    vocabulary: int,
    scores: Callable[[Floats], tuple[float, float]],
    push: Callable[[Floats], Floats],
) -> Flow:
    """State: w [V], the target first, then what the score depends on, which moves by h·push(it)."""
    t = np.asarray(times, dtype=np.float64)
    if t.ndim != 1 or not t.size or not np.isfinite(t).all() or t[0] < 0 or (np.diff(t) <= 0).any():
        raise UsageError("times are a list of finite numbers that increases from 0 or later on")
    _possible(1.0, 0.0, vocabulary)

    def velocity(_: float, state: Floats) -> Floats:
        w, rest = state[:vocabulary], state[vocabulary:]
        logits, h = velocities(w, scores(rest)[0])
        return np.concatenate((logits, h * push(rest)))

    whole = np.concatenate((np.zeros(vocabulary), start))
    end = t[-1] or 1.0  # the integrator wants a stretch of time
    solved = solve_ivp(velocity, (0.0, end), whole, method="LSODA", t_eval=t, rtol=TOLERANCE, atol=TOLERANCE * 1e-2)
    if not solved.success:
        raise RcprobeError(f"the flow can't be integrated up to t = {t[-1]}: {solved.message}")
    gap = solved.y[0] - solved.y[1]
    forward, reverse = np.array([scores(state) for state in solved.y[vocabulary:].T]).T
    return Flow(gap, forward, reverse, _answered(forward, gap, vocabulary), _answered(reverse, gap, vocabulary))


def _answered(score: Floats, gap: Floats, vocabulary: int) -> Floats:
    """P = 1/(1 + (V − 1)e^{−αD})."""
    return np.asarray(expit(expit(score) * gap - np.log(vocabulary - 1)))


def _vectors(query: ArrayLike, key: ArrayLike) -> tuple[Floats, Floats]:
    q, k = np.asarray(query, dtype=np.float64), np.asarray(key, dtype=np.float64)
    if q.ndim != 1 or q.shape != k.shape:
        raise UsageError(f"query and key are two vectors of one width; they have shapes {q.shape} and {k.shape}")
    return q, k


def _possible(square: float, rho: float, vocabulary: int) -> None:
    if vocabulary < 2:
        raise UsageError(f"a vocabulary of {vocabulary} leaves nothing to choose from; use 2 or more")
    if not square > 0 or not abs(rho) <= 1:
        raise UsageError(f"‖q‖² must be positive and ρ from −1 to 1; they are {square} and {rho}")
