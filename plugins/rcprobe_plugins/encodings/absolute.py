"""Learned absolute positions: one vector a position, added to the token's."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rcprobe.encoding import Encoding
from rcprobe.errors import AdapterError


class PositionTable(nn.Embedding):
    """An embedding whose weights start from N(0, 0.02²), whoever resets them."""

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        nn.init.normal_(self.weight, std=0.02)


class Absolute(Encoding):
    """A learned table of ``max_length`` positions. Raises ``AdapterError`` for a longer sequence."""

    reads_distance_only: ClassVar[bool] = False
    values_carry_position: ClassVar[bool] = True

    def __init__(self, width: int, heads: int, max_length: int) -> None:
        super().__init__(width, heads, max_length)
        self.position = PositionTable(max_length, width)

    def embed(self, x: Float[Tensor, "B L W"]) -> Float[Tensor, "B L W"]:
        """Token embeddings plus their positions' vectors."""
        batch, length = x.shape[:2]
        rows = self.position.num_embeddings
        if length > rows:
            raise AdapterError(
                f"the sequence has {length} tokens and the table of positions {rows} rows; "
                f"build the model with max_length={length} or more"
            )
        # looked up for each prompt: one row broadcast over the batch would sum the prompts' gradients
        ids = torch.arange(length, device=x.device).expand(batch, length)
        positions: Tensor = self.position(ids)
        return x + positions
