"""Training on forward statements, with stops where the model is probed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rcprobe.errors import TrainingError, UsageError
from rcprobe.facts import Fact
from rcprobe.loaded import LoadedModel
from rcprobe.memory import out_of_memory
from rcprobe.training.config import TrainConfig
from rcprobe.training.objectives import Statements, objective_of, weighted_loss
from rcprobe.training.processes import Processes, enough, processes
from rcprobe.training.state import Keeper, Randomness, State, pack, unpack
from rcprobe.training.statements import forward_statements, maskable_tokens


@dataclass(frozen=True)
class Checkpoint:
    """A stop of training: ``loss`` is the mean since the stop before (None at step 0)."""

    step: int
    loss: float | None

    def check(self, seed: int) -> None:
        """Raise ``TrainingError`` naming seed and step unless the loss is finite."""
        if self.loss is not None and not math.isfinite(self.loss):
            raise TrainingError(
                f"training diverged: the loss is {self.loss} by step {self.step}, seed {seed}; lower lr"
            )


def train(
    m: LoadedModel,
    facts: Sequence[Fact],
    config: TrainConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    state: State | None = None,
    keep: Callable[[int, State], None] | None = None,
) -> Iterator[Checkpoint]:
    """Train on the forward statements of trained facts, yielding at each step of ``config.probed()``.

    While a checkpoint is out, the model holds the averaged weights; they are also what it is left with. Statements
    are drawn with replacement. ``progress`` is told (step, of how many). ``keep`` is given (step, state) every
    ``KEEP_EVERY`` seconds or more; with such a ``state`` training goes on, with the checkpoints that were still to
    come, as if it had never stopped. Processes that were started together (``torchrun``) share each batch. Raises
    ``TrainingError`` naming seed and step when the loss isn't finite, ``DataError`` when there is nothing to train on,
    and ``UsageError`` where every weight is frozen, a batch is too small to be shared, or memory runs out.
    """
    objective, team = objective_of(m, config), processes()
    enough(config.batch_size, config.accumulate, team)
    ids, real = forward_statements(m, facts)
    may = maskable_tokens(m, facts, config, real)
    generator = torch.Generator().manual_seed(seed)
    randomness = Randomness(seed, m.device)
    parameters = trained_parameters(m)
    optimiser, average = adamw(parameters, config), Average(parameters, config.ema)
    keeper = Keeper(keep)
    losses: list[Tensor] = []
    done = 0
    if state is None:
        yield Checkpoint(0, None)
    else:
        averaged, kept = unpack(state, m.model, optimiser, generator, randomness)
        losses = [loss.to(m.device) for loss in kept]
        average.restore(averaged)
        done = average.updates
    for stop in (k for k in config.probed() if k >= max(done, 1)):  # a state kept at a stop gives that stop once more
        m.model.train()
        with randomness.own(), checkpointing(m, config.checkpointing), _in_memory(config):
            for step in range(done + 1, stop + 1):
                drawn = torch.randint(len(ids), (config.batch_size,), generator=generator)
                longest = int(real[drawn].sum(dim=1).max())
                batch = Statements(*(tensor[drawn, :longest].to(m.device) for tensor in (ids, real, may)))
                optimiser.param_groups[0]["lr"] = config.lr_at(step)
                optimiser.zero_grad()
                asked = (batch.ids, batch.real, *objective.draw(m, batch, generator))
                losses.append(_backward(m, config, team, parameters, asked))
                nn.utils.clip_grad_norm_(parameters, config.clip, foreach=True)
                optimiser.step()
                average.update()
                if progress is not None:
                    progress(step, config.steps)
                keeper.offer(step, lambda: pack(m.model, optimiser, generator, randomness, average.tensors(), losses))
        optimiser.zero_grad()  # gradients as large as the model would lie about while it is probed
        done = stop
        checkpoint = Checkpoint(stop, float(torch.stack(losses).mean()))
        checkpoint.check(seed)
        losses.clear()
        with average.held():
            yield checkpoint
    average.settle()
    m.model.eval()


def trained_parameters(m: LoadedModel) -> list[nn.Parameter]:
    """The parameters that training changes. Raises ``UsageError`` where all are frozen."""
    parameters = [p for p in m.model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(f"{m.source}: every weight is frozen (quantised ones are); train it with method 'lora'")
    return parameters


@contextmanager
def _in_memory(config: TrainConfig) -> Iterator[None]:
    """Say what takes less memory where it runs out inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UsageError(
            f"training: memory ran out with {config.batch_size} statements a batch in {config.accumulate} part"
            f"{'s'[: config.accumulate != 1]}; a smaller batch_size or more parts (accumulate) take less, and so do "
            "checkpointing, precision bfloat16 and method lora"
        ) from error


@contextmanager
def checkpointing(m: LoadedModel, wanted: bool) -> Iterator[None]:
    """Activations computed anew on the way back inside, where wanted. Raises ``UsageError`` for who can't."""
    model: Any = m.model
    if not wanted:
        yield
        return
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        raise UsageError(f"{m.source}: this model has no gradient checkpointing; leave it off") from error
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def _backward(
    m: LoadedModel, config: TrainConfig, team: Processes, parameters: Sequence[nn.Parameter], asked: Sequence[Tensor]
) -> Tensor:
    """The loss of what is asked (ids, real, shown, weight: B L each), its gradient added up in every part's turn."""
    total = torch.zeros((), device=m.device)
    for part in team.share(asked, config.accumulate):
        with torch.autocast(m.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = weighted_loss(m, *part)
        loss.backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    team.add_gradients(parameters, total)
    return total


def adamw(parameters: Sequence[Tensor], config: TrainConfig) -> torch.optim.AdamW:
    """The optimiser of a training, before warm-up."""
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=config.weight_decay, fused=fused)


class Average:
    """Exponential moving average of parameters, its decay ramping up as (1 + n)/(10 + n) (RADD)."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay, self.updates = list(parameters), decay, 0
        averaged = self.parameters if decay else []  # without a decay it would be a copy
        # in float32 at least: half precision would round a thousandth of a step away
        wide = (torch.promote_types(p.dtype, torch.float32) for p in averaged)
        self.shadow = [p.detach().to(dtype, copy=True) for p, dtype in zip(averaged, wide, strict=True)]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters as they are now."""
        self.updates += 1
        if not self.shadow:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [p.detach().to(mean.dtype) for p, mean in zip(self.parameters, self.shadow, strict=True)]
        torch._foreach_lerp_(self.shadow, now, 1 - decay)

    def values(self) -> list[Tensor]:
        """What is probed: the averages, or the parameters themselves without a decay."""
        return self.shadow or [p.detach() for p in self.parameters]

    def tensors(self) -> dict[str, Tensor]:
        """The averages by number, and how many updates made them."""
        return {"updates": torch.tensor(self.updates), **{str(i): value for i, value in enumerate(self.shadow)}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        self.updates = int(tensors["updates"])
        for i, value in enumerate(self.shadow):
            value.copy_(tensors[str(i)])

    @contextmanager
    def held(self) -> Iterator[None]:
        """The averaged weights inside, the raw ones again after."""
        raw = [p.detach().clone() for p, _ in zip(self.parameters, self.shadow, strict=False)]
        self.settle()
        try:
            yield
        finally:
            self._put(raw)

    def settle(self) -> None:
        """Leave the averaged weights in the model."""
        self._put(self.shadow)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=False):  # no values without a decay
            parameter.copy_(value)
