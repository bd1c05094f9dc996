"""Reports of made-up measurements, with no model behind them."""

import numpy as np

from rcprobe.facts import Dataset, Fact
from rcprobe.files import write_json
from rcprobe.measured import Measured, PairTable, Step
from rcprobe.metrics import Condition, Metric
from rcprobe.report import Report, SeedRun, build
from rcprobe.signatures import Finding, Signature
from rcprobe.statistics import Estimate
from rcprobe.store import REPORT, SCHEMA, RunFolder

LAYERS, HEADS = 3, 2
INFO = {
    "model": "made-up",
    "options": {"width": 16},
    "parameters": 1234,
    "train": None,
    "device": "cpu",
    "metrics": ["storage"],
    "versions": {"rcprobe": "0.1.0", "python": "3.11"},
}


def _metric(name, title, pairings, *conditions):
    return Metric(name, frozenset(), pairings, lambda seen: {}, conditions, title)


METRICS = (
    _metric(
        "storage",
        "storage",
        ("swapped",),
        Condition("growth of W̃[a, b]", "effect_size", ("stored", "mismatched"), 0.2, "d_z", growth=True),
    ),
    _metric(
        "attention_correlation",
        "routing",
        ("same_target",),
        Condition("r of scores", "correlation", ("forward", "reverse"), 0.1, "r"),
    ),
    _metric(
        "gradient_alignment",
        "dynamics",
        ("same_target",),
        Condition("cos matched − same target, other evidence", "mean", ("matched", "same_target"), 0.02, "cosine"),
    ),
    _metric(
        "reverse_probability",
        "outcome",
        ("swapped",),
        Condition("gain of log p(a | reverse)", "mean", ("reverse", "alternatives"), 0.1, "nats", growth=True),
    ),
    _metric("accuracy", "accuracy", ("swapped",)),
)


def facts(count=40, **others):
    """Plain facts; ``others`` maps a number to (a, b) of that fact."""
    named = {f"_{i}": (f"Person {i}", f"Town {i}") for i in range(count)} | others
    return tuple(Fact(*named[f"_{i}"], "{a} was born in {b}.", "{b} is the birthplace of {a}.") for i in range(count))


def table(count, distances=2, unasked=0):
    """One pair a fact and pair of distances; the first ``unasked`` facts couldn't be asked."""
    fact, place = np.divmod(np.arange(count * distances**2), distances**2)
    asked = fact >= unasked
    return PairTable(
        fact,
        place,
        fact,
        np.where(asked, place + 1, 0),
        np.where(asked, place // distances + 1, -1),
        np.where(asked, place % distances + 1, -1),
        np.ones(len(fact), dtype=bool),
    )


def measured(seed, step, pairs, value=None, names=METRICS):
    """What every metric would give; ``value`` in place of every number."""
    rng = np.random.default_rng(100 * seed + step)
    size, learned = len(pairs.fact), min(1.0, step / 100)
    own = np.random.default_rng(7).normal(size=int(pairs.fact.max()) + 1)[pairs.fact]

    def noise(scale, *shape):
        return rng.normal(0, scale, (size, *shape))

    shape = (LAYERS, HEADS)
    spread = own[:, None, None]
    columns = {
        "storage": {"stored": 2 * learned + noise(0.5, *shape), "mismatched": noise(0.5, *shape)},
        "attention_correlation": {"forward": spread + noise(0.4, *shape), "reverse": spread + noise(0.4, *shape)},
        "gradient_alignment": {
            "matched": 0.4 + noise(0.1),
            "same_target": 0.1 + noise(0.1),
            "other_target": noise(0.1),
            "other_fact": noise(0.1),
            "cos query": 0.5 + noise(0.1),
            "same_target query": noise(0.1),
            "cos $_{x}$ <b>": noise(0.1),
            **{f"cos layer {k}": 0.1 * k + noise(0.1) for k in range(LAYERS)},
            **{f"same_target layer {k}": noise(0.1) for k in range(LAYERS)},
        },
        "reverse_probability": {
            "forward": -5 + 4.8 * learned + noise(0.1),
            "reverse": -5 + 3 * learned + noise(0.1),
            "alternatives": -5 + noise(0.1),
            "forward, full vocabulary": -5 + 4.8 * learned + noise(0.1),
            "reverse, full vocabulary": -5 + 3 * learned + noise(0.1),
        },
        "accuracy": {
            "forward, full vocabulary": np.full(size, float(step > 0)),
            "reverse, full vocabulary": ((pairs.fact % 2 == 0) & (step > 0)).astype(float),
        },
    }
    lost = pairs.stratum == 0
    for found in columns.values():
        for name, column in found.items():
            found[name] = np.where(lost.reshape(-1, *[1] * (column.ndim - 1)), np.nan, column)
            if value is not None:
                found[name] = np.full_like(column, value)
    return tuple(Measured(m.name, m.pairings[0], seed, step, columns[m.name], pairs) for m in names)


def seed_run(seed, pairs, steps=(0, 50, 100), failure=None, value=None, excluded=None, skipped=None, names=METRICS):
    """A seed's steps, reversed accuracy at half of what forward reaches."""
    made = []
    for step in steps:
        shares = (np.nan, np.nan) if value is not None else (float(step > 0), 0.5 * (step > 0))
        asked = {"swapped": {"full vocabulary": shares}}
        found = measured(seed, step, pairs, value, names)
        made.append(Step(seed, step, None, found, asked, excluded or {}, skipped or {}))
    return SeedRun(seed, tuple(made), failure, "ab12" * 8)


def report(count=40, seeds=2, replicate="fact", info=None, given=None, **options):
    """A judged report of so many seeds; ``given`` are its facts."""
    dataset = Dataset("towns", given or facts(count), replicate=replicate)
    pairs = table(len(dataset.facts), unasked=options.pop("unasked", 0))
    runs = [seed_run(seed, pairs, **options) for seed in range(seeds)]
    return judged(dataset, runs, info)


def judged(dataset, runs, info=None):
    """The report of seeds that were run."""
    return build(dataset, METRICS, runs, chance=0.01, identities={}, info={**INFO, **(info or {})})


def kept(report, folder):
    """A report as a finished run's folder, without its page."""
    folder.mkdir()
    run = RunFolder(folder)
    settings = {**report.info, "seeds": [seed.seed for seed in report.runs], "tokenizer": "made up"}
    run.begin({"schema": SCHEMA, "settings": settings, "stops": [0, 100], "config": None}, report.dataset)
    for seed in report.runs:
        part = run.seed(seed.seed)
        for step in seed.steps:
            part.save_step(step)
        part.finish(seed.failure, seed.fingerprint, [step.step for step in seed.steps], 1)
    write_json(folder / REPORT, report.to_dict())
    run.finish()
    return folder


def large(count=10_000):
    """Many facts, one pair each, with a verdict made up: nothing is resampled for it."""
    dataset = Dataset("towns", facts(count))
    runs = (seed_run(0, table(count, 1), steps=(0, 100)),)
    metric = METRICS[1]
    found = Finding(metric.conditions[0], Estimate(0.6, 0.5, 0.7, 0.001, 0.1, count, 0, "clusters", "made up"), 0.0)
    signature = Signature(metric.name, metric.name, metric.title, "same_target", "present", (found,))
    return Report(
        dataset, runs, {metric.name: signature}, {"swapped": {"full vocabulary": ((1.0, 0.5),)}}, {}, (), INFO
    )
