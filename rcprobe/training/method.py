"""What of a model is trained: all of it, or low-rank adapters on frozen weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from rcprobe.errors import AdapterError, UsageError
from rcprobe.loaded import LoadedModel
from rcprobe.low_rank import has_low_rank, new_low_rank
from rcprobe.training.config import TrainConfig


@contextmanager
def adapted(m: LoadedModel, config: TrainConfig, seed: int, *, keep: bool) -> Iterator[None]:
    """The model as ``config.method`` trains it: with "lora" under fresh adapters, drawn from the seed.

    With ``keep`` it stays so after, unless an error ended it; else it is what it was. Raises ``AdapterError`` for
    ``targets`` that name nothing, ``UsageError`` for a model that has adapters already.
    """
    if config.method == "full":
        yield
        return
    if has_low_rank(m.model):
        raise UsageError(f"{m.source} has low-rank adapters already; method 'full' trains them, and nothing else")
    trainable = [p for p in m.model.parameters() if p.requires_grad]
    modules = m.adapter.lora_modules(m.model, config.targets)
    if not modules:
        raise AdapterError(f"{m.adapter.name}: this family declares no lora_targets; name modules in targets")
    m.replace_model(new_low_rank(m.model, modules, config.rank, config.alpha, seed))
    try:
        yield
    except BaseException:
        _release(m, trainable)
        raise
    if not keep:
        _release(m, trainable)


def _release(m: LoadedModel, trainable: list[nn.Parameter]) -> None:
    m.replace_model(m.model.unload())  # type: ignore[operator]
    for parameter in trainable:
        parameter.requires_grad_(True)
