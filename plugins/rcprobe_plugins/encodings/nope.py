"""No positional encoding at all (NoPE)."""

from typing import ClassVar

from rcprobe.encoding import Encoding


class Nope(Encoding):
    """Adds nothing (Kazemnejad et al., 2023): with full attention the order of tokens is unknown to the model.

    A causal model still knows it from its mask. With full attention every permutation of a prompt gives the permuted
    output, so forward and reverse agree by construction, as under symmetric ALiBi (Prop. 4.5).
    """

    reads_distance_only: ClassVar[bool] = True
    values_carry_position: ClassVar[bool] = False
