"""Position in the values on purpose, scores as under ALiBi: the sharpest test of what storage is for."""

import math
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from rcprobe.errors import OptionError
from rcprobe_plugins.encodings.alibi import Alibi
from rcprobe_plugins.encodings.rope import even, turn

BASE = 10.0


class TurnedValues(Alibi):
    """Symmetric ALiBi's scores, and values turned by the offset of what is read: row i mixes Σ_j α_ij R_{j−i} v_j.

    Everything stays relative, and the scores are ALiBi's to the letter: in the first layer they correlate at 1 by
    identity. What changes is storage: W_eff(Δ) = U W_O R_Δ W_V E is another map at each offset Δ = j − i. A forward
    step on U at offset δ→ moves the map at −δ← by the factor k(δ→ + δ←) = Σ_m w_m cos((δ→ + δ←)θ_m) with w_m the
    share of ‖v‖² in plane m and θ_m = base^(−2m/D): for values, what Thm 4.3 has for scores. At base 10, head width
    64 and length 10 its mean over placements is −0.02 with equal w_m (between two forward offsets 0.52; at base
    10000 the two are 0.72 and 0.87).

    Predicted before it was measured: forward accuracy stays; scores correlate at 1; W_eff(Δ)[a, b] grows at the
    offsets that training showed and, to first order, not at the reverse ones; gradients align less than ALiBi's 1;
    so the reverse query fails though routing is perfect, the less the nearer ``base`` is to 10000.

    Options: ALiBi's ``slope``, and ``base``. Raises ``OptionError`` for an odd head width, or a base below 1.
    """

    reads_distance_only: ClassVar[bool] = False
    values_carry_position: ClassVar[bool] = True

    def __init__(self, width: int, heads: int, max_length: int, slope: float | None = None, base: float = BASE) -> None:
        super().__init__(width, heads, max_length, slope)
        even("turned-values", width, heads)
        if not (isinstance(base, int | float) and math.isfinite(base) and base >= 1):
            raise OptionError(f"turned-values: base must be a number from 1 up; got {base!r}")
        self.base = base

    def place(self, value: Float[Tensor, "B H L D"]) -> Float[Tensor, "B H L D"]:
        """Turn each value by its own position's angles."""
        return turn(value, self.base)

    def read(self, mixed: Float[Tensor, "B H L D"]) -> Float[Tensor, "B H L D"]:
        """Turn back by the reading row's angles: the offset remains."""
        return turn(mixed, self.base, sense=-1)
