"""Routing: do forward and reverse scores from the mask to the evidence rise and fall together over facts?"""

import torch
from torch import Tensor

from rcprobe import Condition, Observation, metric


@metric(
    reads={"scores"},
    title="routing",
    conditions=(
        Condition("r of scores", "correlation", ("forward", "reverse"), 0.1, "r"),
        Condition("r of log weights", "correlation", ("forward_log_weight", "reverse_log_weight"), 0.1, "r"),
    ),
)
def attention_correlation(seen: Observation) -> dict[str, Tensor]:
    """Scores and log weights at (query row, evidence), by layer and head (Thm 4.3, Prop. 4.5).

    Cells that the mask forbids are undefined. The log weight is the score less its row's logsumexp: a row's
    constant, which the softmax doesn't see, can't make it correlate.
    """
    assert seen.scores is not None
    assert seen.log_weights is not None
    assert seen.attendable is not None
    scores = seen.scores.masked_fill(~seen.attendable, torch.nan)
    weights = seen.log_weights.masked_fill(~seen.attendable, torch.nan)
    return {
        "forward": scores[:, 0],
        "reverse": scores[:, 1],
        "forward_log_weight": weights[:, 0],
        "reverse_log_weight": weights[:, 1],
    }
