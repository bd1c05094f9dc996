"""Attention with linear biases, symmetric: a score falls with the distance, whatever the side."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rcprobe.encoding import Encoding


class Alibi(Encoding):
    """Adds −m_h·|i − j| to the scores of head h = 0 … H − 1, with slopes m_h = 2^(−8(h+1)/H).

    One head gets the formula's 2^(−8): nearly flat over a short sequence. Only the distance counts, so a
    one-layer model answers a mirrored query as it answers the query (Prop. 4.5).
    """

    reads_distance_only: ClassVar[bool] = True

    def __init__(self, width: int, heads: int, max_length: int) -> None:
        super().__init__(width, heads, max_length)
        self.heads = heads

    def bias(self, length: int) -> Float[Tensor, "1 H L L"]:
        """The bias in float64, on torch's default device; the model casts it to its scores."""
        slopes = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1, dtype=torch.float64) / self.heads)
        position = torch.arange(length, dtype=torch.float64)
        distance = (position[:, None] - position[None, :]).abs()
        return -(slopes[:, None, None] * distance)[None]
