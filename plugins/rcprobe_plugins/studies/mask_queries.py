"""Attention of a one-layer model that is asked at its masks: once for each item of the vocabulary and each place.

Every query is the mask's, so a score depends on the query's place and on the key's token and place alone: the batch
looks its scores and values up in tables that are far smaller than itself.

Shapes: S seeds, B prompts, L length, N = B·L tokens, M tokens that the loss counts, H heads, D head width, W model
width, V vocabulary, T places by which rows are told apart: L, or 1 where a token's row is the same everywhere.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rcprobe.encoding import Encoding
from rcprobe_plugins.studies.stacked import Weights, encoded, linear, norm, overrides, own, pick, score_bias


@dataclass(frozen=True)
class Turn:
    """How ``rotate`` turns a vector at each place: x ↦ x·``by`` + ``offset``."""

    by: Float[Tensor, "S H L D D"]
    offset: Float[Tensor, "S H L D"]


class MaskQueries:
    """The tables of a model, for sequences of one ``length`` with the mask ``mask_id``.

    They hold for an encoding that treats each token by itself, and turns queries and keys by an affine map for each
    place; whoever uses them checks the logits. ``weights`` are any weights of the model.
    """

    def __init__(self, model: Any, weights: Weights, length: int, mask_id: int) -> None:
        self.model, self.length, self.mask_id = model, length, mask_id
        self.heads = model.config.heads
        self.turns: tuple[Turn, Turn] | None = None
        if overrides(model.encoding, "rotate") and not any(own(weights)):
            with torch.no_grad():
                self.turns = _turns(model.encoding, weights, self.heads, length)

    def turns_affinely(self, weights: Weights) -> bool:
        """Whether ``rotate`` is affine, near zero and far from it: what is clamped, say, is so near zero alone."""
        if not overrides(self.model.encoding, "rotate"):
            return True
        like = weights["norm.weight"]
        width = like.shape[-1] // self.heads
        shape = (2, len(like), 1, self.heads, self.length, width)
        some = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)

        def turned(x: Tensor) -> Tensor:
            return torch.stack(encoded(self.model.encoding, "rotate", weights, x, x))

        with torch.no_grad():
            zero = turned(torch.zeros_like(some[0]))
            return all(
                torch.allclose(
                    turned(size * some[0]) + turned(size * some[1]) - zero,
                    turned(size * (some[0] + some[1])),
                    rtol=1e-3,
                    atol=1e-3 * size,
                )
                for size in (1.0, 1000.0)
            )

    def attend(
        self, weights: Weights, ids: Int[Tensor, "S B L"], at: Int[Tensor, "S M"]
    ) -> tuple[Float[Tensor, "S M W"], Float[Tensor, "S M W"]]:
        """What attention mixes for the masks at ``at``, before the output projection; and the rows it is added to."""
        rows = self._rows(weights)
        scores, value = self._tables(weights, rows)
        seeds, prompts, length = ids.shape
        row = ids + torch.arange(length, device=ids.device) * scores.shape[2]
        found = pick(scores.flatten(1, 2).flatten(2), row.flatten(1))
        attention = _softmax(found.view(seeds, prompts, length, -1)).view(seeds, prompts, length, self.heads, length)
        values = pick(value.flatten(1, 2), (ids if value.shape[1] == 1 else row).flatten(1))
        values = values.view(seeds, prompts, length, self.heads, -1)
        mixed = attention.permute(0, 1, 3, 4, 2) @ values.transpose(2, 3)
        (mixed,) = encoded(self.model.encoding, "read", weights, mixed)
        masks = rows[:, :, self.mask_id]
        residual = masks if masks.shape[1] == 1 else pick(masks, at % length)
        return pick(mixed.transpose(2, 3).flatten(1, 2).flatten(2), at), residual

    def _tables(
        self, weights: Weights, rows: Float[Tensor, "S T V W"]
    ) -> tuple[Float[Tensor, "S L V H L"], Float[Tensor, "S T V W"]]:
        """Scores by the key's place, its token, and the query's place; values by place and token."""
        normed = norm(rows.flatten(1, 2), weights, "blocks.0.norm1")
        qkv = linear(normed, weights, "blocks.0.attention.qkv").view(*rows.shape[:3], 3, self.heads, -1)
        query, key, value = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)  # each [S, H, T, V, D]
        scale = self.model.blocks[0].attention.scaling
        scores = self._scores(weights, query[:, :, :, self.mask_id] * scale, key)
        bias = score_bias(self.model.encoding, weights, self.length, scores)
        if bias is not None:
            scores = scores + bias.permute(0, 4, 1, 2, 3)
        if overrides(self.model.encoding, "place"):
            everywhere = value.expand(-1, -1, self.length, -1, -1).permute(0, 3, 1, 2, 4)
            value = encoded(self.model.encoding, "place", weights, everywhere)[0].permute(0, 2, 3, 1, 4)
        seeds, places, tokens = len(value), value.shape[2], value.shape[3]
        scores = scores.expand(seeds, self.length, tokens, self.heads, self.length)
        return scores, value.permute(0, 2, 3, 1, 4).reshape(seeds, places, tokens, -1)

    def _rows(self, weights: Weights) -> Float[Tensor, "S T V W"]:
        """What enters the block for each token at each place."""
        rows = weights["embed_tokens.weight"][:, :, None]
        if not overrides(self.model.encoding, "embed"):
            return rows.transpose(1, 2)
        everywhere = rows.expand(-1, -1, self.length, -1)
        return encoded(self.model.encoding, "embed", weights, everywhere)[0].transpose(1, 2)

    def _scores(
        self, weights: Weights, query: Float[Tensor, "S H T D"], key: Float[Tensor, "S H T V D"]
    ) -> Float[Tensor, "S L V H L"]:
        """Scores of the mask's queries with every key, without bias; the second dimension is T where nothing turns."""
        if not overrides(self.model.encoding, "rotate"):
            return torch.einsum("shid,shjvd->sjvhi", query.expand(-1, -1, self.length, -1), key)
        query_turn, key_turn = self.turns or _turns(self.model.encoding, weights, query.shape[1], self.length)
        query = torch.einsum("shid,shide->shie", query, query_turn.by)
        query = query + query_turn.offset
        # the query's side of a score, turned back to where the key stands
        seen = torch.einsum("shie,shjde->shjid", query, key_turn.by)
        scores = torch.einsum("shjid,shjvd->sjvhi", seen, key)
        return scores + torch.einsum("shie,shje->sjhi", query, key_turn.offset)[:, :, None]


def _turns(encoding: Encoding, weights: Weights, heads: int, length: int) -> tuple[Turn, Turn]:
    """What ``rotate`` does to queries and to keys, from what it does to zero and to the unit vectors."""
    like = weights["norm.weight"]
    width = like.shape[-1] // heads
    basis = torch.cat((like.new_zeros(1, width), torch.eye(width, dtype=like.dtype, device=like.device)))
    given = basis[None, :, None, None].expand(len(like), -1, heads, length, -1)
    query, key = encoded(encoding, "rotate", weights, given, given)
    return _turn(query), _turn(key)


def _turn(turned: Float[Tensor, "S E H L D"]) -> Turn:
    return Turn((turned[:, 1:] - turned[:, :1]).permute(0, 2, 3, 1, 4), turned[:, 0])


def _softmax(scores: Float[Tensor, "S B L R"]) -> Float[Tensor, "S B L R"]:
    """Over dimension 2; torch's own takes one element at a time there."""
    weights = (scores - scores.detach().amax(dim=2, keepdim=True)).exp()
    return weights / weights.sum(dim=2, keepdim=True)
