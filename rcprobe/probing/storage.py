"""Storage: how strongly a token's value, read on the direct path, raises another token's logit (§3, Prop. 4.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rcprobe.adapter import OvCircuit
from rcprobe.probing.parameters import output_axis, quantised


def storage(
    model: nn.Module, circuit: OvCircuit, answers: Sequence[int], evidence: Sequence[int]
) -> Float[Tensor, "N H A E"]:
    """The double-centred effective value map W̃[a, b] of each layer and head, in float64.

    W_eff = U W_O W_V E with the norms folded in, no MLP: the value norm is applied to the embedding itself, the
    final norm enters by its gain (its scale depends on the prompt). Columns are centred over the vocabulary (a
    softmax doesn't see a column's constant), rows over the vocabulary of evidence (what every token stores isn't
    evidence). ``answers`` and ``evidence`` are token ids.
    """
    if hasattr(model, "get_base_model"):  # peft's wrapper
        model = model.get_base_model()  # type: ignore[operator]
    embedding, head = _weight(model, circuit.embedding), _weight(model, circuit.head)
    unembed = (head - head.mean(dim=0))[list(answers)] * _weight(model, circuit.final_norm)
    if isinstance(model.get_submodule(circuit.final_norm), nn.LayerNorm):
        unembed = unembed - unembed.mean(dim=1, keepdim=True)  # a LayerNorm also takes the mean out of what it reads
    layers = list(model.get_submodule(circuit.layers).children())
    heads = int(model.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
    return torch.stack([_layer(circuit, layer, embedding, unembed, list(evidence), heads) for layer in layers])


def _layer(
    circuit: OvCircuit, layer: nn.Module, embedding: Tensor, unembed: Tensor, evidence: list[int], heads: int
) -> Float[Tensor, "H A E"]:
    norm = layer.get_submodule(circuit.norm)
    value, output = _weight(layer, circuit.value), _weight(layer, circuit.output)
    part, parts = circuit.value_part
    value = value.chunk(parts, dim=0)[part]
    with torch.no_grad():
        read = norm(embedding.to(next(norm.parameters()).dtype)).double()
    read = read[evidence] - read.mean(dim=0)
    width = output.shape[1] // heads
    groups = heads // (value.shape[0] // width)  # query heads a key/value head serves
    maps = []
    for h in range(heads):
        v = value[(h // groups) * width : (h // groups + 1) * width]
        o = output[:, h * width : (h + 1) * width]
        maps.append((unembed @ o) @ (v @ read.T))
    return torch.stack(maps)


def _weight(model: nn.Module, path: str) -> Tensor:
    """A module's weight with the updates of low-rank adapters added, inputs along its last dimension."""
    module: Any = model.get_submodule(path)
    base = getattr(module, "base_layer", module)
    weight: Tensor = _acting(base) if quantised(base.weight) else base.weight.detach().double()
    for name in getattr(module, "active_adapters", ()):
        weight = weight + module.get_delta_weight(name).detach().double()
    return weight.T if output_axis(model, f"{path}{'.base_layer' * (base is not module)}.weight") else weight


@torch.no_grad()
def _acting(module: Any) -> Tensor:
    """A quantised linear module's weight, by what it does to unit vectors."""
    weight = module.weight
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    unit = torch.eye(module.in_features, dtype=dtype, device=weight.device)
    acted: Tensor = module(unit) - module(torch.zeros_like(unit))
    return acted.T.double()
