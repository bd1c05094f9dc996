"""A query's gradient, module by module, as factors: never formed where its factors are smaller.

A linear weight's gradient is Σ_l b_l a_lᵀ over positions l (a what went in, b the gradient of what came out), an
embedding's Σ_l onehot(id_l) b_lᵀ, and vectors (biases, norms) are small enough to be formed. Shapes: n queries,
L positions, I and O the widths of a weight, P the entries of a vector.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from rcprobe.probing.captured import Call


class Rows:
    """One side of a factor: a vector at each of L positions of n queries."""

    def __init__(self, values: Float[Tensor, "n L W"]) -> None:
        self.values = values

    @cached_property
    def transposed(self) -> Float[Tensor, "n W L"]:
        """The same, laid out for the right of a product: small batched ones are four times slower from a view."""
        return self.values.transpose(1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class OneHot:
    """One side of an embedding's factor: token ids, and which positions count (padding rows get no gradient)."""

    ids: Int[Tensor, "n L"]
    counts: Bool[Tensor, "n L"]


Side = Rows | OneHot


@dataclass(frozen=True)
class Outer:
    """Gradients Σ_l left_l rightᵀ_l of n queries; ``left`` runs along the weight's first dimension.

    A weight that is used several times (tied, or visited again) has a pair of sides for each use.
    """

    uses: tuple[tuple[Side, Side], ...]

    def inner(self, other: "Outer", grams: "Grams", index: Tensor | None = None) -> Float[Tensor, " n"]:
        """⟨self, other⟩ of each query, in float64: Σ over uses of (left·left′) ∘ (right·right′).

        ``index`` says which of the other's queries each query is set against (None: its own number).
        """
        products = [
            (grams(left, left_, index) * grams(right, right_, index)).sum(dim=(1, 2), dtype=torch.float64)
            for left, right in self.uses
            for left_, right_ in other.uses
        ]
        return torch.stack(products).sum(dim=0)

    def sides(self) -> set[int]:
        """What tells whether two factors have a side in common."""
        return {id(side) for use in self.uses for side in use}

    def formed(self, size: int = 0) -> Float[Tensor, "n O I"]:
        """The gradients themselves; ``size`` is an embedding's number of rows."""
        formed = []
        for left, right in self.uses:
            assert isinstance(right, Rows)
            formed.append(_dense(left, size).transpose(1, 2).to(right.values.dtype) @ right.values)
        return torch.stack(formed).sum(dim=0)


@dataclass(frozen=True)
class Formed:
    """Gradients [n, …] that are formed because they are small."""

    values: Tensor

    def inner(self, other: "Formed", grams: "Grams", index: Tensor | None = None) -> Float[Tensor, " n"]:
        """⟨self, other⟩ of each query, in float64."""
        values = other.values if index is None else other.values.index_select(0, index)
        return (self.values.double() * values.double()).flatten(1).sum(dim=1)

    def sides(self) -> set[int]:
        """None."""
        return set()


class Grams:
    """Inner products of positions of one set of queries with those of another, each computed once.

    Query, key and value weights share their input, gate and up weights theirs.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[int, int, int], Tensor] = {}

    def __call__(self, x: Side, y: Side, index: Tensor | None) -> Float[Tensor, "n L M"]:
        """[n, L] positions of x against [n, M] of y."""
        key = (id(x), id(y), id(index))
        if key not in self.known:
            self.known[key] = _products(x, y, index)
        return self.known[key]


class Inputs:
    """What went into modules as rows, one object for each tensor, however many modules and labels read it."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.rows: dict[int, Rows] = {}

    def __call__(self, values: Tensor) -> Rows:
        """The rows of an input."""
        if id(values) not in self.rows:
            self.rows[id(values)] = Rows(_rows(values, self.n))
        return self.rows[id(values)]


Factor = Outer | Formed
Rule = Callable[[nn.Module, Call, Tensor, Inputs], dict[str, Factor]]


