"""The contract of a positional encoding of the tiny models."""

from typing import ClassVar

from torch import Tensor, nn


class Encoding(nn.Module):
    """Where a token stands, as a model is told it. Subclasses override only what they do.

    Shapes: B prompts, L length, H heads, D head width, W model width.

    Attributes:
        reads_distance_only: scores depend on the content of the two tokens plus a term in |i − j| (or none), and
            values carry no position. A one-layer model then gives a mirrored query the same output (Prop. 4.5):
            forward and reverse agree by construction, trained or not.
    """

    reads_distance_only: ClassVar[bool] = False

    def __init__(self, width: int, heads: int, max_length: int) -> None:
        super().__init__()

    def embed(self, x: Tensor) -> Tensor:
        """Token embeddings [B, L, W] → what enters the first block, same shape."""
        return x

    def rotate(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, L, D] → the same, with position turned in."""
        return query, key

    def bias(self, length: int) -> Tensor | None:
        """What is added to attention scores: [1, H, L, L], or None."""
        return None

    def place(self, value: Tensor) -> Tensor:
        """Values [B, H, L, D] → what attention mixes, with position put in where they stand."""
        return value

    def read(self, mixed: Tensor) -> Tensor:
        """What attention mixed for each row [B, H, L, D] → what is read there."""
        return mixed
