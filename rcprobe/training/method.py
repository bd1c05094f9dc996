"""What of a model is trained: all of it, or low-rank adapters on frozen weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rcprobe.errors import UsageError
from rcprobe.facts import Fact
from rcprobe.loaded import LoadedModel
from rcprobe.low_rank import has_low_rank, new_low_rank
from rcprobe.training.config import TrainConfig
from rcprobe.training.objectives import objective_of
from rcprobe.training.processes import enough, processes
from rcprobe.training.statements import forward_statements, maskable_tokens
from rcprobe.training.trainer import trained_parameters


@contextmanager
def adapted(m: LoadedModel, config: TrainConfig, seed: int, *, keep: bool) -> Iterator[None]:
    """The model as ``config.method`` trains it: with "lora" under fresh adapters, drawn from the seed.

    With ``keep`` it stays so after, unless an error ended it; else it is what it was. Raises ``UsageError`` for
    ``targets`` that name nothing or a model that has adapters already, or a family without any.
    """
    if config.method == "full":
        yield
        return
    if has_low_rank(m.model):
        raise UsageError(
            f"{m.source} has low-rank adapters already; method 'full' trains these, m.model.unload() takes them off"
        )
    trainable = [p for p in m.model.parameters() if p.requires_grad]
    modules = m.adapter.lora_modules(m.model, config.targets)
    if not modules:
        raise UsageError(
            f"{m.adapter.name}: this family declares no lora_targets; name linear modules in TrainConfig's targets "
            "(in a file for --config: [train], targets)"
        )
    m.replace_model(new_low_rank(m.model, modules, config.rank, config.alpha, seed))
    try:
        yield
    except BaseException:
        _release(m, trainable)
        raise
    if not keep:
        _release(m, trainable)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what a training changes: the weights that take gradients, and the buffers."""
    named = [*((n, p) for n, p in model.named_parameters() if p.requires_grad), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


@torch.no_grad()
def put_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the copies back."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state:
            tensor.copy_(state[name])


def check_training(m: LoadedModel, facts: Sequence[Fact], config: TrainConfig) -> None:
    """Raise what training would raise before its first step, so that nothing is begun in vain.

    ``UsageError`` also for full training of weights in half precision: most steps are smaller than their rounding.
    """
    objective_of(m, config)
    enough(config.batch_size, config.accumulate, processes())
    _, real = forward_statements(m, facts)
    maskable_tokens(m, facts, config, real)
    if config.checkpointing and not getattr(m.model, "supports_gradient_checkpointing", False):
        raise UsageError(f"{m.source}: this model has no gradient checkpointing; leave it off")
    if config.method == "lora":
        with adapted(m, config, config.seed, keep=False):
            return
    if {p.dtype for p in trained_parameters(m)} & {torch.bfloat16, torch.float16}:
        raise UsageError(
            f"{m.source}: in half precision most steps of full training are smaller than the rounding of the weights; "
            "load it with dtype float32 (precision = 'bfloat16' still computes in half), or train with method 'lora'"
        )


def _release(m: LoadedModel, trainable: list[nn.Parameter]) -> None:
    m.replace_model(m.model.unload())  # type: ignore[operator]
    for parameter in trainable:
        parameter.requires_grad_(True)
