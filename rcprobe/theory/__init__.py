"""The paper's statements as functions: closed forms, bounds and the flows behind them, each under its number.

``docs/theory.md`` has the mathematics of every one, what it assumes, and what is measured in its place.
"""

from rcprobe.theory.alignment import Split, routing_cosine, split_product, toy_split
from rcprobe.theory.dynamics import Flow, alibi_flow, reverse_limit, rope_curve, rope_flow, velocities
from rcprobe.theory.first_order import Change, FirstOrder, change_along, first_order, gradient_step
from rcprobe.theory.gradients import (
    Gradients,
    OneLayer,
    Reading,
    one_layer_gradients,
    read,
    score_gradient,
    storage_velocity,
)
from rcprobe.theory.rotary import frequencies, planes, rotation
from rcprobe.theory.routing import (
    KeyPlanes,
    alibi_gap,
    key_planes,
    rope_bound,
    rope_bound_given,
    rope_tail,
    score_correlation,
)
from rcprobe.theory.storage import (
    column_product,
    effective_cosine,
    effective_gradient,
    residual,
    storage_gradient,
    untrained_cosines,
)
from rcprobe.theory.unequal import WorstCase, expected_worst_case, sampled_worst_case, surrogate, worst_kappa

__all__ = [
    "Change",
    "FirstOrder",
    "Flow",
    "Gradients",
    "KeyPlanes",
    "OneLayer",
    "Reading",
    "Split",
    "WorstCase",
    "alibi_flow",
    "alibi_gap",
    "change_along",
    "column_product",
    "effective_cosine",
    "effective_gradient",
    "expected_worst_case",
    "first_order",
    "frequencies",
    "gradient_step",
    "key_planes",
    "one_layer_gradients",
    "planes",
    "read",
    "residual",
    "reverse_limit",
    "rope_bound",
    "rope_bound_given",
    "rope_curve",
    "rope_flow",
    "rope_tail",
    "rotation",
    "routing_cosine",
    "sampled_worst_case",
    "score_correlation",
    "score_gradient",
    "split_product",
    "storage_gradient",
    "storage_velocity",
    "surrogate",
    "toy_split",
    "untrained_cosines",
    "velocities",
    "worst_kappa",
]
