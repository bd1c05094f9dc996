"""``ProbeCallback``: the probe in anybody's own transformers ``Trainer``."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rcprobe.decoding import Decoding
from rcprobe.errors import UsageError
from rcprobe.facts import Dataset, Fact
from rcprobe.loaded import LoadedModel
from rcprobe.metrics import Metric
from rcprobe.probe import Probe
from rcprobe.probing.sizes import BatchSize
from rcprobe.report import Report


class ProbeCallback(TrainerCallback):
    """Puts facts to the model that a ``Trainer`` trains: before the first step, on the way, and after the last.

    ``m`` is what ``rcprobe.load`` made of the very module that is trained. ``every`` probes each so many optimiser
    steps, ``at`` names steps; ``metrics``, ``batch_size`` and ``decoding`` are those of ``Probe``. Readings are taken
    from the weights as they are kept, without ``bf16=True``'s rounding. The training is the same, number for number,
    with the callback and without it. Of several processes the first one probes.

    Raises ``UsageError`` for steps that can't be, and as training begins for another model than the trained one, for
    weights that are spread over processes, and for a second training.
    """

    def __init__(
        self,
        m: LoadedModel,
        facts: Dataset | Sequence[Fact],
        *,
        every: int | None = None,
        at: Sequence[int] = (),
        metrics: Sequence[str | Metric] | None = None,
        batch_size: BatchSize = "auto",
        decoding: Decoding | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise UsageError(f"every is {every}; use 1 or more, or leave it out to probe the first and the last step")
        if min(at, default=0) < 0:
            raise UsageError(f"at names step {min(at)}; steps are counted from 0")
        self.m, self.every, self.at = m, every, frozenset(at)
        self.probe = Probe(m, facts, metrics, batch_size=batch_size, decoding=decoding)
        m.wrapped  # noqa: B018 - nnsight's hold on forward must be there before accelerate's
        self._forward = m.model.__dict__.get("forward")

    def report(self) -> Report:
        """Judge the steps so far as one seed's run, the training's. Raises ``UsageError`` before the first."""
        if not self.probe.steps:
            raise UsageError("nothing was probed yet: training does it, in the first of its processes alone")
        return self.probe.report()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Probe the model before the first step, or where a training goes on."""
        self._check(args, state, others["model"])
        self.probe.seed = args.seed
        self._take(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Probe after an optimiser step that was asked for, and after the last."""
        step = state.global_step
        if (self.every and step % self.every == 0) or step in self.at or step >= state.max_steps:
            self._take(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **others: Any
    ) -> None:
        """Put the loss that is logged for a step to what was probed at it."""
        steps = self.probe.steps
        if steps and steps[-1].step == state.global_step and "loss" in (logs or {}):
            steps[-1] = replace(steps[-1], loss=float(logs["loss"]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Probe where a training was stopped early, unless it has put the weights of its best step in."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._take(state)

    def _check(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        trained, given, steps = type(model).__name__, type(self.m.model).__name__, self.probe.steps
        if model is not self.m.model:
            which = f"another {given}" if trained == given else f"a {given}"
            raise UsageError(
                f"Trainer trains a {trained}, and ProbeCallback was given {which} ({self.m.source}); "
                "give it rcprobe.load(trainer.model, adapter=…, tokenizer=…)"
            )
        if args.fsdp or args.deepspeed:
            raise UsageError(
                "ProbeCallback needs whole weights in one process, not FSDP's or DeepSpeed's parts of them"
            )
        if steps and state.global_step < steps[-1].step:
            raise UsageError(
                f"ProbeCallback has probed a training as far as step {steps[-1].step}, and this one begins at step "
                f"{state.global_step}; give it a callback of its own"
            )
        if max(self.at, default=0) > state.max_steps:
            raise UsageError(f"at names step {max(self.at)}, training has {state.max_steps}")

    def _take(self, state: TrainerState) -> None:
        """Probe the model as it is now, once a step, and leave no trace in the training."""
        steps = self.probe.steps
        if not state.is_world_process_zero or (steps and steps[-1].step == state.global_step):
            return
        with _same_randomness(self.m.device), self._own_forward():
            self.probe.step(state.global_step)

    @contextmanager
    def _own_forward(self) -> Iterator[None]:
        """The model's own forward inside, without the autocast that accelerate puts around it."""
        wrapped = self.m.model.__dict__.get("forward")
        self.m.model.__dict__["forward"] = self._forward
        try:
            yield
        finally:
            self.m.model.__dict__["forward"] = wrapped


@contextmanager
def _same_randomness(device: torch.device) -> Iterator[None]:
    """Whatever draws random numbers inside, they go on after as if it hadn't."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
