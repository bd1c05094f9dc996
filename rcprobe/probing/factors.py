"""A query's gradient, module by module, as factors: never formed where its factors are smaller.

A linear weight's gradient is Σ_l b_l a_lᵀ over positions l (a what went in, b the gradient of what came out), an
embedding's Σ_l onehot(id_l) b_lᵀ, and vectors (biases, norms) are small enough to be formed. Shapes: n queries,
L positions, I and O the widths of a weight, P the entries of a vector.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rcprobe.probing.captured import Call


@dataclass(frozen=True)
class OneHot:
    """One side of an embedding's factor: token ids, and which positions count (padding rows get no gradient)."""

    ids: Int[Tensor, "n L"]
    counts: Bool[Tensor, "n L"]

    def __getitem__(self, index: Tensor) -> "OneHot":
        return OneHot(self.ids[index], self.counts[index])


Side = Tensor | OneHot


@dataclass(frozen=True)
class Outer:
    """Gradients Σ_l left_l rightᵀ_l of n queries; ``left`` runs along the weight's first dimension.

    A weight that is used several times (tied, or visited again) has a pair of sides for each use.
    """

    uses: tuple[tuple[Side, Side], ...]

    def inner(self, other: "Outer", grams: "Grams") -> Float[Tensor, " n"]:
        """⟨self, other⟩ of each query, in float64: Σ over uses of (left·left′) ∘ (right·right′)."""
        products = [
            (grams(left, left_).double() * grams(right, right_).double()).sum(dim=(1, 2))
            for left, right in self.uses
            for left_, right_ in other.uses
        ]
        return torch.stack(products).sum(dim=0)

    def formed(self, size: int = 0) -> Float[Tensor, "n O I"]:
        """The gradients themselves; ``size`` is an embedding's number of rows."""
        formed = [_dense(left, size).transpose(1, 2).to(right.dtype) @ right for left, right in self._tensors()]
        return torch.stack(formed).sum(dim=0)

    def _tensors(self) -> list[tuple[Side, Tensor]]:
        assert not any(isinstance(right, OneHot) for _, right in self.uses)
        return list(self.uses)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Formed:
    """Gradients [n, …] that are formed because they are small."""

    values: Tensor

    def inner(self, other: "Formed", grams: "Grams") -> Float[Tensor, " n"]:
        """⟨self, other⟩ of each query, in float64."""
        values = other.values if grams.index is None else other.values[grams.index]
        return (self.values.double() * values.double()).flatten(1).sum(dim=1)


class Grams:
    """Inner products of positions of one set of queries with those of another, each computed once.

    ``index`` says which of the other's queries each query is set against (None: its own number). Query, key and
    value weights share their input, gate and up weights theirs.
    """

    def __init__(self, index: Tensor | None = None) -> None:
        self.index = index
        self.known: dict[tuple[int, int], Tensor] = {}

    def __call__(self, x: Side, y: Side) -> Float[Tensor, "n L M"]:
        """[n, L] positions of x against [n, M] of y."""
        key = (id(x), id(y))
        if key not in self.known:
            self.known[key] = _products(x, y if self.index is None else y[self.index])
        return self.known[key]


class Inputs:
    """What went into modules as [n, L, W], one object for each tensor, however many modules read it."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.known: dict[int, Tensor] = {}

    def __call__(self, values: Tensor) -> Float[Tensor, "n L W"]:
        """The rows of an input."""
        if id(values) not in self.known:
            self.known[id(values)] = _rows(values, self.n)
        return self.known[id(values)]


Factor = Outer | Formed
Rule = Callable[[nn.Module, Call, Tensor, Inputs], dict[str, Factor]]


def rule_for(module: nn.Module) -> tuple[str, Rule] | None:
    """The rule that factors this module's gradients, by what the module is; None if there is none."""
    from transformers.pytorch_utils import Conv1D

    shapes = {name: p.ndim for name, p in module._parameters.items() if p is not None}
    if isinstance(module, nn.Linear):
        return "linear", linear
    if isinstance(module, Conv1D):
        return "conv1d", conv1d
    if isinstance(module, nn.Embedding):
        return "embedding", embedding
    if {"weight"} <= set(shapes) <= {"weight", "bias"} and set(shapes.values()) == {1}:
        return "norm", norm
    return None


def linear(module: nn.Module, call: Call, gradient: Tensor, inputs: Inputs) -> dict[str, Factor]:
    """y = x Wᵀ + c: W's gradient is Σ_l b_l a_lᵀ, c's Σ_l b_l."""
    x, b = inputs(call.input), _rows(gradient, inputs.n)
    return {"weight": Outer(((b, x),)), "bias": Formed(_sum(b, gradient.dtype))}


def conv1d(module: nn.Module, call: Call, gradient: Tensor, inputs: Inputs) -> dict[str, Factor]:
    """GPT-2's y = x W + c: the transpose of ``linear``."""
    x, b = inputs(call.input), _rows(gradient, inputs.n)
    return {"weight": Outer(((x, b),)), "bias": Formed(_sum(b, gradient.dtype))}


