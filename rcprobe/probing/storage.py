"""Storage: how strongly a token's value, read on the direct path, raises another token's logit (§3, Prop. 4.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rcprobe.adapter import OvCircuit
from rcprobe.encoding import Encoding

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
    embedding, head = _weight(model, circuit.embedding), _weight(model, circuit.head)
    unembed = (head - head.mean(dim=0))[list(answers)] * _weight(model, circuit.final_norm)
    if isinstance(model.get_submodule(circuit.final_norm), nn.LayerNorm):
        unembed = unembed - unembed.mean(dim=1, keepdim=True)  # a LayerNorm also takes the mean out of what it reads
    if encoding is not None:
        embedding = _embedded(encoding, embedding, place[1])
    layers = list(model.get_submodule(circuit.layers).children())
    heads = int(model.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
    maps = [_layer(circuit, layer, encoding, embedding, unembed, list(evidence), heads, place) for layer in layers]
    return torch.stack(maps)


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
    return encoding.embed(sequence)[:, position].double()


@torch.no_grad()
def _read(encoding: Encoding, value: Float[Tensor, "E W"], heads: int, place: Place) -> Float[Tensor, "E W"]:
    """What the query row reads of each token's value alone."""
    row, position = place
    split = value.view(len(value), heads, 1, -1).expand(-1, -1, max(place) + 1, -1)
    placed = encoding.place(split)[:, :, position : position + 1].expand_as(split)
    return encoding.read(placed)[:, :, row].flatten(1)


def _layer(
    circuit: OvCircuit,
    layer: nn.Module,
    encoding: Encoding | None,
    embedding: Tensor,
    unembed: Tensor,
    evidence: list[int],
    heads: int,
    place: Place,
) -> Float[Tensor, "H A E"]:
    norm = layer.get_submodule(circuit.norm)
    value, output = _weight(layer, circuit.value), _weight(layer, circuit.output)
    part, parts = circuit.value_part
    value = value.chunk(parts, dim=0)[part]
    with torch.no_grad():
        read = norm(embedding.to(next(norm.parameters()).dtype)).double()
    values = (read[evidence] - read.mean(dim=0)) @ value.T
    width = output.shape[1] // heads
    groups = heads // (value.shape[0] // width)  # query heads a key/value head serves
    if encoding is not None:
        values = _read(encoding, values, heads, place)
    maps = []
    for h in range(heads):
        v = values[:, (h // groups) * width : (h // groups + 1) * width]
        o = output[:, h * width : (h + 1) * width]
        maps.append((unembed @ o) @ v.T)
    return torch.stack(maps)


def _weight(model: nn.Module, path: str) -> Tensor:
    """A module's weight, with the updates of low-rank adapters added."""
    module: Any = model.get_submodule(path)
    weight: Tensor = module.weight.detach().double()
    for name in getattr(module, "active_adapters", ()):
        weight = weight + module.get_delta_weight(name).detach().double()
    return weight
