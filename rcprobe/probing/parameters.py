"""Which parameters gradients are taken of, and the parts, groups and layers they belong to."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError, UsageError

Which = Literal["trainable", "all"]
Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Part:
    """A parameter, or the ``index``-th of ``count`` equal parts of a fused one; layer None outside the layers.

    ``dense`` marks the weight under a low-rank adapter: it is frozen, and its gradient is what the adapter
    approximates. It doesn't count towards the whole.
    """

    name: str
    parameter: str
    group: str
    layer: int | None
    index: int
    count: int
    dense: bool = False


@dataclass(frozen=True)
class Choice:
    """The parameters whose gradients are asked for, the ``dense`` ones under adapters, and why the rest is left out."""

    named: Named
    dense: Named
    left_out: Mapping[str, str]


def parameter_parts(adapter: Adapter, names: Sequence[str], dense: Sequence[str] = ()) -> tuple[Part, ...]:
    """Parameters cut into the parts that the adapter's groups name. Raises ``AdapterError`` for one in no group."""
    parts = []
    for name in (*names, *dense):
        plain = _without_peft(name)
        group = next((group for pattern, group in adapter.groups.items() if re.search(pattern, plain)), None)
        if group is None:
            raise AdapterError(f"{adapter.name}: parameter {name!r} is in no group; add a pattern for it to 'groups'")
        layer = re.search(r"\.(\d+)\.", name)
        labels = (group,) if isinstance(group, str) else group
        if ".lora_A." in name:
            labels = ("+".join(labels),)  # what a fused weight's parts share can't be cut
        for i, label in enumerate(labels):
            title = name if len(labels) == 1 else f"{name}[{label}]"
            number = int(layer[1]) if layer else None
            parts.append(Part(title, name, label, number, i, len(labels), name in dense))
    return tuple(parts)


@contextmanager
def chosen(model: nn.Module, which: Which) -> Iterator[Choice]:
    """Choose parameters; ``all`` lets frozen ones take part for as long as it lasts."""
    left_out, frozen = {}, []
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            left_out[name] = "its values are offloaded"
        elif quantised(parameter):
            left_out[name] = "it is quantised"
        elif not parameter.requires_grad:
            left_out[name] = "it is frozen"
            frozen.append((name, parameter))
    dense = [(n, p) for n, p in frozen if n.endswith(".base_layer.weight")] if which == "trainable" else []
    read = frozen if which == "all" else dense
    left_out = {name: reason for name, reason in left_out.items() if name not in dict(read)}
    with thawed([p for _, p in frozen] if which == "all" else []):
        named = [(n, p) for n, p in model.named_parameters() if n not in left_out and n not in dict(dense)]
        if not named:
            raise UsageError("no parameter takes a gradient; use parameters='all' to include frozen ones")
        yield Choice(named, dense, left_out)


def output_axis(model: nn.Module, name: str) -> int:
    """The dimension of a parameter that runs over what comes out: 0, or 1 for a weight that is kept transposed."""
    from transformers.pytorch_utils import Conv1D

    path, _, attribute = name.rpartition(".")
    return int(attribute == "weight" and isinstance(model.get_submodule(path), Conv1D))


def quantised(parameter: nn.Parameter) -> bool:
    """Whether a parameter holds no plain numbers: whole ones (bitsandbytes), or a tensor of tensors (torchao)."""
    return not parameter.is_floating_point() or is_traceable_wrapper_subclass(parameter)


@contextmanager
def thawed(frozen: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let frozen parameters take gradients inside."""
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _without_peft(name: str) -> str:
    """A parameter's name as the family knows it: that of the weight which an adapter of peft stands for."""
    name = re.sub(r"^base_model\.model\.", "", name).replace(".base_layer.", ".")
    name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
    return re.sub(r"\.lora_\w+\.[^.]+(\.weight)?$", ".weight", name)