def embedding(module: nn.Module, call: Call, gradient: Tensor, inputs: Inputs) -> dict[str, Factor]:
    """y = s·W[id]: row id gets s·b; the padding row gets nothing. The scale s is read off the output."""
    assert isinstance(module, nn.Embedding)
    ids = call.input.reshape(inputs.n, -1)
    with torch.no_grad():
        rows = module.weight[ids].reshape(call.output.shape)
        sound = rows.isfinite() & call.output.isfinite()  # one prompt's NaN is no other's
        rows, output = rows.where(sound, 0), call.output.where(sound, 0)
        scale = (rows * output).sum() / (rows * rows).sum()
    counts = ids != module.padding_idx if module.padding_idx is not None else torch.ones_like(ids, dtype=torch.bool)
    return {"weight": Outer(((OneHot(ids, counts), _rows(gradient, inputs.n) * scale),))}


def norm(module: nn.Module, call: Call, gradient: Tensor, inputs: Inputs) -> dict[str, Factor]:
    """y = n(x)·w + c, or n(x)·(1 + w): n(x) is what one more unit of gain adds to the output, however it is spelt."""
    with torch.no_grad():
        zero = {name: torch.zeros_like(p) for name, p in module._parameters.items() if p is not None}
        unit = {**zero, "weight": torch.ones_like(zero["weight"])}
        base, whole = (
            torch.func.functional_call(module, gain, tuple(call.args), dict(call.kwargs)) for gain in (zero, unit)
        )
        normed = whole - base
    b = _rows(gradient, inputs.n)
    return {
        "weight": Formed((b * _rows(normed, inputs.n)).sum(dim=1)),
        "bias": Formed(_sum(b, gradient.dtype)),
    }


def combine(factors: Sequence[Factor]) -> Factor:
    """The gradient of a parameter used several times: uses side by side, formed ones added."""
    if all(isinstance(factor, Outer) for factor in factors):
        return Outer(tuple(use for factor in factors for use in factor.uses))  # type: ignore[union-attr]
    assert all(isinstance(factor, Formed) for factor in factors)
    return Formed(torch.stack([factor.values for factor in factors]).sum(dim=0))  # type: ignore[union-attr]


def split(factor: Factor, count: int, axis: int) -> list[Factor]:
    """Equal parts of a fused parameter along its output dimension (0, or 1 where the weight is transposed)."""
    if count == 1:
        return [factor]
    if isinstance(factor, Formed):
        return [Formed(part) for part in factor.values.chunk(count, dim=-1)]
    parts: list[list[tuple[Side, Side]]] = [[] for _ in range(count)]
    for use in factor.uses:
        fused = use[axis]
        assert isinstance(fused, Tensor)
        for k, piece in enumerate(fused.chunk(count, dim=-1)):
            parts[k].append((piece, use[1]) if axis == 0 else (use[0], piece))
    return [Outer(tuple(uses)) for uses in parts]


def shrink(factor: Factor, length: int) -> Factor:
    """Form a gradient whose entries are fewer than what its factors' products would cost (LoRA's).

    ``length`` is that of the longest query, so that queries to be compared are treated alike.
    """
    if isinstance(factor, Formed):
        return factor
    left, right = factor.uses[0]
    if len(factor.uses) > 1 or isinstance(left, OneHot) or isinstance(right, OneHot):
        return factor
    out, width = left.shape[2], right.shape[2]
    return Formed(factor.formed()) if out * width <= length * (out + width) else factor


def _sum(b: Float[Tensor, "n L W"], dtype: torch.dtype) -> Float[Tensor, "n W"]:
    """Σ_l b_l, with sums that cancel down to rounding set to zero.

    A key's bias moves all scores of a row alike where keys aren't rotated: its gradient is zero, and a cosine with
    what rounding leaves of it would look like a measurement.
    """
    total = b.sum(dim=1)
    return total.masked_fill(total.abs() <= 16 * torch.finfo(dtype).eps * b.abs().sum(dim=1), 0.0)


def _rows(values: Tensor, n: int) -> Float[Tensor, "n L W"]:
    """[n, …, W], or [n·L, W] as expert layers flatten it, to [n, L, W]; half precision is raised to float32."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32)).reshape(n, -1, values.shape[-1])


def _dense(side: Side, size: int) -> Tensor:
    if not isinstance(side, OneHot):
        return side
    return torch.nn.functional.one_hot(side.ids, size) * side.counts[..., None]


def _products(x: Side, y: Side) -> Tensor:
    if isinstance(x, OneHot) and isinstance(y, OneHot):
        same = x.ids[:, :, None] == y.ids[:, None, :]
        return (same & x.counts[:, :, None] & y.counts[:, None, :]).float()
    if isinstance(x, OneHot):
        assert isinstance(y, Tensor)
        picked = y.gather(2, x.ids[:, None, :].expand(-1, y.shape[1], -1))  # n M L
        return (picked * x.counts[:, None, :]).transpose(1, 2)
    if isinstance(y, OneHot):
        return _products(y, x).transpose(1, 2)
    # float64: near saturation an output gradient's square leaves float32's range
    return x.double() @ y.double().transpose(1, 2)


def uses_of(model: nn.Module, wanted: Mapping[int, str]) -> dict[str, list[tuple[str, str]]]:
    """For each wanted parameter (by id → name), the (module path, attribute) places that hold it."""
    uses: dict[str, list[tuple[str, str]]] = {name: [] for name in wanted.values()}
    for path, module in model.named_modules(remove_duplicate=True):
        for attribute, parameter in module._parameters.items():
            if id(parameter) in wanted:
                uses[wanted[id(parameter)]].append((path, attribute))
    return uses