def rule_for(module: nn.Module) -> tuple[str, Rule] | None:
    """The rule that factors this module's gradients, by what the module is; None if there is none.

    A low-rank adapter answers for the layer it wraps: what the whole gives back, it gives back too.
    """
    from transformers.pytorch_utils import Conv1D

    module = getattr(module, "base_layer", module)
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
    b, x = _reached(_rows(gradient, inputs.n), inputs(call.input))
    return {"weight": Outer(((Rows(b), x),)), **_bias(module, b, gradient)}


def conv1d(module: nn.Module, call: Call, gradient: Tensor, inputs: Inputs) -> dict[str, Factor]:
    """GPT-2's y = x W + c: the transpose of ``linear``."""
    b, x = _reached(_rows(gradient, inputs.n), inputs(call.input))
    return {"weight": Outer(((x, Rows(b)),)), **_bias(module, b, gradient)}


def _reached(b: Float[Tensor, "n L O"], x: Rows) -> tuple[Float[Tensor, "n M O"], Rows]:
    """Both without the positions that no gradient reaches, if those are the most: above the last attention, all but
    the target's.
    """
    for some in (b[:1], b):  # the first query alone tells most modules apart
        alive = (some.amax(dim=-1) != 0) | (some.amin(dim=-1) != 0)
        most = max(int(alive.sum(dim=1).max()), 1)
        if 2 * most > b.shape[1]:
            return b, x
    kept = alive.int().topk(most, dim=1).indices[..., None]
    return b.gather(1, kept.expand(-1, -1, b.shape[2])), Rows(
        x.values.gather(1, kept.expand(-1, -1, x.values.shape[2]))
    )


def embedding(module: nn.Module, call: Call, gradient: Tensor, inputs: Inputs) -> dict[str, Factor]:
    """y = s·W[id]: row id gets s·b; the padding row gets nothing. The scale s is read off the output."""
    module = getattr(module, "base_layer", module)
    assert isinstance(module, nn.Embedding)
    ids = call.input.reshape(inputs.n, -1)
    b = _rows(gradient, inputs.n)
    if type(module) is not nn.Embedding:
        with torch.no_grad():
            rows = module.weight[ids].reshape(call.output.shape)
            sound = rows.isfinite() & call.output.isfinite()  # one prompt's NaN is no other's
            rows, output = rows.where(sound, 0), call.output.where(sound, 0)
            b = b * ((rows * output).sum() / (rows * rows).sum())
    counts = ids != module.padding_idx if module.padding_idx is not None else torch.ones_like(ids, dtype=torch.bool)
    return {"weight": Outer(((OneHot(ids, counts), Rows(b)),))}


def norm(module: nn.Module, call: Call, gradient: Tensor, inputs: Inputs) -> dict[str, Factor]:
    """y = n(x)·γ + c, where the gain γ is w or 1 + w: w's gradient is Σ_l b_l n(x_l) = (Σ_l b_l (y_l − c))/γ."""
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None
    zero = {name: torch.zeros_like(p) for name, p in module._parameters.items() if p is not None}

    def at(gain: dict[str, Tensor], inputs: Any) -> Tensor:
        found: Tensor = torch.func.functional_call(module, gain, *inputs)
        return found

    with torch.no_grad():
        args = (tuple(call.args), dict(call.kwargs))
        through = at(zero, tree_map(_ramp, args))  # not nothing where the gain is spelt 1 + w
        gain, output, shift = weight + bool((through != 0).any()), call.output, bias
        if bool((gain == 0).any()):  # nothing to divide by: what one more unit of gain adds
            unit = torch.ones_like(weight)
            gain, output, shift = unit, at({**zero, "weight": unit}, args) - at(zero, args), None
        b, y = _reached(_rows(gradient, inputs.n), Rows(_rows(output, inputs.n)))
        total = (b * y.values).sum(dim=1)
        if shift is not None:
            total = total - shift * b.sum(dim=1)
        return {"weight": Formed(total / gain), **_bias(module, b, gradient)}


