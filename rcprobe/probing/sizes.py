"""How much goes through a model at once: as much as memory holds, less where it runs out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import torch

from rcprobe.errors import CaptureError, UsageError
from rcprobe.loaded import LoadedModel
from rcprobe.memory import out_of_memory

BatchSize = int | Literal["auto"]
MOST = 256  # prompts; more gain nothing
SHARE = 0.5  # of the memory that is free
UNKNOWN = 4 * 2**30  # bytes, where the system doesn't say what is free

Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve(m: LoadedModel, size: BatchSize, length: int, *, gradients: bool) -> int:
    """How many prompts of ``length`` tokens go through at once. Raises ``UsageError`` for a size below 1."""
    if size != "auto":
        if size < 1:
            raise UsageError(f"batch_size is {size}; use 1 or more, or 'auto'")
        return size
    fitting = SHARE * free_memory(m.device) / (length * bytes_a_token(m, gradients))
    return max(1, min(MOST, int(fitting)))


def bytes_a_token(m: LoadedModel, gradients: bool) -> int:
    """An estimate from the weights: what each matrix reads and gives, kept for a backward pass or not.

    With gradients, outputs are kept by autograd, for the products, as gradients, and once more laid out anew.
    """
    head = m.model.get_output_embeddings()  # type: ignore[operator]
    outside = {id(p) for module in (head, m.model.get_input_embeddings()) for p in module.parameters()}  # type: ignore[operator]
    widths = [sum(p.shape[-2:]) for p in m.model.parameters() if p.ndim >= 2 and id(p) not in outside]
    kept = 4 * sum(widths) if gradients else 4 * max(widths, default=0)
    return m.dtype.itemsize * (kept + 4 * int(m.vocabulary) // 16)  # about one position in sixteen is a target


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; on Linux, what caches hold can be had too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return UNKNOWN
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), UNKNOWN)


def worked_through(
    items: Sequence[Item], size: int, weight: Callable[[Item], int], work: Callable[[list[Item]], Result]
) -> Iterator[tuple[list[Item], Result, int]]:
    """Work on items in order, as many together as weigh ``size`` (one may weigh more): (items, result, size).

    Where memory runs out, the size is halved and the same items are tried again. Raises ``CaptureError`` where a
    single item is too much.
    """
    start = 0
    while start < len(items):
        group = _fill(islice(items, start, None), size, weight)
        try:
            result = work(group)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(group) == 1:
                raise CaptureError(
                    f"memory ran out with {weight(group[0])} prompts at once, the least that can be worked on "
                    "together; use shorter prompts, dtype bfloat16, fewer layers or a device with more memory"
                ) from error
            size = max(1, min(size, sum(map(weight, group))) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield group, result, size
        start += len(group)


def _fill(items: Iterable[Item], size: int, weight: Callable[[Item], int]) -> list[Item]:
    group: list[Item] = []
    total = 0
    for item in items:
        total += weight(item)
        if group and total > size:
            break
        group.append(item)
    return group
