"""Storage of what reverse queries ask for."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rcprobe.errors import CaptureError
from rcprobe.facts import Query
from rcprobe.loaded import LoadedModel
from rcprobe.probing.storage import Place, depends_on_place, storage


@dataclass(frozen=True)
class Stored:
    """W̃[a, b] of each query, its mean over other facts' a, and its spread over places where those count."""

    own: Float[Tensor, "B N H"]
    mismatched: Float[Tensor, "B N H"]
    spread: Float[Tensor, "B N H"]


def stored(m: LoadedModel, queries: Sequence[Query]) -> Stored:
    """Storage of each query's first target token at its first evidence token, over layers and heads, in float64.

    Another right answer of a query is nobody's other fact. Raises ``CaptureError`` where the adapter declares no
    ov_circuit.
    """
    circuit = m.adapter.ov_circuit
    if circuit is None:
        raise CaptureError(f"{m.adapter.name}: it declares no ov_circuit, so storage can't be read")
    if not queries:
        nothing = torch.empty(0, 0, 0, dtype=torch.float64)
        return Stored(nothing, nothing, nothing)
    asked = [query.target_ids[0] for query in queries]
    given = [query.input_ids[query.evidence_positions[0]] for query in queries]
    placed = depends_on_place(m.model, circuit)
    places: list[Place] = [(q.row, q.evidence_positions[0]) if placed else (0, 0) for q in queries]
    answers, evidence, each = sorted(set(asked)), sorted(set(given)), sorted(set(places))
    tables = torch.stack([storage(m.model, circuit, answers, evidence, place).cpu() for place in each])  # P N H A E
    right: dict[int, set[int]] = {b: set() for b in evidence}
    for query, answer, token in zip(queries, asked, given, strict=True):
        right[token].update({answer, *(ids[0] for ids in query.other_answers)})
    wrong = torch.tensor([[answer not in right[token] for token in evidence] for answer in answers])
    means = tables.masked_fill(~wrong, 0.0).sum(dim=-2) / wrong.sum(dim=0)
    place, a, b = _numbers(places, each), _numbers(asked, answers), _numbers(given, evidence)
    spread = tables.std(dim=0, correction=0).permute(2, 3, 0, 1)
    return Stored(tables[place, :, :, a, b], means[place, :, :, b], spread[a, b])


def _numbers(values: Sequence[Hashable], among: Sequence[Hashable]) -> Int[Tensor, " B"]:
    number = {value: n for n, value in enumerate(among)}
    return torch.tensor([number[value] for value in values])
