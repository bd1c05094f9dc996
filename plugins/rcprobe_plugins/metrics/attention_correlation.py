"""Routing: do forward and reverse scores from the mask to the evidence rise and fall together over facts?"""

import torch
from torch import Tensor

from rcprobe import Condition, Observation, metric
from rcprobe.probing.cells import CellReading


@metric(
    reads={"scores"},
    title="routing",
    conditions=(
        Condition("r of scores", "correlation", ("forward", "reverse"), 0.1, "r"),
        Condition("r of log weights", "correlation", ("forward_log_weight", "reverse_log_weight"), 0.1, "r"),
        Condition("r of scores, slot row", "correlation", ("forward slot", "reverse slot"), 0.1, "r", judged=False),
    ),
)
def attention_correlation(seen: Observation) -> dict[str, Tensor]:
    """Scores and log weights at (query row, evidence), by layer and head (Thm 4.3, Prop. 4.5).

    Cells that the mask forbids are undefined. The log weight is the score less its row's logsumexp: a row's
    constant, which the softmax doesn't see, can't make it correlate. A shifted model's row is the one that predicts
    the target (readout); the row of the target's own place is its ``slot``.
    """
    assert seen.scores is not None
    assert seen.log_weights is not None
    assert seen.attendable is not None
    columns = both_ways(CellReading(seen.scores, seen.log_weights, seen.attendable))
    if "slot" in seen.other_cells:
        columns |= both_ways(seen.other_cells["slot"], " slot")
    return columns


def both_ways(cells: CellReading, name: str = "") -> dict[str, Tensor]:
    """Forward and reverse scores and log weights as columns; NaN where the mask forbids the cell."""
    scores = cells.scores.masked_fill(~cells.attendable, torch.nan)
    weights = cells.log_weights.masked_fill(~cells.attendable, torch.nan)
    return {
        f"forward{name}": scores[:, 0],
        f"reverse{name}": scores[:, 1],
        f"forward_log_weight{name}": weights[:, 0],
        f"reverse_log_weight{name}": weights[:, 1],
    }
