"""The outcome: does the right answer gain on the reverse query, beyond what other trained answers gain there?"""

from torch import Tensor

from rcprobe import Condition, Observation, metric


@metric(
    reads={"log_probs", "alternatives"},
    pairing="swapped",
    title="outcome",
    conditions=(
        Condition("gain of log p(a | reverse)", "mean", ("reverse", "alternatives"), 0.1, "nats", growth=True),
    ),
)
def reverse_probability(seen: Observation) -> dict[str, Tensor]:
    """log p of the right answer both ways, in every reading, and of other trained answers to the reverse query.

    The change of ``reverse`` less that of ``alternatives`` is a difference in differences: learning which words
    are answers moves both (§5, §6).
    """
    assert seen.log_probs is not None
    assert seen.alternatives is not None
    assert seen.readings is not None
    columns = {
        "forward": seen.log_probs[:, 0],
        "reverse": seen.log_probs[:, 1],
        "alternatives": seen.alternatives,
    }
    for name, (log_probs, _) in seen.readings.items():
        columns[f"forward, {name}"] = log_probs[:, 0]
        columns[f"reverse, {name}"] = log_probs[:, 1]
    return columns
