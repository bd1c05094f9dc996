"""The twin of ``capture`` without nnsight: the same readings through transformers' own attention registry.

It serves as an independent check of what nnsight reads, and as a way on where nnsight can't trace.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rcprobe.loaded import LoadedModel, evaluating
from rcprobe.probing.batch import Batch
from rcprobe.probing.captured import (
    Captured,
    log_softmax,
    model_inputs,
    negative_log_prob,
    read_call,
    stack,
    target_rows,
)
from rcprobe.probing.scores import CellScores


def capture_with_hooks(m: LoadedModel, batch: Batch, *, scores: bool = True) -> Captured:
    """What ``capture`` returns, read by wrapping the attention functions that the model looks up."""
    cells: list[CellScores] = []

    def read(args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if scores:
            cells.append(read_call(args, kwargs, batch))

    with evaluating(m.model), torch.no_grad(), _listening(read):
        logits = target_rows(m.model(**model_inputs(m.model, batch)).logits, batch)
    return Captured(logits=logits, **stack(cells, batch))


def gradient_with_hooks(m: LoadedModel, batch: Batch, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """What ``capture_gradient`` returns, by plain autograd."""
    with evaluating(m.model), torch.enable_grad():
        logits = target_rows(m.model(**model_inputs(m.model, batch)).logits, batch)
        loss = negative_log_prob(log_softmax(m, logits), batch).sum()
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))


@contextmanager
def _listening(read: Callable[[Sequence[Any], dict[str, Any]], None]) -> Iterator[None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    look_up = functions.get_interface

    def get_interface(*names: Any, **named: Any) -> Callable[..., Any]:
        attention = look_up(*names, **named)

        def listening(*args: Any, **kwargs: Any) -> Any:
            read(args, kwargs)
            return attention(*args, **kwargs)

        return listening

    functions.get_interface = get_interface
    try:
        yield
    finally:
        del functions.get_interface  # the class's own look-up shows again
