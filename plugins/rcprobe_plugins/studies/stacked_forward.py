"""The forward pass of tiny models, seeds side by side, to the logits that the loss counts.

Shapes: S seeds, B prompts, L length, N = B·L tokens, M tokens that the loss counts, H heads, D head width, W model
width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rcprobe_plugins.studies.mask_queries import MaskQueries
from rcprobe_plugins.studies.stacked import Weights, encoded, linear, norm, pick, score_bias


def logits(
    model: Any,
    weights: Weights,
    ids: Int[Tensor, "S B L"],
    at: Int[Tensor, "S M"],
    masks: MaskQueries | None = None,
) -> Float[Tensor, "S M V"]:
    """What ``TinyModel.forward`` gives without dropout at the tokens ``at``, which index a seed's N.

    With ``masks``, which takes a model of one layer, all of them must be masks.
    """
    last = len(model.blocks) - 1
    if masks is not None:
        mixed, x = masks.attend(weights, ids, at)
    else:
        x = _embedded(model, weights, ids)
        bias = _bias(model, weights, ids.shape[2], x)
        for number in range(last):
            x = _finish(x, _mixed(model, weights, number, x, ids.shape, bias), weights, number)
        mixed, x = pick(_mixed(model, weights, last, x, ids.shape, bias), at), pick(x, at)
    x = _finish(x, mixed, weights, last)
    return linear(norm(x, weights, "norm"), weights, "lm_head")


def _embedded(model: Any, weights: Weights, ids: Int[Tensor, "S B L"]) -> Float[Tensor, "S N W"]:
    x = pick(weights["embed_tokens.weight"], ids.flatten(1))
    return encoded(model.encoding, "embed", weights, x.view(*ids.shape, -1))[0].flatten(1, 2)


def _bias(model: Any, weights: Weights, length: int, like: Tensor) -> Tensor | None:
    """What is added to scores [S, B, H, L, L]: the encoding's bias, and −∞ to the right of a causal token."""
    bias = score_bias(model.encoding, weights, length, like)
    if not model.causal:
        return bias
    causal = like.new_full((length, length), -torch.inf).triu(1)
    return causal if bias is None else bias + causal


def _mixed(
    model: Any,
    weights: Weights,
    number: int,
    x: Float[Tensor, "S N W"],
    shape: torch.Size,
    bias: Tensor | None,
) -> Float[Tensor, "S N W"]:
    """What a block's attention mixes for each token, before its output projection."""
    name = f"blocks.{number}"
    qkv = linear(norm(x, weights, f"{name}.norm1"), weights, f"{name}.attention.qkv")
    query, key, value = qkv.view(*shape, 3, model.config.heads, -1).permute(3, 0, 1, 4, 2, 5).unbind(0)
    query, key = encoded(model.encoding, "rotate", weights, query, key)
    (value,) = encoded(model.encoding, "place", weights, value)
    scores = (query * model.blocks[number].attention.scaling) @ key.transpose(-1, -2)
    mixed = (scores if bias is None else scores + bias).softmax(dim=-1) @ value
    return encoded(model.encoding, "read", weights, mixed)[0].transpose(2, 3).reshape(x.shape)


def _finish(
    x: Float[Tensor, "S R W"], mixed: Float[Tensor, "S R W"], weights: Weights, number: int
) -> Float[Tensor, "S R W"]:
    """A block's output, from what came in and what its attention mixed."""
    name = f"blocks.{number}"
    x = x + linear(mixed, weights, f"{name}.attention.out")
    hidden = linear(norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.0")
    return x + linear(F.gelu(hidden, approximate="tanh"), weights, f"{name}.mlp.2")
