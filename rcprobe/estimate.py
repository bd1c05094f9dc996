"""What a run will cost, before it is run."""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from rcprobe.facts import Dataset
from rcprobe.loaded import LoadedModel
from rcprobe.metrics import Metric
from rcprobe.probe import Ask, Probe
from rcprobe.probing.knockout import attention_size, passes
from rcprobe.probing.sizes import BatchSize
from rcprobe.training import TrainConfig, train
from rcprobe.training.method import adapted

FEW, MORE = 4, 32  # pairs in the two readings that are timed
LONG = 2.0  # seconds: a reading of few pairs that takes longer is timed alone
STEPS = 4  # training steps at most; the first isn't counted
HOW = (
    f"readings of {FEW} and of {MORE} pairs timed, a batch and a pair each taken to cost the same every time; "
    "prompts of a knockout counted and taken to cost what others do; "
    "a few training steps timed; loading and the statistics at the end not counted"
)


@dataclass(frozen=True)
class Cost:
    """What a run asks for.

    ``pairs``: pairing → (pairs that can be asked, all pairs); ``batches`` of one probe, about, and ``knockouts`` of
    those (prompts of a sweep over layers and heads, in batches); ``probes`` and training ``steps`` over all seeds;
    ``seconds`` in all; ``memory`` in bytes at the peak.
    """

    facts: int
    pairs: dict[str, tuple[int, int]]
    batches: int
    knockouts: int
    probes: int
    steps: int
    parameters: int
    seconds: float
    memory: int
    how: str = HOW

    def times(self, revisions: int) -> "Cost":
        """The cost of as many models, one after the other, as a history has revisions."""
        return replace(self, probes=revisions * self.probes, seconds=revisions * self.seconds)


def estimate(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    training: TrainConfig | None,
    seeds: int,
    batch_size: BatchSize = "auto",
) -> Cost:
    """Count what a run will do, and time a little of it. The model keeps its weights.

    Raises what the run would raise before its first number.
    """
    with adapted(m, training, training.seed, keep=False) if training else nullcontext():
        return _estimate(m, dataset, metrics, training, seeds, batch_size)


def _estimate(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    training: TrainConfig | None,
    seeds: int,
    batch_size: BatchSize,
) -> Cost:
    probe = Probe(m, dataset, metrics, batch_size=batch_size)
    probes = seeds * (len(training.probed()) if training else 1)
    steps = (seeds + len(training.lr_grid)) * training.steps if training else 0
    step_seconds = _step_seconds(m, dataset, training) if training else 0.0
    batches, knockouts, probe_seconds, more_memory = 0, 0, 0.0, 0.0
    for ask in probe.asked:
        together = max(probe.batch(ask) // 2, 1)  # pairs: a batch counts prompts
        count = math.ceil(len(ask.pairs) / together)
        timed = [metric for metric in ask.metrics if not metric.knocks_out]
        (per_batch, per_pair), growth = _fit(m, probe, replace(ask, metrics=timed, whole=ask.whole or not timed))
        batches += count
        probe_seconds += count * per_batch + len(ask.pairs) * per_pair
        more_memory = max(more_memory, growth * (min(len(ask.pairs), together) - MORE))
        if len(timed) < len(ask.metrics):
            count, seconds = _knockout(m, probe, ask, together)
            knockouts, probe_seconds = knockouts + count, probe_seconds + seconds
    return Cost(
        facts=len(dataset.facts),
        pairs={name: (sum(p.unsupported is None for p in pairs), len(pairs)) for name, pairs in probe.pairs.items()},
        batches=batches + knockouts,
        knockouts=knockouts,
        probes=probes,
        steps=steps,
        parameters=sum(p.numel() for p in m.model.parameters()),
        seconds=probes * probe_seconds + steps * step_seconds,
        memory=_peak(m) + int(more_memory),
    )


def _knockout(m: LoadedModel, probe: Probe, ask: Ask, together: int) -> tuple[int, float]:
    """Batches and seconds of an ask's sweep: each of its prompts costs what a prompt of a plain reading does."""
    asked = [pair for pair in ask.pairs if pair.unsupported is None]
    if not asked:
        return 0, 0.0
    prompts = passes(attention_size(m, asked[0].forward))
    (per_batch, per_pair), _ = _fit(m, probe, replace(ask, pairs=asked, metrics=[], whole=True))
    count = math.ceil(len(asked) * prompts / together)
    return count, count * per_batch + len(asked) * prompts * per_pair


def _fit(m: LoadedModel, probe: Probe, ask: Ask) -> tuple[tuple[float, float], float]:
    """Seconds for each batch and each pair of an ask, and bytes for each pair."""

    def read(n: int) -> None:
        probe.sample(ask, n).measure(0)

    few, more = min(FEW, len(ask.pairs)), min(MORE, len(ask.pairs))
    read(few)  # what is done once, is done now
    first = _timed(read, few)
    low = _peak(m)
    if first > LONG or more == few:
        return (0.0, first / max(few, 1)), 0.0
    second = _timed(read, more)
    per_pair = max((second - first) / (more - few), 0.0)
    return (max(first - few * per_pair, 0.0), per_pair), (_peak(m) - low) / (more - few)


def _step_seconds(m: LoadedModel, dataset: Dataset, training: TrainConfig) -> float:
    """Seconds of a training step: the median of a few, after which the model is as it was."""
    trained = [p for p in m.model.parameters() if p.requires_grad]
    kept = [p.detach().cpu().clone() for p in trained]
    modes = {module: module.training for module in m.model.modules()}
    short = replace(training, steps=STEPS, probe_every=1, probe_at=())
    try:
        start = time.perf_counter()
        times = []
        for _ in train(m, dataset.facts, short, training.seed):
            _settle(m)
            now = time.perf_counter()
            times.append(now - start)
            start = now
            if sum(times) > LONG:
                break
        return sorted(times[2:] or times[-1:])[len(times[2:]) // 2]
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        for module, mode in modes.items():
            module.training = mode


def _timed(read: Callable[[int], None], size: int) -> float:
    start = time.perf_counter()
    read(size)
    return time.perf_counter() - start


def _settle(m: LoadedModel) -> None:
    if m.device.type == "cuda":
        torch.cuda.synchronize(m.device)


def _peak(m: LoadedModel) -> int:
    """The most memory so far, in bytes: the GPU's where the model is on one, else the process's."""
    if m.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(m.device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
