"""Rotary position embedding: position turns queries and keys, and a score sees only the signed distance."""

import torch
from jaxtyping import Float
from torch import Tensor

from rcprobe.encoding import Encoding
from rcprobe.errors import OptionError

BASE = 10_000


class Rope(Encoding):
    """Rotate-half RoPE, base 10000: components m and m + D/2 form plane m, turned by i · base^(−2m/D).

    The signed distance counts, so a mirrored query is a different one (Thm 4.3). Angles are computed in
    float32 at least. Raises ``AdapterError`` for an odd head width.
    """

    def __init__(self, width: int, heads: int, max_length: int) -> None:
        super().__init__(width, heads, max_length)
        if (width // heads) % 2:
            raise OptionError(
                f"rope turns pairs of components, so the head width must be even; it is {width // heads} "
                f"(width {width} over {heads} heads)"
            )

    def rotate(
        self, query: Float[Tensor, "B H L D"], key: Float[Tensor, "B H L D"]
    ) -> tuple[Float[Tensor, "B H L D"], Float[Tensor, "B H L D"]]:
        """Turn queries and keys by their positions' angles."""
        length, width = query.shape[-2:]
        # made anew on each call: a kept table would be wrong after a change of dtype, or an inference tensor
        dtype, device = torch.promote_types(query.dtype, torch.float32), query.device
        frequency = 1.0 / BASE ** (torch.arange(0, width, 2, dtype=dtype, device=device) / width)
        angle = torch.outer(torch.arange(length, dtype=dtype, device=device), frequency).repeat(1, 2)
        cos, sin = angle.cos().to(query.dtype), angle.sin().to(query.dtype)
        return query * cos + _quarter_turn(query) * sin, key * cos + _quarter_turn(key) * sin


def _quarter_turn(x: Float[Tensor, "B H L D"]) -> Float[Tensor, "B H L D"]:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
