"""Routing over whole entities: mean, largest and last cell instead of the first."""

from torch import Tensor

from rcprobe import Condition, Observation, metric
from rcprobe_plugins.metrics.attention_correlation import both_ways

WAYS = ("mean", "max", "last")


@metric(
    reads={"span_scores"},
    title="routing, whole spans",
    on_request=True,
    conditions=tuple(
        Condition(f"r of {what}, {way}", "correlation", (f"forward{column} {way}", f"reverse{column} {way}"), 0.1, "r")
        for way in WAYS
        for what, column in (("scores", ""), ("log weights", "_log_weight"))
    ),
)
def span_correlation(seen: Observation) -> dict[str, Tensor]:
    """Scores and log weights from target rows to evidence tokens, by layer and head: the mean over the attendable
    cells, the largest, and that of the last row and last token (Thm 4.3 for entities of several tokens).
    """
    columns: dict[str, Tensor] = {}
    for way in WAYS:
        columns |= both_ways(seen.other_cells[way], f" {way}")
    return columns
