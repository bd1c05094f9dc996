"""Which parameters gradients are taken of, and the parts, groups and layers they belong to."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import nn

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError, UsageError

Which = Literal["trainable", "all"]
Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Part:
    """A parameter, or the ``index``-th of ``count`` equal parts of a fused one; layer None outside the layers."""

    name: str
    parameter: str
    group: str
    layer: int | None
    index: int
    count: int


def parameter_parts(adapter: Adapter, names: Sequence[str]) -> tuple[Part, ...]:
    """Parameters cut into the parts that the adapter's groups name. Raises ``AdapterError`` for one in no group."""
    parts = []
    for name in names:
        group = next((group for pattern, group in adapter.groups.items() if re.search(pattern, name)), None)
        if group is None:
            raise AdapterError(f"{adapter.name}: parameter {name!r} is in no group; add a pattern for it to 'groups'")
        layer = re.search(r"\.(\d+)\.", name)
        labels = (group,) if isinstance(group, str) else group
        for i, label in enumerate(labels):
            title = name if len(labels) == 1 else f"{name}[{label}]"
            parts.append(Part(title, name, label, int(layer[1]) if layer else None, i, len(labels)))
    return tuple(parts)


@contextmanager
def chosen(model: nn.Module, which: Which) -> Iterator[Named]:
    """The parameters whose gradients are asked for; ``all`` lets frozen ones take part for as long as it lasts."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if which == "all":
        for parameter in frozen:
            parameter.requires_grad_(True)
    try:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise UsageError("no parameter takes a gradient; use parameters='all' to include frozen ones")
        yield named
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
