"""Cells of an experiment: tiny models that differ in one thing, trained over seeds, and what is read of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from rcprobe.errors import TrainingError
from rcprobe.facts import Dataset
from rcprobe.loaded import LoadedModel
from rcprobe.loading import load
from rcprobe.measured import PairTable
from rcprobe.probe import one_per_distance
from rcprobe.probing.engine import Observation, observe
from rcprobe.progress import Progress
from rcprobe.queries import encode
from rcprobe.runner import load_dataset
from rcprobe.statistics import score_correlation
from rcprobe.training import Checkpoint, TrainConfig
from rcprobe_plugins.studies.fast_trainer import Recording, record
from rcprobe_plugins.studies.jobs import workers

LETTER, FULL = "52 letters", "full vocabulary"
ALL_READS = frozenset({"scores", "log_probs", "gradients", "storage"})


@dataclass(frozen=True)
class Size:
    """How big an experiment is.

    ``workers`` are processes; 1 trains in this one. ``progress`` hears of trained cells.
    """

    length: int = 10
    width: int = 64
    seeds: int = 8
    workers: int = 1
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=5000))
    progress: Progress | None = None

    def letters(self) -> Dataset:
        """The controlled task at this length."""
        return load_dataset("letters", {"length": self.length})


QUICK = Size(length=6, width=32, seeds=3, train=TrainConfig(steps=1500, lr=3e-3))


@dataclass(frozen=True)
class Cell:
    """A model to train: RADD with ``options``."""

    label: str
    options: Mapping[str, Any]
    train: TrainConfig


Trained = tuple[Cell, int, LoadedModel, Checkpoint]


def trained(cells: Sequence[Cell], size: Size, data: Dataset) -> Iterator[Trained]:
    """Train every cell over the seeds, and give each model at each probed step (cell, seed, model, stop).

    Raises ``TrainingError`` naming the cell and the seed whose loss isn't finite.
    """
    recorded = _recorded(cells, replace(size, progress=None), data)  # workers take no callback
    for number, (cell, recordings) in enumerate(zip(cells, recorded, strict=True)):
        if size.progress is not None:
            size.progress(number, len(cells))
        for seed, recording in enumerate(recordings):
            m = _model(cell, size, seed)
            try:
                for stop in recording.replay(m, data.facts, cell.train, seed):
                    yield cell, seed, m, stop
            except TrainingError as error:
                raise TrainingError(f"{cell.label}: {error}") from error
    if size.progress is not None:
        size.progress(1, 1)


def table(
    cells: Sequence[Cell],
    size: Size,
    data: Dataset,
    read: Callable[[LoadedModel, Dataset], Mapping[str, float]],
    every: bool = False,
) -> pd.DataFrame:
    """What ``read`` gives of every trained model, and with ``every`` at each probed step: one row each."""
    rows = [
        {"cell": cell.label, "seed": seed, "step": stop.step, **read(m, data)}
        for cell, seed, m, stop in trained(cells, size, data)
        if every or stop.step == cell.train.steps
    ]
    return pd.DataFrame(rows)


def outcomes(m: LoadedModel, data: Dataset) -> dict[str, float]:
    """Accuracy over the full vocabulary and P(right letter | a letter), both ways, over every placement."""
    return _outcomes(observe(m, encode(m, data.facts), read={"log_probs"}, candidates=data.readings))


def signatures(m: LoadedModel, data: Dataset) -> dict[str, float]:
    """The outcomes, and each signature with its controls: storage, routing, and the gradients' label × evidence 2 × 2.

    Gradients are of one template pair a fact and distance.
    """
    few = one_per_distance(encode(m, data.facts))
    seen = observe(m, few, read=ALL_READS, candidates=data.readings)
    assert seen.gradients is not None
    assert seen.storage is not None
    assert seen.storage_mismatched is not None
    found = {
        "storage": float((seen.storage - seen.storage_mismatched).mean()),
        "routing": routing(seen),
        "matched": float(seen.gradients.cosine().nanmean()),
        **{kind: float(seen.gradients.control_cosine(kind).nanmean()) for kind in ("same_target", "other_target")},
        "other_fact": float(seen.gradients.control_cosine("other_fact").nanmean()),
    }
    return {**outcomes(m, data), **found, "dynamics": found["matched"] - found["same_target"]}


def routing(seen: Observation, layer: slice = slice(None)) -> float:
    """The pooled correlation of forward with reverse scores over facts, in some layers."""
    assert seen.scores is not None
    forward, reverse = (seen.scores[:, way, layer].flatten(1).numpy() for way in (0, 1))
    of = PairTable.of(seen.pairs)
    return score_correlation(forward, reverse, of.group, of.stratum, of.fact).pooled


def _outcomes(seen: Observation) -> dict[str, float]:
    assert seen.readings is not None
    right, letter = seen.readings[FULL][1], seen.readings[LETTER][0].exp()
    return {
        f"{way} {what}": float(values[:, n].nanmean())
        for what, values in (("accuracy", right), ("P", letter))
        for n, way in enumerate(("forward", "reverse"))
    }


def _model(cell: Cell, size: Size, seed: int) -> LoadedModel:
    return load("radd", options={"width": size.width, "max_length": 2 * size.length, **cell.options}, seed=seed)


def _recorded(cells: Sequence[Cell], size: Size, data: Dataset) -> Iterator[list[Recording]]:
    if size.workers == 1:
        yield from (_record(cell, size, data) for cell in cells)
        return
    with workers(size.workers) as pool:
        yield from pool.map(_record, cells, [size] * len(cells), [data] * len(cells))


def _record(cell: Cell, size: Size, data: Dataset) -> list[Recording]:
    seeds = range(size.seeds)
    return record([_model(cell, size, seed) for seed in seeds], data.facts, cell.train, list(seeds))
