"""What a run keeps: measured columns, and the pairs their rows belong to. Plain numpy, no model in sight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rcprobe.facts import Pairing, QueryPair

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairTable:
    """B pairs as columns of numbers. Distances and strata are −1 and 0 where a pair can't be asked."""

    fact: Ints
    template: Ints
    cluster: Ints
    stratum: Ints
    delta_forward: Ints
    delta_reverse: Ints
    trained: NDArray[np.bool_]

    @classmethod
    def of(cls, pairs: Sequence[QueryPair]) -> "PairTable":
        """The table of query pairs, in their order."""
        strata: dict[tuple[int, ...], int] = {}
        asked = [pair.unsupported is None for pair in pairs]
        distances = [p.distances if ok else (-1, -1) for p, ok in zip(pairs, asked, strict=True)]
        numbers = [
            strata.setdefault(p.stratum, len(strata) + 1) if ok else 0 for p, ok in zip(pairs, asked, strict=True)
        ]
        return cls(
            np.array([pair.fact for pair in pairs], dtype=np.int64),
            np.array([pair.template for pair in pairs], dtype=np.int64),
            np.array([pair.cluster for pair in pairs], dtype=np.int64),
            np.array(numbers, dtype=np.int64),
            np.array([forward for forward, _ in distances], dtype=np.int64),
            np.array([reverse for _, reverse in distances], dtype=np.int64),
            np.array([pair.trained for pair in pairs], dtype=np.bool_),
        )

    @cached_property
    def group(self) -> Ints:
        """One number for each (δ→, δ←)."""
        both = np.stack([self.delta_forward, self.delta_reverse], axis=1)
        return np.unique(both, axis=0, return_inverse=True)[1].astype(np.int64).reshape(-1)


@dataclass(frozen=True)
class Measured:
    """A metric's columns at one step of one seed: float64 [B] or [B, N, H], NaN where undefined."""

    metric: str
    pairing: Pairing
    seed: int
    step: int
    columns: Mapping[str, NDArray[np.float64]]
    table: PairTable


@dataclass(frozen=True)
class Step:
    """One probed step of one seed.

    ``accuracy`` maps pairing → reading → (forward, reverse) shares of right answers, ``judged`` to how many facts they
    are over; ``excluded`` maps a reason →
    how many pairs it took out, by pairing. ``coverage`` maps pairing → of which parameters gradients were ``read``
    (rule → how many), which were ``left out`` (reason → how many), and in how many pairs a part's cosine is
    ``undefined``.
    """

    seed: int
    step: int
    loss: float | None
    measured: tuple[Measured, ...]
    accuracy: Mapping[str, Mapping[str, tuple[float, float]]]
    excluded: Mapping[str, Mapping[str, int]]
    skipped: Mapping[str, str]
    coverage: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    judged: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)


def per_fact(values: Floats, fact: Ints, facts: int) -> Floats:
    """The mean of each fact's defined values, float64 [facts]; [B, N, H] columns are averaged over layers and heads."""
    flat = values.reshape(len(values), -1)
    defined = ~np.isnan(flat)
    count = np.bincount(fact, weights=defined.sum(axis=1), minlength=facts)
    total = np.bincount(fact, weights=np.where(defined, flat, 0.0).sum(axis=1), minlength=facts)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