def _ramp(value: object) -> object:
    """Something of one prompt's shape that is finite, whatever the prompt was."""
    if not (isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1):
        return value
    return torch.linspace(-1, 1, value[:1].numel()).to(value).reshape(value[:1].shape)


def _bias(module: nn.Module, b: Float[Tensor, "n L W"], gradient: Tensor) -> dict[str, Factor]:
    return {} if module._parameters.get("bias") is None else {"bias": Formed(_sum(b, gradient.dtype))}


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
        values = factor.values
        if values[:1].numel() <= 1:  # one number stands for all: no gradient, or none that can be read
            return [factor] * count
        return [Formed(part) for part in values.chunk(count, dim=1 + axis if values.ndim > 2 else 1)]
    parts: list[list[tuple[Side, Side]]] = [[] for _ in range(count)]
    for use in factor.uses:
        fused = use[axis]
        assert isinstance(fused, Rows)
        for k, piece in enumerate(map(Rows, fused.values.chunk(count, dim=-1))):
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
    out, width = left.values.shape[2], right.values.shape[2]
    return Formed(factor.formed()) if out * width <= length * (out + width) else factor


def _sum(b: Float[Tensor, "n L W"], dtype: torch.dtype) -> Float[Tensor, "n W"]:
    """Σ_l b_l, with sums that cancel down to rounding set to zero.

    A key's bias moves all scores of a row alike where keys aren't rotated: its gradient is zero, and a cosine with
    what rounding leaves of it would look like a measurement.
    """
    total = b.sum(dim=1)
    steps = 16 if dtype.itemsize >= 4 else 2  # sixteen steps of bfloat16 are an eighth of the whole
    return total.masked_fill(total.abs() <= steps * torch.finfo(dtype).eps * b.abs().sum(dim=1), 0.0)


def _rows(values: Tensor, n: int) -> Float[Tensor, "n L W"]:
    """[n, …, W], or [n·L, W] as expert layers flatten it, to [n, L, W]; half precision is raised to float32."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32)).reshape(n, -1, values.shape[-1])


def _dense(side: Side, size: int) -> Tensor:
    if isinstance(side, Rows):
        return side.values
    return torch.nn.functional.one_hot(side.ids, size) * side.counts[..., None]


def _products(x: Side, y: Side, index: Tensor | None) -> Float[Tensor, "n L M"]:
    def chosen(values: Tensor) -> Tensor:
        return values if index is None else values.index_select(0, index)

    if isinstance(x, Rows):
        if isinstance(y, Rows):
            return x.values @ chosen(y.transposed)
        return _looked_up(x.values, chosen(y.ids), chosen(y.counts))
    if isinstance(y, Rows):
        return _looked_up(chosen(y.values), x.ids, x.counts).transpose(1, 2)
    same = x.ids[:, :, None] == chosen(y.ids)[:, None, :]
    return (same & x.counts[:, :, None] & chosen(y.counts)[:, None, :]).float()


def _looked_up(
    rows: Float[Tensor, "n L V"], ids: Int[Tensor, "n M"], counts: Bool[Tensor, "n M"]
) -> Float[Tensor, "n L M"]:
    """Dense rows times one-hot ones: the entries that the ids name."""
    return rows.gather(2, ids[:, None, :].expand(-1, rows.shape[1], -1)) * counts[:, None, :]


def uses_of(model: nn.Module, wanted: Mapping[int, str]) -> dict[str, list[tuple[str, str]]]:
    """For each wanted parameter (by id → name), the (module path, attribute) places that hold it.

    A frozen weight under an adapter is read at the adapter: its own output may take no gradient.
    """
    uses: dict[str, list[tuple[str, str]]] = {name: [] for name in wanted.values()}
    for path, module in model.named_modules(remove_duplicate=True):
        for attribute, parameter in module._parameters.items():
            if id(parameter) in wanted:
                place = path if parameter is None or parameter.requires_grad else path.removesuffix(".base_layer")
                uses[wanted[id(parameter)]].append((place, attribute))
    return uses
