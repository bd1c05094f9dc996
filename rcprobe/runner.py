"""``run``: a model, a dataset, a report."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rcprobe.errors import TrainingError, UsageError
from rcprobe.facts import Dataset, Fact
from rcprobe.loaded import LoadedModel
from rcprobe.loading import load
from rcprobe.metrics import Metric
from rcprobe.plugins import registry
from rcprobe.probe import Probe, resolve_metrics
from rcprobe.probing.sizes import BatchSize
from rcprobe.probing.verify import verify_shift
from rcprobe.report import Report, SeedRun, build
from rcprobe.report.report import new_folder
from rcprobe.training import Checkpoint, TrainConfig
from rcprobe.training import train as train_model

PACKAGES = ("rcprobe", "torch", "transformers", "nnsight", "numpy", "scipy", "pandas")
Progress = Callable[[int, int], None]
Training = Callable[[LoadedModel, Sequence[Fact], TrainConfig, int, Progress | None], Iterator[Checkpoint]]


def run(
    model: str | Path | LoadedModel,
    dataset: str | Dataset | Sequence[Fact],
    *,
    metrics: Sequence[str | Metric] | None = None,
    train: TrainConfig | None = None,
    seeds: int = 1,
    limit: int | None = None,
    batch_size: BatchSize = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> Report:
    """Ask a model about a dataset's facts both ways and judge the signatures.

    ``model`` is a name, path or hub id for ``load``, or what ``load`` returned; ``dataset`` a registered name, a
    ``Dataset`` or facts. ``train`` trains it on forward statements first, probing along the way. With several
    ``seeds`` each starts from the model's factory, or, for a model that came with weights, from those weights;
    a trained model keeps the weights of the last probe when there is one seed, and gets its own back when there are
    several. ``limit`` takes the first facts only. ``out`` is a new folder for the results.
    Raises subclasses of ``RcprobeError``.
    """
    data = load_dataset(dataset) if isinstance(dataset, str) else _as_dataset(dataset)
    data = data.limited(limit)
    chosen = resolve_metrics(metrics)
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; use 1 or more")
    folder = new_folder(out) if out is not None else None
    m = model if isinstance(model, LoadedModel) else load(model)
    if seeds > 1 and train is None and m.factory is None:
        raise UsageError("several seeds of one set of weights, without training, would be the same run; use seeds=1")
    first = train.seed if train else 0
    weights = {k: v.clone() for k, v in m.model.state_dict().items()} if seeds > 1 and m.factory is None else None
    runs = []
    with _bar(progress) as advance:
        for seed in range(first, first + seeds):
            if weights is not None:
                m.model.load_state_dict(weights)
            one = m.replica(seed) if seeds > 1 and m.factory is not None else m
            runs.append(run_seed(one, data, chosen, train, seed, batch_size, advance(f"seed {seed}")))
    if weights is not None:
        m.model.load_state_dict(weights)
    report = summarise(m, data, chosen, runs, train=train)
    if folder is not None:
        report.save(folder)
    registry().notify("run_finished", report=report)
    return report


def run_seed(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    train: TrainConfig | None,
    seed: int,
    batch_size: BatchSize = "auto",
    progress: Progress | None = None,
    training: Training = train_model,
) -> SeedRun:
    """One seed: train if asked, probe at each stop. A training that diverges ends as the run's ``failure``.

    ``training`` is ``rcprobe.training.train``, or what yields the same stops with the same weights in the model.
    """
    probe = Probe(m, dataset, metrics, seed=seed, batch_size=batch_size)
    queries = [pair.reverse for pair in probe.pairs.get("swapped", [])]
    try:
        if train is None:
            if m.factory is None:
                verify_shift(m, queries)
            probe.step(0)
        else:
            for stop in training(m, dataset.facts, train, seed, progress):
                if stop.step == train.steps:
                    verify_shift(m, [pair.forward for pair in probe.pairs.get("swapped", [])])
                probe.step(stop.step, stop.loss)
    except TrainingError as error:
        return SeedRun(seed, tuple(probe.steps), str(error), m.fingerprint(), probe.batch_used)
    return SeedRun(seed, tuple(probe.steps), None, m.fingerprint(), probe.batch_used)


def summarise(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    runs: Sequence[SeedRun],
    *,
    train: TrainConfig | None,
) -> Report:
    """Judge seeds that were run, wherever they ran."""
    groups = next(iter(dataset.readings.values()), ())
    chance = 1 / (min(len(group) for group in groups) if groups else m.vocabulary)
    return build(
        dataset,
        metrics,
        runs,
        chance=chance,
        identities=m.adapter.identities(m.model),
        info=describe(m, dataset, metrics, runs, train),
    )


def describe(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    runs: Sequence[SeedRun],
    train: TrainConfig | None,
) -> dict[str, Any]:
    """How a run was made: what repeats it, and nothing of the machine's paths."""
    plugins = {(e.origin.distribution, e.origin.version) for e in registry().entries}
    drawn = "random weights, drawn from each seed" if len(runs) > 1 else "random weights, as loaded"
    start = "given weights" if m.factory is None else drawn
    return {
        "model": Path(m.source).name if Path(m.source).is_absolute() else m.source,
        "options": dict(m.options),
        "adapter": m.adapter.name,
        "objective": m.adapter.objective,
        "start": start,
        "parameters": sum(p.numel() for p in m.model.parameters()),
        "dataset": dataset.name,
        "facts": len(dataset.facts),
        "metrics": [metric.name for metric in metrics],
        "seeds": [run.seed for run in runs],
        "train": asdict(train) if train else None,
        "batch_size": min((run.batch_size for run in runs), default=0),
        "dtype": str(m.dtype).removeprefix("torch."),
        "device": m.device.type,
        "attention": getattr(m.config, "_attn_implementation", None),
        "revision": getattr(m.config, "_commit_hash", None),
        "plugins": dict(sorted(plugins)),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "threads": torch.get_num_threads(),
    }


def load_dataset(name: str, options: Mapping[str, Any] | None = None) -> Dataset:
    """A registered dataset by name. Raises ``UnknownNameError``; ``UsageError`` for an option it doesn't take."""
    make = registry().get("datasets", name)
    try:
        dataset = make(**(options or {}))
    except TypeError as error:
        raise UsageError(f"dataset {name!r}: {error}") from error
    if not isinstance(dataset, Dataset):
        raise UsageError(f"dataset {name!r} gave a {type(dataset).__name__}, not an rcprobe.Dataset")
    return dataset


def _as_dataset(facts: Dataset | Sequence[Fact]) -> Dataset:
    return facts if isinstance(facts, Dataset) else Dataset("facts", tuple(facts))


@contextmanager
def _bar(wanted: bool) -> Iterator[Callable[[str], Progress]]:
    """Progress bars on standard error, only where somebody watches: call it with a title for a new bar."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not (wanted and console.is_terminal)) as bar:

        def begin(title: str) -> Progress:
            task = bar.add_task(title, total=None)
            return lambda step, steps: bar.update(task, completed=step, total=steps)

        yield begin
