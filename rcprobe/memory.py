"""Where memory runs out."""

import torch

from rcprobe.errors import AdapterError


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch raises a plain ``RuntimeError``."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def too_large(source: str) -> AdapterError:
    """The error where memory runs out before a model's weights are in place."""
    return AdapterError(
        f"{source}: memory ran out while its weights were loaded; use dtype bfloat16 (half the size of float32), "
        'quantization_config= (8 or 4 bits), device_map="auto" (what doesn\'t fit goes elsewhere) or a larger device'
    )
