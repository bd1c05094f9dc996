"""The plain definition of gradient products: a backward pass a query, gradients formed whole, in float64.

It is the yardstick of ``gradients``, and its resort for parameters that no rule factors.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rcprobe.controls import Assignment
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import capture_gradient
from rcprobe.probing.parameters import Part, output_axis
from rcprobe.queries import with_target


def query_gradients(m: LoadedModel, query: Query, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients of −log p(target) of one query; zero for a parameter the loss doesn't reach."""
    found = capture_gradient(m, collate(m, [query]), parameters)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def plain_products(
    m: LoadedModel, pairs: Sequence[QueryPair], controls: Assignment, parts: Sequence[Part]
) -> Float[Tensor, "B C P"]:
    """Columns ⟨f, r⟩, ‖f‖², ‖r‖², then ⟨f, c⟩, ‖c‖² for each control c, of pairs over parts."""
    parameters = dict(m.model.named_parameters())
    names = list(dict.fromkeys(part.parameter for part in parts))
    axes = {name: output_axis(m.model, name) for name in names}

    def read(query: Query) -> list[Tensor]:
        whole = dict(zip(names, query_gradients(m, query, [parameters[name] for name in names]), strict=True))
        return [
            whole[part.parameter].chunk(part.count, axes[part.parameter])[part.index].double().flatten()
            for part in parts
        ]

    rows = []
    for pair, partners in zip(pairs, controls.partner.tolist(), strict=True):
        forward, reverse = read(pair.forward), read(pair.reverse)
        columns = [_dot(forward, reverse), _dot(forward, forward), _dot(reverse, reverse)]
        for kind, j in zip(controls.kinds, partners, strict=True):
            if j < 0:
                columns += [torch.full_like(columns[0], torch.nan)] * 2
                continue
            control = read(control_query(m, pair, pairs[j], kind))
            columns += [_dot(forward, control), _dot(control, control)]
        rows.append(torch.stack(columns))
    return torch.stack(rows)


def control_query(m: LoadedModel, pair: QueryPair, partner: QueryPair, kind: str) -> Query:
    """The reverse query that a control of this kind asks."""
    if kind == "same_target":
        return with_target(partner.reverse, pair.reverse.target_ids, m)
    if kind == "other_target":
        return with_target(pair.reverse, partner.reverse.target_ids, m)
    return partner.reverse


def _dot(x: Sequence[Tensor], y: Sequence[Tensor]) -> Float[Tensor, " P"]:
    return torch.stack([a @ b for a, b in zip(x, y, strict=True)]).cpu()
