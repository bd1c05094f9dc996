"""T5's relative bias: a learned number for each head and bucket of signed distance, added to the scores."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rcprobe.encoding import Encoding

BUCKETS, FARTHEST = 32, 128


class BucketTable(nn.Embedding):
    """An embedding whose weights start from N(0, 1/W), whoever resets them."""

    def __init__(self, heads: int, width: int) -> None:
        self.deviation = width**-0.5
        super().__init__(BUCKETS, heads)

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        nn.init.normal_(self.weight, std=self.deviation)


class T5(Encoding):
    """Bidirectional buckets (Raffel et al., 2020): 16 for each side, one a distance up to 7, then logarithmic to 128.

    The two sides have buckets of their own, so a mirrored query is a different one.
    """

    reads_distance_only: ClassVar[bool] = False
    values_carry_position: ClassVar[bool] = False

    def __init__(self, width: int, heads: int, max_length: int) -> None:
        super().__init__(width, heads, max_length)
        self.table = BucketTable(heads, width)

    def bias(self, length: int) -> Float[Tensor, "1 H L L"]:
        """The table's entries for each row and column."""
        position = torch.arange(length, device=self.table.weight.device)
        found: Tensor = self.table(buckets(position[None, :] - position[:, None]))
        return found.permute(2, 0, 1)[None]


def buckets(offset: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The bucket of each signed distance j − i: 0–15 where j ≤ i, 16–31 where it is right of i."""
    half = BUCKETS // 2
    exact = half // 2
    distance = offset.abs()
    beyond = torch.log(distance.clamp(min=1) / exact) / math.log(FARTHEST / exact) * (half - exact)
    far = (exact + beyond.long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)
