"""Storage: does the evidence→target entry of the effective value map grow under forward-only training?"""

from torch import Tensor

from rcprobe import Condition, Observation, metric


@metric(
    reads={"storage"},
    pairing="swapped",  # its reverse query, a asked from b, is the one that every kind of model can be asked
    title="storage",
    conditions=(Condition("growth of W̃[a, b]", "effect_size", ("stored", "mismatched"), 0.2, "d_z", growth=True),),
)
def storage(seen: Observation) -> dict[str, Tensor]:
    """W̃[a, b] by layer and head, beside its mean over other facts' a (Prop. 4.1).

    a is the first token of the reverse query's target, b that of its evidence. Where an encoding puts position into
    embeddings or values, the map is that of the reverse query's place, and ``spread`` its standard deviation over
    the places asked (0 elsewhere).
    """
    assert seen.storage is not None
    assert seen.storage_mismatched is not None
    assert seen.storage_spread is not None
    return {"stored": seen.storage, "mismatched": seen.storage_mismatched, "spread": seen.storage_spread}
