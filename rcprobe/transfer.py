"""Which facts transfer: does a fact's signature at a step say whether it is answered in reverse at the end?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from rcprobe.facts import Dataset
from rcprobe.measured import Measured, Step, per_fact
from rcprobe.signatures import MINIMUM
from rcprobe.statistics import ZERO_VARIANCE, holm, over_seeds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Decision = Literal["predicts", "predicts the opposite", "not decided", "can't be asked"]
FULL = "full vocabulary"
ANSWERED, LOG_P = "right in reverse", "log p in reverse"
RESAMPLES, PERMUTATIONS = 300, 300
FEWEST = 8  # facts of a group of alike ones


@dataclass(frozen=True)
class Prediction:
    """A correlation over facts: a ``signature`` at a step with the ``outcome`` at the last step.

    ``r`` is point-biserial where the outcome is right or wrong, Spearman's where it is log p, inside groups of facts
    with alike queries. ``p`` is two-sided, ``adjusted`` by Holm over the signatures of the step. ``n`` replicates (of
    ``unit``) gave a value. NaN where it can't be asked, and ``why``.
    """

    outcome: str
    signature: str
    step: int
    r: float
    low: float
    high: float
    p: float
    adjusted: float
    n: int
    unit: str
    decision: Decision
    why: str = ""


@dataclass(frozen=True)
class _Table:
    """Facts' values in one seed: ``outcome`` [F], ``signatures`` [F, C] for C signatures at steps, ``names`` theirs."""

    outcome: Floats
    signatures: Floats
    names: tuple[tuple[str, int], ...]


def predictions(dataset: Dataset, steps: Sequence[Sequence[Step]]) -> tuple[Prediction, ...]:
    """Each outcome with each signature at each step; ``steps`` are those of each seed that finished.

    Nothing where an outcome or every signature went unmeasured. Held-out facts don't count.
    """
    if not steps:
        return ()
    found: list[Prediction] = []
    for outcome in (ANSWERED, LOG_P):
        ends = [_outcome(dataset, seed[-1], outcome) for seed in steps]
        tables = [_table(dataset, seed, end) for seed, end in zip(steps, ends, strict=True) if end is not None]
        tables = _alike(tables)
        if len(tables) == len(steps) and tables[0].names:
            swapped = [m for m in steps[0][-1].measured if m.pairing == "swapped"]
            pairs = max(swapped, key=lambda m: len(m.table.fact))
            found += _predict(dataset, outcome, tables, pairs)
    return tuple(found)


def _alike(tables: Sequence[_Table]) -> list[_Table]:
    """Tables with the same columns in the same order; NaN where a seed lacks one (a metric failed in it)."""
    names = tuple(sorted({name for table in tables for name in table.names}, key=lambda name: name[1]))
    found = []
    for table in tables:
        values = np.full((len(table.outcome), len(names)), np.nan)
        for column, name in enumerate(table.names):
            values[:, names.index(name)] = table.signatures[:, column]
        found.append(_Table(table.outcome, values, names))
    return found


def _outcome(dataset: Dataset, step: Step, outcome: str) -> Floats | None:
    """Each fact's outcome [F]; right in at least half of its askings counts as answered."""
    reading = next(iter(dataset.readings), FULL)
    column = f"reverse, {reading}" if outcome == ANSWERED else "reverse"
    wanted = {column} if outcome == ANSWERED else {"reverse", "alternatives"}
    for measured in step.measured:
        if measured.pairing == "swapped" and wanted <= set(measured.columns) and _fits(measured, outcome):
            values = _facts(measured, measured.columns[column], len(dataset.facts))
            return np.where(np.isnan(values), np.nan, values >= 0.5) if outcome == ANSWERED else values
    return None


def _fits(measured: Measured, outcome: str) -> bool:
    """Shares of right answers go from 0 to 1; log-probabilities of a reading bear the same names."""
    return outcome == LOG_P or "alternatives" not in measured.columns


def _table(dataset: Dataset, steps: Sequence[Step], outcome: Floats) -> _Table:
    columns: dict[tuple[str, int], Floats] = {}
    for step in steps:
        for name, (needed, value) in SIGNATURES.items():
            asked = sorted(step.measured, key=lambda m: m.pairing != "same_target")  # the theory's, where there is one
            measured = next((m for m in asked if needed <= set(m.columns)), None)
            if measured is not None:
                columns[name, step.step] = _facts(measured, value(measured), len(dataset.facts))
    values = np.stack(list(columns.values()), axis=1) if columns else np.empty((len(outcome), 0))
    return _Table(outcome, values, tuple(columns))


def _facts(measured: Measured, values: Floats, size: int) -> Floats:
    kept = measured.table.trained
    return per_fact(values[kept], measured.table.fact[kept], size)


