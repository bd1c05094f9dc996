"""A metric: how much probability a fact loses when it is asked backwards."""

from torch import Tensor

import rcprobe


@rcprobe.metric(
    reads={"log_probs"},
    pairing="same_target",
    title="margin",
    # optional: with a condition the metric gets an interval and a verdict; -1 nat is a factor of e
    conditions=(
        rcprobe.Condition("log p(a | reverse) − log p(a | forward)", "mean", ("value",), -1.0, "nats"),
    ),
)
def margin(seen: rcprobe.Observation) -> Tensor:
    """log p(a | reverse query) − log p(a | forward query), in nats: far below 0 is the reversal curse. Shape [B]."""
    assert seen.log_probs is not None  # because the metric reads log_probs
    return seen.log_probs[:, 1] - seen.log_probs[:, 0]
