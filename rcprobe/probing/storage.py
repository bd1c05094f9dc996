"""Storage: how strongly a token's value, read on the direct path, raises another token's logit (§3, Prop. 4.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rcprobe.adapter import OvCircuit
from rcprobe.encoding import Encoding
from rcprobe.probing.parameters import output_axis, quantised

Place = tuple[int, int]


def storage(
    model: nn.Module, circuit: OvCircuit, answers: Sequence[int], evidence: Sequence[int], place: Place = (0, 0)
) -> Float[Tensor, "N H A E"]:
    """The double-centred effective value map W̃[a, b] of each layer and head, in float64.

    W_eff = U W_O W_V E with the norms folded in, no MLP: the value norm is applied to the embedding itself, the
    final norm enters by its gain (its scale depends on the prompt). Columns are centred over the vocabulary (a
    softmax doesn't see a column's constant), rows over the vocabulary of evidence (what every token stores isn't
    evidence). ``answers`` and ``evidence`` are token ids. ``place`` is (query row, position of the evidence), which
    matters where ``depends_on_place``: the embedding is then that of a token at the position, and the value is what
    the row reads of it.
    """
    model, encoding = _plain(model), _encoding(model, circuit)
    head, final = _weight(model, circuit.head), model.get_submodule(circuit.final_norm)
    unembed = head[list(answers)].double() - head.mean(dim=0, dtype=torch.float64)
    unembed = unembed * _weight(model, circuit.final_norm).double()
    if isinstance(final, nn.LayerNorm):
        unembed = unembed - unembed.mean(dim=1, keepdim=True)  # a LayerNorm also takes the mean out of what it reads
    embedding = _weight(model, circuit.embedding)
    if encoding is not None:
        embedding = _embedded(encoding, embedding, place[1])
    heads = int(model.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
    read = _Read(embedding, list(evidence))
    layers = model.get_submodule(circuit.layers).children()
    return torch.stack([_layer(circuit, layer, encoding, read, unembed, heads, place) for layer in layers])


def misplaced(model: nn.Module, circuit: OvCircuit) -> str:
    """The first path of a circuit that the model doesn't have, as ``norm 'ln1'``; empty where all are there."""
    model = _plain(model)
    top = {name: getattr(circuit, name) for name in ("embedding", "layers", "final_norm", "head", "encoding")}
    for name, path in top.items():
        if path is not None and not _has(model, path):
            return f"{name} {path!r}"
    for layer in model.get_submodule(circuit.layers).children():
        for name in ("norm", "value", "output"):
            if not _has(layer, getattr(circuit, name)):
                return f"{name} {getattr(circuit, name)!r} (of a layer, a {type(layer).__name__})"
    return ""


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def depends_on_place(model: nn.Module, circuit: OvCircuit) -> bool:
    """Whether storage is a map for each place: an encoding puts position into embeddings or values."""
    encoding = _encoding(model, circuit)
    return encoding is not None and encoding.values_carry_position


def _plain(model: nn.Module) -> nn.Module:
    """The model out of peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _encoding(model: nn.Module, circuit: OvCircuit) -> Encoding | None:
    if circuit.encoding is None:
        return None
    encoding = _plain(model).get_submodule(circuit.encoding)
    assert isinstance(encoding, Encoding)
    return encoding


@torch.no_grad()
def _embedded(encoding: Encoding, embedding: Float[Tensor, "V W"], position: int) -> Float[Tensor, "V W"]:
    """What enters the first layer for each token at a position."""
    sequence = embedding[:, None].expand(-1, position + 1, -1)
    return encoding.embed(sequence)[:, position]


@torch.no_grad()
def _at_row(encoding: Encoding, value: Float[Tensor, "E W"], heads: int, place: Place) -> Float[Tensor, "E W"]:
    """What the query row reads of each token's value alone."""
    row, position = place
    split = value.view(len(value), heads, 1, -1).expand(-1, -1, max(place) + 1, -1)
    placed = encoding.place(split)[:, :, position : position + 1].expand_as(split)
    return encoding.read(placed)[:, :, row].flatten(1)


