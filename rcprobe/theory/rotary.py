"""The rotations of RoPE, as the statements about it use them.

Components m and m + d/2 of a head form plane m, which a step of one position turns by θ_m. A score sees the signed
distance alone: s_ij = q_iᵀ R_{j−i} k_j. Distances are in positions, angles in radians.
"""

import math

import numpy as np
from numpy.typing import NDArray

from rcprobe.errors import UsageError

Floats = NDArray[np.float64]

BASE = 10_000.0  # of the paper's one-layer model; every function takes another


def frequencies(width: int, base: float = BASE) -> Floats:
    """θ_m = base^(−2(m−1)/d) for the planes m = 1 … d/2 of a head of width d: [d/2], radians a position (Thm 4.3).

    Raises ``UsageError`` for a width that isn't even and positive, or a base that isn't.
    """
    if width < 2 or width % 2:
        raise UsageError(f"RoPE turns pairs of components, so the head width must be even and positive; it is {width}")
    if not (base > 0 and math.isfinite(base)):
        raise UsageError(f"the base of RoPE must be a positive number; it is {base}")
    return np.asarray(base ** (-np.arange(0, width, 2) / width), dtype=np.float64)


def rotation(distance: float, width: int, base: float = BASE) -> Floats:
    """R_δ: the matrix [d, d] that turns plane m by δ·θ_m (Thm 4.3). Raises as ``frequencies`` does."""
    angle = distance * frequencies(width, base)
    cos, sin = np.diag(np.cos(angle)), np.diag(np.sin(angle))
    return np.block([[cos, -sin], [sin, cos]])


def planes(vector: Floats) -> Floats:
    """Vectors [..., d] as their planes [..., d/2, 2]. Raises ``UsageError`` for an odd d."""
    if vector.ndim == 0 or vector.shape[-1] % 2:
        raise UsageError(f"a vector of shape {vector.shape} has no planes; its last axis must be even")
    return np.stack(np.split(vector, 2, axis=-1), axis=-1)
