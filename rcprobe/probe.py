"""``Probe``: measure a model at the steps of anybody's training loop."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from copy import copy

from rcprobe.errors import PluginError
from rcprobe.facts import Dataset, Fact, Pairing, QueryPair
from rcprobe.loaded import LoadedModel
from rcprobe.measured import Measured, PairTable, Step
from rcprobe.metrics import Metric
from rcprobe.plugins import registry
from rcprobe.probing.engine import Observation, observe
from rcprobe.progress import Passes, Progress
from rcprobe.queries import encode

Table = tuple[Pairing, bool]


class Probe:
    """Facts put to a model, once a ``step``; ``report`` judges what was seen.

    ``metrics`` are names or ``Metric`` objects; None takes every registered one. Gradients are read for one
    template pair a fact and distance (the middle one), everything else for all pairs. ``progress`` hears of forward
    passes, done and expected.
    """

    def __init__(
        self,
        m: LoadedModel,
        facts: Dataset | Sequence[Fact],
        metrics: Sequence[str | Metric] | None = None,
        *,
        seed: int = 0,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> None:
        self.m, self.seed, self.batch_size = m, seed, batch_size
        self.dataset = facts if isinstance(facts, Dataset) else Dataset("facts", tuple(facts))
        self.metrics = resolve_metrics(metrics)
        self.steps: list[Step] = []
        pairings = dict.fromkeys(pairing for metric in self.metrics for pairing in metric.pairings)
        self.pairs: dict[Pairing, list[QueryPair]] = {p: encode(m, self.dataset.facts, p) for p in pairings}
        self._tables: dict[Table, tuple[list[QueryPair], PairTable]] = {}
        for pairing, pairs in self.pairs.items():
            few = one_per_distance(pairs)
            self._tables[pairing, False] = (pairs, PairTable.of(pairs))
            self._tables[pairing, True] = (few, PairTable.of(few))
        expected = sum(2 * math.ceil(len(pairs) / batch_size) for pairs, _ in self._tables.values())
        self._passes = Passes(m.model, expected, progress)

    def step(self, step: int, loss: float | None = None) -> Step:
        """Measure every metric now, keep it under this step's number, and tell observers."""
        with self._passes.counted():
            found = self.measure(step, loss)
        self.steps.append(found)
        registry().notify("step_finished", step=found)
        return found

    def measure(self, step: int, loss: float | None = None) -> Step:
        """Measure every metric now, and neither keep it nor tell anybody."""
        measured: list[Measured] = []
        accuracy: dict[str, Mapping[str, tuple[float, float]]] = {}
        excluded: dict[str, Mapping[str, int]] = {}
        skipped: dict[str, str] = {}
        for (pairing, gradients), (pairs, table) in self._tables.items():
            wanted = self._wanted(pairing, gradients)
            if not wanted and gradients:
                continue
            reads = frozenset({"log_probs"} if not gradients else ()).union(*(m.reads for m in wanted))
            if "storage" in reads and self.m.adapter.ov_circuit is None:
                reads -= {"storage"}
            seen = observe(self.m, pairs, read=reads, batch_size=self.batch_size, candidates=self.dataset.readings)
            broken = Counter(reason for reason in seen.excluded.values() if "gradient" in reason)
            if broken:
                excluded[f"{pairing}, gradients"] = broken
            if not gradients:
                excluded[pairing] = Counter(seen.excluded.values())
                accuracy[pairing] = _accuracy(seen)
            for metric in wanted:
                reason = self._why_not(metric, seen)
                if reason is None:
                    try:
                        columns = metric.measure(seen)
                    except Exception as error:  # noqa: BLE001 - a metric's fault must not end a long run
                        reason = f"it raised {type(error).__name__}: {error}"
                    else:
                        measured.append(Measured(metric.name, pairing, self.seed, step, columns, table))
                if reason is not None:
                    skipped[f"{metric.name} ({pairing})"] = reason
        return Step(self.seed, step, loss, tuple(measured), accuracy, excluded, skipped)

    @property
    def tables(self) -> dict[Table, list[QueryPair]]:
        """The pairs of each reading that a step takes, by (pairing, whether it is the one of gradients)."""
        return {key: pairs for key, (pairs, _) in self._tables.items() if self._wanted(*key) or not key[1]}

    def sample(self, table: Table, size: int) -> "Probe":
        """A probe of one table alone, and of so many of its pairs, evenly chosen from those that can be asked."""
        pairs = [pair for pair in self._tables[table][0] if pair.unsupported is None] or self._tables[table][0]
        few = [pairs[i * len(pairs) // size] for i in range(min(size, len(pairs)))]
        probe = copy(self)
        probe.steps, probe._tables = [], {table: (few, PairTable.of(few))}
        return probe

    def _wanted(self, pairing: Pairing, gradients: bool) -> list[Metric]:
        return [m for m in self.metrics if pairing in m.pairings and ("gradients" in m.reads) == gradients]

    def _why_not(self, metric: Metric, seen: Observation) -> str | None:
        if len(seen.excluded) == len(seen.pairs):
            reason, count = Counter(seen.excluded.values()).most_common(1)[0]
            return f"none of {len(seen.pairs)} pairs could be asked ({count}: {reason})"
        if "storage" in metric.reads and self.m.adapter.ov_circuit is None:
            return f"adapter {self.m.adapter.name!r} declares no ov_circuit"
        if "scores" in metric.reads and seen.scores is not None and seen.scores.shape[2] == 0:
            return "the model has no layer whose attention scores can be read"
        return None


def resolve_metrics(metrics: Sequence[str | Metric] | None) -> list[Metric]:
    """Names → metrics, every registered one for None. Raises ``UnknownNameError``."""
    if metrics is None:
        return registered_metrics()
    return [registry().checked("metrics", metric, Metric) if isinstance(metric, str) else metric for metric in metrics]


def registered_metrics() -> list[Metric]:
    """Every registered metric; one that can't be imported is laid at its plugin's door and left out."""
    found = []
    for name in registry().names("metrics"):
        try:
            found.append(registry().checked("metrics", name, Metric))
        except PluginError as error:
            registry().blame(registry().entry("metrics", name).origin, str(error))
    return found


def one_per_distance(pairs: Sequence[QueryPair]) -> list[QueryPair]:
    """For each fact and (δ→, δ←), the middle one of its template pairs; pairs that can't be asked stay out."""
    by_distance: dict[tuple[int, ...], list[QueryPair]] = defaultdict(list)
    for pair in pairs:
        if pair.unsupported is None:
            by_distance[pair.fact, *pair.distances].append(pair)
    return [group[len(group) // 2] for group in by_distance.values()] or list(pairs)


def _accuracy(seen: Observation) -> Mapping[str, tuple[float, float]]:
    if seen.readings is None:
        return {}
    return {
        name: (float(right[:, 0].nanmean()), float(right[:, 1].nanmean())) for name, (_, right) in seen.readings.items()
    }
