"""A causal check on routing: does the answer hang on attention to the evidence?"""

from torch import Tensor

from rcprobe import Condition, Observation, metric

WAYS = ("forward", "reverse")
SIDES = ("evidence", "control")


@metric(
    reads={"knockout"},
    pairing=("swapped", "same_target"),
    title="knockout",
    on_request=True,
    check=True,
    conditions=tuple(
        Condition(f"fall of log p, {way} − control's", "mean", (f"{way} evidence", f"{way} control"), 0.1, "nats")
        for way in WAYS
    ),
)
def route_knockout(seen: Observation) -> dict[str, Tensor]:
    """How far log p of the answer falls when the query rows can't attend to the evidence, beside the same with other
    tokens; in all layers at once, by layer, and by layer and head. A check on routing (Thm 4.3), not a signature:
    it judges whether both answers hang on these cells, not whether training tied the two directions together.

    Costs 3 + 2N + 2NH prompts a query, N layers with softmax attention and H heads: 2,115 for 32 layers of 32 heads.
    """
    found = seen.knockout
    assert found is not None
    columns = {}
    for w, way in enumerate(WAYS):
        for s, side in enumerate(SIDES):
            columns[f"{way} {side}"] = found.everywhere[:, w, s]
            columns |= {f"{way} {side} layer {k}": found.layers[:, w, s, k] for k in range(found.layers.shape[-1])}
            columns[f"{way} {side} by head"] = found.heads[:, w, s]
    return columns