def _layer(
    circuit: OvCircuit,
    layer: nn.Module,
    encoding: Encoding | None,
    read: "_Read",
    unembed: Tensor,
    heads: int,
    place: Place,
) -> Float[Tensor, "H A E"]:
    value, output = _weight(layer, circuit.value).double(), _weight(layer, circuit.output).double()
    part, parts = circuit.value_part
    value = value.chunk(parts, dim=0)[part]
    values = read(layer.get_submodule(circuit.norm)) @ value.T
    width = output.shape[1] // heads
    groups = heads // (value.shape[0] // width)  # query heads a key/value head serves
    if encoding is not None:
        values = _at_row(encoding, values, heads, place)
    maps = []
    for h in range(heads):
        v = values[:, (h // groups) * width : (h // groups + 1) * width]
        o = output[:, h * width : (h + 1) * width]
        maps.append((unembed @ o) @ v.T)
    return torch.stack(maps)


class _Read:
    """What a layer reads of the evidence's embeddings through its norm, less the mean over the vocabulary.

    A norm's output is linear in its gain, so the mean is taken once for all layers whose norms differ in gain and
    bias alone: a pass over the vocabulary a layer would cost more than all other readings.
    """

    def __init__(self, embedding: Float[Tensor, "V W"], evidence: list[int]) -> None:
        self.embedding, self.evidence = embedding, evidence
        self.means: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, norm: nn.Module) -> Float[Tensor, "E W"]:
        """Rows of the evidence, in float64."""
        dtype = next(norm.parameters()).dtype
        rows: Tensor = norm(self.embedding[self.evidence].to(dtype))
        return rows.double() - self._mean(norm, dtype)

    def _mean(self, norm: nn.Module, dtype: torch.dtype) -> Float[Tensor, " W"]:
        weight, bias = norm._parameters.get("weight"), norm._parameters.get("bias")
        embedding = self.embedding.to(dtype)
        if weight is None or not self._linear(norm, embedding[:8]):
            whole: Tensor = norm(embedding).mean(dim=0, dtype=torch.float64)
            return whole
        kind = f"{type(norm)} {norm} {dtype} {getattr(norm, 'eps', getattr(norm, 'variance_epsilon', None))}"
        if kind not in self.means:
            zero, one = (_with_gain(norm, embedding, gain).mean(dim=0, dtype=torch.float64) for gain in (0.0, 1.0))
            self.means[kind] = zero, one
        zero, one = self.means[kind]
        return zero + weight.double() * (one - zero) + (0.0 if bias is None else bias.double())

    @staticmethod
    def _linear(norm: nn.Module, rows: Float[Tensor, "n W"]) -> bool:
        """Whether weight and bias enter as gain and shift, on a few rows."""
        zero, one = (_with_gain(norm, rows, gain) for gain in (0.0, 1.0))
        weight, bias = norm.get_parameter("weight"), norm._parameters.get("bias")
        made = zero + weight * (one - zero) + (0.0 if bias is None else bias)
        return torch.allclose(made, norm(rows), rtol=1e-3 if rows.dtype.itemsize >= 4 else 5e-2, atol=1e-4)


def _with_gain(norm: nn.Module, rows: Tensor, gain: float) -> Tensor:
    """The norm's output with all of its weight at ``gain`` and no bias."""
    values = {
        name: torch.full_like(p, gain if name == "weight" else 0.0)
        for name, p in norm._parameters.items()
        if p is not None
    }
    found: Tensor = torch.func.functional_call(norm, values, (rows,))
    return found


def _weight(model: nn.Module, path: str) -> Tensor:
    """A module's weight with the updates of low-rank adapters added, inputs along its last dimension."""
    module: Any = model.get_submodule(path)
    base = getattr(module, "base_layer", module)
    weight: Tensor = _acting(base) if quantised(base.weight) else base.weight.detach()
    for name in getattr(module, "active_adapters", ()):
        # in float32 at least: half precision would round an early update away, as the forward pass doesn't
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        weight = weight + module.get_delta_weight(name).detach().to(weight.dtype)
    return weight.T if output_axis(model, f"{path}{'.base_layer' * (base is not module)}.weight") else weight


@torch.no_grad()
def _acting(module: Any) -> Tensor:
    """A quantised linear module's weight, by what it does to unit vectors."""
    weight = module.weight
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    unit = torch.eye(module.in_features, dtype=dtype, device=weight.device)
    acted: Tensor = module(unit) - module(torch.zeros_like(unit))
    return acted.T
