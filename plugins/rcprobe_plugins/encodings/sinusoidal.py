"""Sinusoidal absolute positions, as the first Transformer had them: fixed, added to the tokens."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rcprobe.encoding import Encoding

BASE = 10_000


class Sinusoidal(Encoding):
    """x + p_i/√W with p_i = (sin(i·θ_0), cos(i·θ_0), sin(i·θ_1), …), θ_m = 10000^(−2m/W) (Vaswani et al., 2017).

    There the sum is x·√W + p_i. Token and position keep that proportion, but tokens are as large as under any other
    encoding: scaled up, they drown what attention adds to them, and learn √W times as fast.
    """

    reads_distance_only: ClassVar[bool] = False
    values_carry_position: ClassVar[bool] = True

    def embed(self, x: Float[Tensor, "B L W"]) -> Float[Tensor, "B L W"]:
        """Token embeddings plus their positions' waves, computed in float32 at least."""
        length, width = x.shape[1:]
        dtype = torch.promote_types(x.dtype, torch.float32)
        frequency = 1.0 / BASE ** (torch.arange(0, width, 2, dtype=dtype, device=x.device) / width)
        angle = torch.outer(torch.arange(length, dtype=dtype, device=x.device), frequency)
        waves = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :width]
        return x + (waves / math.sqrt(width)).to(x.dtype)
