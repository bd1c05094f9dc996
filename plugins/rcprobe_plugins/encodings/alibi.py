"""Attention with linear biases, symmetric: a score falls with the distance, whatever the side."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rcprobe.encoding import Encoding
from rcprobe.errors import OptionError


class Alibi(Encoding):
    """Adds −m_h·|i − j| to the scores of head h = 0 … H − 1, with slopes m_h = 2^(−8(h+1)/H) (Press et al., 2022).

    One head gets the formula's 2^(−8): nearly flat over a short sequence. The option ``slope`` gives every head
    that slope instead. Only the distance counts, so a one-layer model answers a mirrored query as it answers the
    query (Prop. 4.5). Raises ``OptionError`` for a slope that is no number from 0 up.
    """

    reads_distance_only: ClassVar[bool] = True
    values_carry_position: ClassVar[bool] = False

    def __init__(self, width: int, heads: int, max_length: int, slope: float | None = None) -> None:
        super().__init__(width, heads, max_length)
        if slope is not None and not (isinstance(slope, int | float) and math.isfinite(slope) and slope >= 0):
            raise OptionError(f"alibi: slope must be a number from 0 up; got {slope!r}")
        self.heads, self.slope = heads, slope

    def bias(self, length: int) -> Float[Tensor, "1 H L L"]:
        """The bias in float64, on torch's default device; the model casts it to its scores."""
        slopes = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1, dtype=torch.float64) / self.heads)
        if self.slope is not None:
            slopes = torch.full_like(slopes, self.slope)
        position = torch.arange(length, dtype=torch.float64)
        distance = (position[:, None] - position[None, :]).abs()
        return -(slopes[:, None, None] * distance)[None]
