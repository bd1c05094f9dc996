"""Layers of a tiny model with each seed's own weights: S seeds at once.

Shapes: S seeds, R rows, I and O widths going in and out, W model width, P parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from rcprobe.encoding import Encoding

Weights = Mapping[str, Tensor]
Layout = Sequence[tuple[Sequence[str], torch.Size]]


def layout_of(model: nn.Module) -> Layout:
    """How P is laid out: each parameter's names (two where it is tied) and shape."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [(names[id(p)], p.shape) for p in model.parameters()]


def named(layout: Layout, flat: Float[Tensor, "S P"]) -> Weights:
    """Name → weights [S, …]."""
    pieces = torch.split(flat, [shape.numel() for _, shape in layout], dim=1)
    found = {}
    for (names, shape), piece in zip(layout, pieces, strict=True):
        found.update(dict.fromkeys(names, piece.view(len(flat), *shape)))
    return found


def pick(x: Float[Tensor, "S R W"], at: Int[Tensor, "S M"]) -> Float[Tensor, "S M W"]:
    """Each seed's rows ``at``."""
    seeds, rows, width = x.shape
    first = torch.arange(0, seeds * rows, rows, device=x.device)[:, None]
    return x.reshape(-1, width).index_select(0, (at + first).flatten()).view(seeds, -1, width)


def linear(x: Float[Tensor, "S R I"], weights: Weights, name: str) -> Float[Tensor, "S R O"]:
    """The linear layer of that name."""
    weight, bias = weights[f"{name}.weight"].transpose(1, 2), weights.get(f"{name}.bias")
    return x @ weight if bias is None else torch.baddbmm(bias[:, None], x, weight)


def norm(x: Float[Tensor, "S R W"], weights: Weights, name: str) -> Float[Tensor, "S R W"]:
    """The layer norm of that name."""
    normed = F.layer_norm(x, x.shape[-1:])
    return torch.addcmul(weights[f"{name}.bias"][:, None], normed, weights[f"{name}.weight"][:, None])


def overrides(encoding: Encoding, method: str) -> bool:
    """Whether an encoding does anything in that method."""
    return getattr(type(encoding), method) is not getattr(Encoding, method)


def own(weights: Weights) -> list[dict[str, Tensor]]:
    """For each seed, its encoding's weights by name."""
    owned = {name: w for name, w in weights.items() if name.startswith("encoding.")}
    return [{name: w[seed] for name, w in owned.items()} for seed in range(len(weights["norm.weight"]))]


def encoded(encoding: Encoding, method: str, weights: Weights, *x: Float[Tensor, "S B ..."]) -> tuple[Tensor, ...]:
    """The encoding's method with each seed's own weights; without any, seeds are merely more prompts."""
    if not overrides(encoding, method):
        return x
    seeds = own(weights)
    if not any(seeds):
        found = getattr(encoding, method)(*(tensor.flatten(0, 1) for tensor in x))
        return tuple(part.view(*x[0].shape[:2], *part.shape[1:]) for part in _several(found))
    call = _Method(encoding, method)
    each = [_several(functional_call(call, w, given)) for w, given in zip(seeds, zip(*x, strict=True), strict=True)]
    return tuple(torch.stack(parts) for parts in zip(*each, strict=True))


def score_bias(encoding: Encoding, weights: Weights, length: int, like: Tensor) -> Float[Tensor, "S 1 H L L"] | None:
    """What the encoding adds to scores; the first dimension is 1 where seeds have no weights of their own."""
    if not overrides(encoding, "bias"):
        return None
    call = _Method(encoding, "bias")
    seeds = own(weights)
    found = [functional_call(call, w, length) for w in (seeds if any(seeds) else seeds[:1])]
    return None if found[0] is None else torch.stack(found).to(like)


def _several(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


class _Method(nn.Module):
    """A method of an encoding as the forward that ``functional_call`` asks for."""

    def __init__(self, encoding: Encoding, method: str) -> None:
        super().__init__()
        self.encoding, self.method = encoding, method

    def forward(self, *given: Any) -> Any:
        return getattr(self.encoding, self.method)(*given)