def _cosine(measured: Measured) -> Floats:
    return np.asarray(measured.columns["matched"] - measured.columns["same_target"])


def _stored(measured: Measured) -> Floats:
    return np.asarray(measured.columns["stored"] - measured.columns["mismatched"])


def _product(measured: Measured) -> Floats:
    """Forward times reverse score, each less its stratum's mean and in units of its cell's spread: a pair's part in
    the correlation of scores."""
    _, stratum = np.unique(measured.table.stratum, return_inverse=True)
    sides = []
    for name in ("forward", "reverse"):
        values = measured.columns[name].reshape(len(stratum), -1)
        known = ~np.isnan(values)
        total, count = (np.zeros((stratum.max() + 1, values.shape[1])) for _ in range(2))
        np.add.at(total, stratum, np.where(known, values, 0.0))
        np.add.at(count, stratum, known)
        centred = values - (total / np.maximum(count, 1))[stratum]
        spread = np.sqrt(np.where(known, centred**2, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
        sides.append(centred / np.where(spread > 0, spread, np.nan))
    return np.asarray(sides[0] * sides[1])


SIGNATURES: dict[str, tuple[set[str], Callable[[Measured], Floats]]] = {
    "gradient cosine over control": ({"matched", "same_target"}, _cosine),
    "score product": ({"forward_log_weight", "reverse_log_weight"}, _product),
    "storage over mismatched": ({"stored", "mismatched"}, _stored),
}


def _predict(dataset: Dataset, outcome: str, tables: Sequence[_Table], pairs: Measured) -> list[Prediction]:
    defined = np.flatnonzero(~np.isnan(np.stack([t.outcome for t in tables])).any(axis=0))
    facts, group, cluster = _groups(pairs, len(dataset.facts), defined)
    sides = [(t.signatures[facts], t.outcome[facts]) for t in tables]
    if outcome == LOG_P:
        sides = [(_ranked(x, group), _ranked(y[:, None], group)[:, 0]) for x, y in sides]
    why = _one_sided(outcome, [y for _, y in sides], len(facts) < len(defined))
    if why or not len(facts):
        numbers = [(math.nan, math.nan, math.nan, math.nan, 0)] * len(tables[0].names)
    elif dataset.replicate == "seed":
        numbers = _over_seeds(sides, group)
    else:
        numbers = _over_facts(sides, group, cluster)
    made = []
    for (name, step), (r, low, high, p, n) in zip(tables[0].names, numbers, strict=True):
        unit = "seeds" if dataset.replicate == "seed" else "groups of facts"
        made.append(Prediction(outcome, name, step, r, low, high, p, math.nan, n, unit, "not decided", why))
    return _decided(made, MINIMUM[dataset.replicate])


def _groups(pairs: Measured, size: int, facts: Ints) -> tuple[Ints, Ints, Ints]:
    """Facts group by group, the number of each one's group of alike facts (equal strata throughout), and its cluster.

    Facts of groups too small are left out.
    """
    asked: list[set[int]] = [set() for _ in range(size)]
    cluster = np.zeros(size, dtype=np.int64)
    for fact, stratum, of in zip(pairs.table.fact, pairs.table.stratum, pairs.table.cluster, strict=True):
        asked[fact].add(int(stratum))
        cluster[fact] = of
    numbers: dict[frozenset[int], int] = {}
    group = np.array([numbers.setdefault(frozenset(asked[f]), len(numbers)) for f in facts], dtype=np.int64)
    large = np.bincount(group, minlength=1)[group] >= FEWEST
    order = np.argsort(group[large], kind="stable")
    kept = facts[large][order]
    return kept, group[large][order], cluster[kept]


def _one_sided(outcome: str, ends: Sequence[Floats], partly: bool) -> str:
    """Why there is nothing to foretell where all facts had the same outcome in every seed; else nothing.

    ``partly``: facts of small groups were left out before.
    """
    if outcome == ANSWERED and all(not len(y) or np.ptp(y) == 0 for y in ends):
        shares = {float(y.mean()) for y in ends if len(y)}
        known = {frozenset({0.0}): "no fact transfers", frozenset({1.0}): "all facts transfer"}
        said = known.get(frozenset(shares), "all facts of a seed transfer, or none does") if shares else ""
        return f"of the {len(ends[0])} facts in groups of {FEWEST} alike ones, {said}" if said and partly else said
    return ""


def _ranked(values: Floats, group: Ints) -> Floats:
    """Ranks within groups, 0 to 1, of each column [F, C]."""
    ranks = np.full_like(values, np.nan)
    for number in np.unique(group):
        inside = group == number
        ranks[inside] = rankdata(values[inside], axis=0, nan_policy="omit") / inside.sum()
    return ranks


def _r(x: Floats, y: Floats, group: Ints, weights: Floats | None = None) -> Floats:
    """Pearson's r of each column of x [F, C] with y [F], both freed of their groups' means: [C]; facts lie group by
    group. NaN without spread on either side.
    """
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    place = np.cumsum(np.diff(group, prepend=group[:1]) != 0)
    known = ~np.isnan(x)
    w = known if weights is None else known * weights[:, None]

    def centred(values: Floats) -> Floats:
        total, count = np.add.reduceat(w * values, starts), np.add.reduceat(w.astype(np.float64), starts)
        return np.asarray(values - (total / np.maximum(count, 1))[place])

    filled, spread = np.where(known, x, 0.0), np.broadcast_to(y[:, None], x.shape)
    dx, dy = centred(filled), centred(spread)
    xx, yy, xy = ((w * a * b).sum(axis=0) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    varies = (xx > ZERO_VARIANCE * (w * filled**2).sum(axis=0)) & (yy > ZERO_VARIANCE * (w * spread**2).sum(axis=0))
    scale = np.sqrt(np.where(varies, xx * yy, 1.0))
    return np.where(varies, np.clip(xy / scale, -1.0, 1.0), math.nan)


def _over_seeds(sides: Sequence[tuple[Floats, Floats]], group: Ints) -> list[tuple[float, float, float, float, int]]:
    """Student's t over the seeds' correlations: (r, low, high, p, n)."""
    found = []
    for values in np.stack([_r(x, y, group) for x, y in sides], axis=1):
        e = over_seeds(values)
        found.append((e.value, max(e.low, -1.0), min(e.high, 1.0), 2 * min(e.p, 1 - e.p), e.n))
    return found


def _over_facts(
    sides: Sequence[tuple[Floats, Floats]], group: Ints, cluster: Ints
) -> list[tuple[float, float, float, float, int]]:
    """Bootstrap over clusters, and outcomes exchanged within groups, for all columns at once: (r, low, high, p, n).

    p is the larger of the two ways': exchanged one by one, facts that share a name count as more than they are.
    """

    def mean(order: Ints | None = None, weights: Floats | None = None) -> Floats:
        each = np.stack([_r(x, y if order is None else y[order], group, weights) for x, y in sides])
        known = ~np.isnan(each)
        total = np.where(known, each, 0.0).sum(axis=0)
        return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)

    rng = np.random.default_rng(0)
    _, member = np.unique(cluster, return_inverse=True)
    count = int(member.max()) + 1
    drawn = [np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64) for _ in range(RESAMPLES)]
    resampled = np.stack([mean(weights=weights[member]) for weights in drawn])
    observed = mean()
    null = [mean(np.lexsort((rng.random(len(group)), group))) for _ in range(PERMUTATIONS)]
    beyond = (np.abs(np.stack(null)) >= np.abs(observed) - 1e-12).sum(axis=0)
    found = []
    for c, r in enumerate(observed):
        kept = resampled[~np.isnan(resampled[:, c]), c]
        there = ~np.isnan(np.stack([x[:, c] for x, _ in sides])).all(axis=0)
        n = len(np.unique(member[there]))
        if math.isnan(r) or len(kept) < 0.8 * RESAMPLES:
            found.append((float(r), math.nan, math.nan, math.nan, n))
        else:
            low, high = np.quantile(kept, [0.025, 0.975])
            sides_of_zero = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
            p = max((1 + beyond[c]) / (1 + PERMUTATIONS), min(1.0, 2 * (1 + sides_of_zero) / (1 + len(kept))))
            found.append((float(r), float(low), float(high), float(p), n))
    return found


def _decided(made: Sequence[Prediction], minimum: int) -> list[Prediction]:
    """Holm over the signatures of each step, and what each correlation amounts to."""
    decided = []
    for step in dict.fromkeys(one.step for one in made):
        here = [one for one in made if one.step == step]
        adjusted = holm({one.signature: one.p for one in here})
        decided += [_decide(replace(one, adjusted=adjusted[one.signature]), minimum) for one in here]
    return decided


def _decide(one: Prediction, minimum: int) -> Prediction:
    if not one.why and math.isnan(one.r):
        why = f"in no group of {FEWEST} alike facts do both the outcome and the signature vary"
        return replace(one, decision="can't be asked", why=why)
    if not one.why and one.n < minimum:
        return replace(
            one,
            decision="can't be asked",
            why=f"{one.n} {one.unit.removesuffix('s') if one.n == 1 else one.unit}; it needs {minimum}",
        )
    if one.why or math.isnan(one.low):
        return replace(one, decision="can't be asked", why=one.why or "too few resamples have a value")
    if one.adjusted < 0.05 and (one.low > 0 or one.high < 0):
        return replace(one, decision="predicts" if one.low > 0 else "predicts the opposite")
    return one
