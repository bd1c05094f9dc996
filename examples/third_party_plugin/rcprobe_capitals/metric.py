"""A metric: how much probability a fact loses when it is asked backwards."""

from torch import Tensor

import rcprobe

# Optional: with a condition the metric gets an interval and a verdict. A nat is a factor of e = 2.7.
WITHIN_A_NAT = rcprobe.Condition("log p(a | reverse) − log p(a | forward)", "mean", ("value",), -1.0, "nats")


@rcprobe.metric(reads={"log_probs"}, pairing="same_target", title="margin", conditions=(WITHIN_A_NAT,))
def margin(seen: rcprobe.Observation) -> Tensor:
    """log p(a | reverse query) − log p(a | forward query), in nats, one a pair: the curse is far below 0."""
    assert seen.log_probs is not None  # because the metric reads log_probs
    return seen.log_probs[:, 1] - seen.log_probs[:, 0]
