"""Rotary position embedding: position turns queries and keys, and a score sees only the signed distance."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rcprobe.encoding import Encoding
from rcprobe.errors import OptionError

BASE = 10_000.0


class Rope(Encoding):
    """Rotate-half RoPE, base 10000: components m and m + D/2 form plane m, turned by i · base^(−2m/D).

    The signed distance counts, so a mirrored query is a different one (Thm 4.3). Angles are computed in
    float32 at least. Raises ``OptionError`` for an odd head width.
    """

    reads_distance_only: ClassVar[bool] = False
    values_carry_position: ClassVar[bool] = False

    def __init__(self, width: int, heads: int, max_length: int) -> None:
        super().__init__(width, heads, max_length)
        even("rope", width, heads)

    def rotate(
        self, query: Float[Tensor, "B H L D"], key: Float[Tensor, "B H L D"]
    ) -> tuple[Float[Tensor, "B H L D"], Float[Tensor, "B H L D"]]:
        """Turn queries and keys by their positions' angles."""
        return turn(query, BASE), turn(key, BASE)


def even(name: str, width: int, heads: int) -> None:
    """Raise ``OptionError`` for a head that can't be cut into planes."""
    if (width // heads) % 2:
        raise OptionError(
            f"{name} turns pairs of components, so the head width must be even; it is {width // heads} "
            f"(width {width} over {heads} heads)"
        )


def turn(x: Float[Tensor, "B H L D"], base: float, sense: int = 1) -> Float[Tensor, "B H L D"]:
    """Turn plane m of the vector at position i by sense · i · base^(−2m/D)."""
    length, width = x.shape[-2:]
    # made anew on each call: a kept table would be wrong after a change of dtype, or an inference tensor
    dtype, device = torch.promote_types(x.dtype, torch.float32), x.device
    frequency = 1.0 / base ** (torch.arange(0, width, 2, dtype=dtype, device=device) / width)
    angle = torch.outer(torch.arange(length, dtype=dtype, device=device), sense * frequency).repeat(1, 2)
    return x * angle.cos().to(x.dtype) + _quarter_turn(x) * angle.sin().to(x.dtype)


def _quarter_turn(x: Float[Tensor, "B H L D"]) -> Float[Tensor, "B H L D"]:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
