"""Attention cells cut out of a forward pass: −inf stands where their score was, before the softmax.

Whatever a family's code looks like, its attention ends in torch's own attention or in a softmax over a square of
scores. The cut is made there, so that it is the same for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rcprobe.errors import CaptureError
from rcprobe.loaded import LoadedModel
from rcprobe.probing.batch import Batch
from rcprobe.probing.capture import attention_paths
from rcprobe.probing.watch import SOFTMAX, is_attention

Cells = Bool[Tensor, "B H L L"]


@dataclass(frozen=True)
class Cut:
    """The cells rows × tokens of one prompt, in one layer or in all (None), in one head or in all (None).

    Layers are numbered among those with softmax attention.
    """

    rows: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    layer: int | None = None
    head: int | None = None


class AttentionCut(TorchFunctionMode):
    """While it is entered, one forward pass over the batch runs with each prompt's own cut.

    Afterwards ``reached`` [B, N, H] says where a cell of the cut was there to be cut (the model's mask allowed it),
    and ``blind`` [B] which prompts had a row that was left with nothing to attend to: what they say means nothing.
    """

    def __init__(self, batch: Batch, cuts: Sequence[Cut]) -> None:
        super().__init__()
        prompts, length = batch.input_ids.shape
        device = batch.input_ids.device
        self.batch, self.cuts = batch, cuts
        self.cells = torch.zeros(prompts, length, length, dtype=torch.bool, device=device)
        for b, cut in enumerate(cuts):
            for row in cut.rows:
                self.cells[b, row, list(cut.tokens)] = True
        self.blind = torch.zeros(prompts, dtype=torch.bool, device=device)
        self._reached: list[Bool[Tensor, "B H"]] = []

    @property
    def reached(self) -> Bool[Tensor, "B N H"]:
        """Where the cut met a cell that the model's mask allows."""
        return torch.stack(self._reached, dim=1)

    def check(self, m: LoadedModel) -> None:
        """Raise ``CaptureError`` unless every attention of the model was seen."""
        expected = len(attention_paths(m.model)) or max(len(self._reached), 1)
        if len(self._reached) != expected:
            how = getattr(m.config, "_attn_implementation", "unknown")
            raise CaptureError(
                f"{m.adapter.name}: {len(self._reached)} of {expected} attention calls were seen, so none can be "
                f"knocked out (attention {how!r}); load the model with attn_implementation 'sdpa' or 'eager'"
            )

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func in SOFTMAX and is_attention(args, self.batch):
            scores = args[0]
            cut = self._here(scores.shape[1], scores > torch.finfo(scores.dtype).min / 2)
            return func(scores.masked_fill(cut, -torch.inf), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """torch's own attention, under a mask that has the cut in it."""
        if attn_mask is None:
            square = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
            attn_mask = square.tril() if is_causal else square
        heads = query.shape[1]
        mask = attn_mask.expand(len(query), heads, *attn_mask.shape[-2:])
        given = mask.dtype == torch.bool
        cut = self._here(heads, mask if given else mask > torch.finfo(mask.dtype).min / 2)
        mask = mask & ~cut if given else mask.masked_fill(cut, -torch.inf)
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p, False, scale=scale, enable_gqa=enable_gqa
        )

    def _here(self, heads: int, allowed: Cells) -> Cells:
        """What is cut out of the attention that runs now, the next one in the model's order."""
        layer = len(self._reached)
        chosen = torch.tensor(
            [[cut.layer in (None, layer) and cut.head in (None, h) for h in range(heads)] for cut in self.cuts],
            device=self.cells.device,
        )
        cut = self.cells[:, None] & chosen[:, :, None, None]
        self._reached.append((cut & allowed).flatten(2).any(dim=-1))
        left = (allowed & ~cut).any(dim=-1)
        self.blind |= (cut.any(dim=-1) & ~left).flatten(1).any(dim=-1)
        return cut
