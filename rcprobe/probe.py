"""``Probe``: measure a model at the steps of anybody's training loop."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rcprobe.decoding import Decoding
from rcprobe.errors import DataError, UsageError
from rcprobe.facts import Dataset, Fact, Pairing, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.measured import Measured, PairTable, Step, per_fact
from rcprobe.metrics import Metric, resolve_metrics
from rcprobe.plugins import registry
from rcprobe.probing.continuation import GREEDY
from rcprobe.probing.engine import Observation, observe
from rcprobe.probing.sizes import BatchSize, resolve
from rcprobe.progress import Passes, Progress
from rcprobe.queries import encode
from rcprobe.report import Report, SeedRun
from rcprobe.statistics import weighted_mean
from rcprobe.summary import summarise
from rcprobe.training.processes import speaks


@dataclass(frozen=True)
class Ask:
    """What one pass is asked; ``whole`` where it sees every pair of its pairing."""

    pairing: Pairing
    pairs: list[QueryPair]
    table: PairTable
    metrics: list[Metric]
    whole: bool


class Probe:
    """Facts put to a model, once a ``step``; ``report`` judges what was seen.

    ``metrics`` are names or ``Metric`` objects; None takes every registered one that isn't only on request. Gradients
    are read, and attention is knocked out, for one template pair a fact and distance (the middle one); everything else
    is for all pairs. ``decoding``
    says how answers are written. ``progress`` hears of forward passes, done and expected.
    """

    def __init__(
        self,
        m: LoadedModel,
        facts: Dataset | Sequence[Fact],
        metrics: Sequence[str | Metric] | None = None,
        *,
        seed: int = 0,
        batch_size: BatchSize = "auto",
        decoding: Decoding | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.m, self.seed, self.batch_size, self.decoding = m, seed, batch_size, decoding
        self.dataset = facts if isinstance(facts, Dataset) else Dataset("facts", tuple(facts))
        self.metrics = resolve_metrics(metrics)
        self.steps: list[Step] = []
        self.batch_used = 0
        pairings = dict.fromkeys(pairing for metric in self.metrics for pairing in metric.pairings)
        self.pairs: dict[Pairing, list[QueryPair]] = {p: encode(m, self.dataset.facts, p) for p in pairings}
        _some_can_be_asked(m, self.pairs)
        self.asked = [ask for pairing, pairs in self.pairs.items() for ask in self._asks(pairing, pairs)]
        self._passes = Passes(m, 2 * len(self.asked), progress)

    def _asks(self, pairing: Pairing, pairs: list[QueryPair]) -> "list[Ask]":
        """One pass for everything where costly metrics see every pair, one more for theirs where they see fewer."""
        mine = [metric for metric in self.metrics if pairing in metric.pairings]
        deep = [metric for metric in mine if metric.costly]
        few = one_per_distance(pairs)
        if not deep or len(few) == len(pairs):
            return [Ask(pairing, pairs, PairTable.of(pairs), mine, True)]
        plain = [metric for metric in mine if metric not in deep]
        return [
            Ask(pairing, pairs, PairTable.of(pairs), plain, True),
            Ask(pairing, few, PairTable.of(few), deep, False),
        ]

    def step(self, step: int, loss: float | None = None) -> Step:
        """Measure every metric now, keep it under this step's number, and tell observers."""
        with self._passes.counted():
            found = self.measure(step, loss)
        self.steps.append(found)
        if speaks():  # a probe may be used in one process of several, and must not wait for the others
            registry().notify("step_finished", step=found)
        return found

    def report(self) -> Report:
        """Judge the steps so far as one seed's run. Raises ``UsageError`` before the first step."""
        if not self.steps:
            raise UsageError("this probe has measured nothing yet; call step first")
        run = SeedRun(self.seed, tuple(self.steps), None, self.m.fingerprint(), self.batch_used)
        return summarise(self.m, self.dataset, self.metrics, [run], train=None, decoding=self.decoding)

    def measure(self, step: int, loss: float | None = None) -> Step:
        """Measure every metric now, and neither keep it nor tell anybody."""
        measured: list[Measured] = []
        accuracy: dict[str, Mapping[str, tuple[float, float]]] = {}
        excluded: dict[str, Mapping[str, int]] = {}
        skipped: dict[str, str] = {}
        coverage: dict[str, Mapping[str, Mapping[str, int]]] = {}
        judged: dict[str, Mapping[str, tuple[int, int]]] = {}
        for ask in self.asked:
            pairing = ask.pairing
            reads = frozenset({"log_probs"} if ask.whole else ()).union(*(m.reads for m in ask.metrics))
            if "storage" in reads and self.m.adapter.ov_circuit is None:
                reads -= {"storage"}
            seen = observe(
                self.m,
                ask.pairs,
                read=reads,
                batch_size=self.batch_size,
                candidates=self.dataset.readings,
                continued=self.dataset.continued,
                decoding=self.decoding,
            )
            if seen.batch_size:
                self.batch_used = min(self.batch_used or seen.batch_size, seen.batch_size)
            if seen.gradients is not None and seen.gradients.rules:
                coverage[pairing] = seen.gradients.coverage()
            if ask.whole:
                excluded[pairing] = Counter(seen.excluded.values())
                right = {name: _by_fact(both, ask.table) for name, both in _right(seen).items()}
                accuracy[pairing] = {name: _means(by_fact) for name, by_fact in right.items()}
                judged[pairing] = {name: _counts(by_fact) for name, by_fact in right.items()}
            elif broken := Counter(reason for reason in seen.excluded.values() if "gradient" in reason):
                excluded[f"{pairing}, gradients"] = broken
            for metric in ask.metrics:
                reason = self._why_not(metric, seen)
                if reason is None:
                    try:
                        columns = metric.measure(seen)
                    except Exception as error:  # noqa: BLE001 - a metric's fault must not end a long run
                        reason = f"it raised {type(error).__name__}: {error}"
                    else:
                        measured.append(Measured(metric.name, pairing, self.seed, step, columns, ask.table))
                if reason is not None:
                    skipped[f"{metric.name} ({pairing})"] = reason
        return Step(self.seed, step, loss, tuple(measured), accuracy, excluded, skipped, coverage, judged)

    def sample(self, ask: Ask, size: int) -> "Probe":
        """A probe of one ask alone, and of so many of its pairs, evenly chosen from those that can be asked."""
        pairs = [pair for pair in ask.pairs if pair.unsupported is None] or ask.pairs
        few = [pairs[i * len(pairs) // size] for i in range(min(size, len(pairs)))]
        probe = copy(self)
        probe.steps, probe.asked = [], [replace(ask, pairs=few, table=PairTable.of(few))]
        return probe

    def batch(self, ask: Ask) -> int:
        """How many prompts one pass of an ask would take now."""
        queries = [query for pair in ask.pairs for query in (pair.forward, pair.reverse)]
        length = max((len(query.input_ids) for query in queries), default=0)
        gradients = any(metric.differentiates for metric in ask.metrics)
        return resolve(self.m, self.batch_size, max(length, 1), gradients=gradients)

    def settle(self) -> int:
        """How many prompts go through at once if it is to be one number: the least that any ask would take now."""
        return min(map(self.batch, self.asked))

    def _why_not(self, metric: Metric, seen: Observation) -> str | None:
        if len(seen.excluded) == len(seen.pairs):
            return f"none of {len(seen.pairs)} pairs could be asked ({_most(seen.excluded.values())})"
        if "storage" in metric.reads and self.m.adapter.ov_circuit is None:
            return f"adapter {self.m.adapter.name!r} declares no ov_circuit"
        if "scores" in metric.reads and seen.scores is not None and seen.scores.shape[2] == 0:
            return "the model has no layer whose attention scores can be read"
        return None


def _some_can_be_asked(m: LoadedModel, pairs: Mapping[Pairing, Sequence[QueryPair]]) -> None:
    """Raise ``DataError`` where the model can't be asked about a single fact, with the reasons."""
    every = [pair for some in pairs.values() for pair in some]
    reasons = [pair.unsupported for pair in every if pair.unsupported is not None]
    if every and len(reasons) == len(every):
        raise DataError(
            f"{m.source} can't be asked about any of these facts ({_most(reasons)}); take a model (or options of it) "
            "that can read these texts, or other texts"
        )


def _most(reasons: Iterable[str]) -> str:
    """The three commonest reasons with their counts: some name an entity, and would be as many as the facts."""
    counted = Counter(reasons).most_common()
    rest = len(counted) - 3
    said = [f"{count} pair{'s'[: count != 1]}: {reason}" for reason, count in counted[:3]]
    return "; ".join(said + [f"and {rest} more reason{'s'[: rest != 1]}"] * (rest > 0))


def one_per_distance(pairs: Sequence[QueryPair]) -> list[QueryPair]:
    """For each fact and (δ→, δ←), the middle one of its template pairs; pairs that can't be asked stay out."""
    by_distance: dict[tuple[int, ...], list[QueryPair]] = defaultdict(list)
    for pair in pairs:
        if pair.unsupported is None:
            by_distance[pair.fact, *pair.distances].append(pair)
    return [group[len(group) // 2] for group in by_distance.values()] or list(pairs)


def _right(seen: Observation) -> Mapping[str, Tensor]:
    """Right (1) or wrong (0) in each reading, [B, 2]."""
    if seen.readings is None:
        return {}
    judged = {name: right for name, (_, right) in seen.readings.items()}
    return judged if seen.continued is None else {**judged, GREEDY: seen.continued}


def _by_fact(right: Tensor, table: PairTable) -> NDArray[np.float64]:
    """Each trained fact's share of right answers, both ways [F, 2]; NaN for a fact that couldn't be asked."""
    kept, facts = table.trained, int(table.fact.max(initial=-1)) + 1
    values = right.cpu().numpy()[kept]
    return np.stack([per_fact(values[:, way], table.fact[kept], facts) for way in (0, 1)], axis=1)


def _means(by_fact: NDArray[np.float64]) -> tuple[float, float]:
    return weighted_mean(by_fact[:, 0]), weighted_mean(by_fact[:, 1])


def _counts(by_fact: NDArray[np.float64]) -> tuple[int, int]:
    """Of how many facts a pair was judged, each way."""
    forward, reverse = (~np.isnan(by_fact)).sum(axis=0).tolist()
    return forward, reverse
