"""The processes that train together, one a card, as ``torchrun`` or ``accelerate launch`` start them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rcprobe.errors import UsageError

PATIENCE = timedelta(hours=12)  # the first process may choose a rate or write a page while the others wait


@dataclass(frozen=True)
class Processes:
    """This process's number, from 0, and how many there are. Each holds the whole model and does the same."""

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one speaks and writes."""
        return self.number == 0

    def share(self, tensors: Sequence[Tensor], parts: int) -> list[list[Tensor]]:
        """This process's statements of a batch, in so many parts: [part][tensor]."""
        mine = (tensor[self.number :: self.count].chunk(parts) for tensor in tensors)
        return [list(part) for part in zip(*mine, strict=True)]

    def add_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
        """Put the sum over processes in the place of each gradient, and of the loss."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # no token of this process's share used it
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
        dist.all_reduce(loss)

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.count > 1:
            dist.barrier()

    def told(self, text: str) -> str:
        """What the first process says, in every process."""
        if self.count == 1:
            return text
        said: list[str] = [text]
        dist.broadcast_object_list(said)
        return said[0]


def speaks() -> bool:
    """Whether this process is the first of those started together; unlike ``processes`` it waits for nobody."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> Processes:
    """Those that were started together; this one alone unless ``WORLD_SIZE`` says otherwise."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    card = int(os.environ.get("LOCAL_RANK", "0"))
    if card < torch.cuda.device_count():
        torch.cuda.set_device(card)
    return Processes(dist.get_rank(), count)


def enough(batch_size: int, parts: int, team: Processes) -> None:
    """Raise ``UsageError`` for a batch too small to be shared."""
    if batch_size < parts * team.count:
        raise UsageError(
            f"training: a batch of {batch_size} statements can't be shared by {team.count} processes in {parts} parts "
            "each; raise batch_size, or lower accumulate"
        )
