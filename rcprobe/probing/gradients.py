"""Inner products of per-query gradients, parameter by parameter: two backward passes a pair, nothing clever.

This is the plain definition, kept as the yardstick of any faster way: each query's gradient of −log p(target) is
taken by itself, in float64 where the model is, and multiplied with its partner's.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError, UsageError
from rcprobe.facts import Query, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import collate
from rcprobe.probing.capture import capture_gradient
from rcprobe.queries import with_target

Which = Literal["trainable", "all"]
CONTROLS = ("same_target", "other_target", "other_fact")


@dataclass(frozen=True)
class Part:
    """A parameter, or one of the equal parts of a fused one: its group and layer (None outside the layers)."""

    name: str
    group: str
    layer: int | None
    index: int
    count: int


@dataclass(frozen=True)
class GradientProducts:
    """⟨g→, g←⟩ and squared norms of B pairs over P parts, and the same against K controls a pair.

    ``kinds[k]`` says what the k-th control's reverse query asks: ``same_target`` (the pair's target, from a
    partner's evidence), ``other_target`` (a partner's target, from the pair's evidence), ``other_fact`` (both the
    partner's). ``partner`` holds indices into the pairs, −1 where a pair has too few partners (products NaN).
    """

    parts: tuple[Part, ...]
    inner: Float[Tensor, "B P"]
    forward_norm2: Float[Tensor, "B P"]
    reverse_norm2: Float[Tensor, "B P"]
    kinds: tuple[str, ...]
    partner: Int[Tensor, "B K"]
    control_inner: Float[Tensor, "B K P"]
    control_norm2: Float[Tensor, "B K P"]

    def cosine(self, keep: Sequence[int] | None = None) -> Float[Tensor, " B"]:
        """cos(g→, g←) over the parts of the given indices (all by default); NaN where a gradient vanishes."""
        i = list(range(len(self.parts))) if keep is None else list(keep)
        return _cosine(self.inner[:, i], self.forward_norm2[:, i], self.reverse_norm2[:, i])

    def control_cosine(self, kind: str) -> Float[Tensor, " B"]:
        """The mean cosine of each pair with its controls of one kind; NaN where it has none."""
        columns = [k for k, name in enumerate(self.kinds) if name == kind]
        forward = self.forward_norm2[:, None, :].expand_as(self.control_norm2)
        cosines = _cosine(self.control_inner, forward, self.control_norm2)[:, columns]
        return cosines.nanmean(dim=1)


def gradient_products(
    m: LoadedModel,
    pairs: Sequence[QueryPair],
    partners: Sequence[Sequence[int]],
    *,
    controls: int,
    parameters: Which = "trainable",
) -> GradientProducts:
    """Gradient products of supported pairs with their controls.

    ``partners[i]`` lists the pairs that the i-th may be compared with (see ``rcprobe.controls``). Raises
    ``UsageError`` where no parameter takes a gradient, ``AdapterError`` for a parameter in no declared group.
    """
    kinds = tuple(CONTROLS[k % len(CONTROLS)] for k in range(controls))
    with _chosen(m.model, parameters) as named:
        parts = parameter_parts(m.adapter, [name for name, _ in named])
        table = torch.full((len(pairs), 3 + 2 * controls, len(parts)), torch.nan, dtype=torch.float64)
        partner = torch.full((len(pairs), controls), -1)
        reader = _Reader(m, [p for _, p in named], parts)
        for i, pair in enumerate(pairs):
            forward, reverse = reader(pair.forward), reader(pair.reverse)
            table[i, :3] = torch.stack([_dot(forward, reverse), _dot(forward, forward), _dot(reverse, reverse)])
            for k, kind in enumerate(kinds):
                j = _pick(partners[i], k // len(CONTROLS))
                if j is None:
                    continue
                partner[i, k] = j
                control = reader(_control(m, pair, pairs[j], kind))
                table[i, 3 + 2 * k] = _dot(forward, control)
                table[i, 4 + 2 * k] = _dot(control, control)
    return GradientProducts(
        parts, table[:, 0], table[:, 1], table[:, 2], kinds, partner, table[:, 3::2], table[:, 4::2]
    )


def parameter_parts(adapter: Adapter, names: Sequence[str]) -> tuple[Part, ...]:
    """Parameters cut into the parts that the adapter's groups name. Raises ``AdapterError`` for one in no group."""
    parts = []
    for name in names:
        group = next((group for pattern, group in adapter.groups.items() if re.search(pattern, name)), None)
        if group is None:
            raise AdapterError(f"{adapter.name}: parameter {name!r} is in no group; add a pattern for it to 'groups'")
        layer = re.search(r"\.(\d+)\.", name)
        labels = (group,) if isinstance(group, str) else group
        for i, label in enumerate(labels):
            title = name if len(labels) == 1 else f"{name}[{label}]"
            parts.append(Part(title, label, int(layer[1]) if layer else None, i, len(labels)))
    return tuple(parts)


class _Reader:
    """Gradients of single queries, cut into parts and raised to float64."""

    def __init__(self, m: LoadedModel, parameters: Sequence[nn.Parameter], parts: Sequence[Part]) -> None:
        self.m, self.parameters, self.parts = m, parameters, parts

    def __call__(self, query: Query) -> list[Tensor]:
        gradients = capture_gradient(self.m, collate(self.m, [query]), self.parameters)
        whole = iter(zip(gradients, self.parameters, strict=True))
        pieces: list[Tensor] = []
        for part in self.parts:
            if part.index == 0:
                gradient, parameter = next(whole)
                filled = torch.zeros_like(parameter) if gradient is None else gradient
                pieces.extend(piece.double().flatten() for piece in filled.chunk(part.count, dim=0))
        return pieces


def _control(m: LoadedModel, pair: QueryPair, partner: QueryPair, kind: str) -> Query:
    if kind == "same_target":
        return with_target(partner.reverse, pair.reverse.target_ids, m)
    if kind == "other_target":
        return with_target(pair.reverse, partner.reverse.target_ids, m)
    return partner.reverse


def _pick(partners: Sequence[int], k: int) -> int | None:
    return partners[k] if k < len(partners) else None


def _dot(x: Sequence[Tensor], y: Sequence[Tensor]) -> Float[Tensor, " P"]:
    return torch.stack([a @ b for a, b in zip(x, y, strict=True)]).cpu()


def _cosine(inner: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # 0/0 is NaN: a cosine with a gradient that vanishes is undefined, not zero
    return inner.sum(-1) / (x.sum(-1) * y.sum(-1)).sqrt()


@contextmanager
def _chosen(model: nn.Module, which: Which) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """The parameters whose gradients are asked for; ``all`` lets frozen ones take part for as long as it lasts."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if which == "all":
        for parameter in frozen:
            parameter.requires_grad_(True)
    try:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise UsageError("no parameter takes a gradient; use parameters='all' to include frozen ones")
        yield named
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
