"""Question (i): does the reverse query follow where ρ = q̂ᵀR_Σq̂ is above −½, and not below (App. C.3)?"""

import math

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from rcprobe.facts import Dataset, Fact
from rcprobe.loaded import LoadedModel
from rcprobe.probing.engine import observe
from rcprobe.queries import encode
from rcprobe.report.panels import Curves
from rcprobe.statistics import over_seeds
from rcprobe.theory import rope_curve, rope_flow, rotation
from rcprobe_plugins.datasets.letters import PLACEHOLDER
from rcprobe_plugins.studies.reviews.answer import ACCURACY, Answer, not_trained, said, series, verdict
from rcprobe_plugins.studies.reviews.cells import FULL, LETTER, Cell, Size, trained

FAR = 1e60  # D at which the flow is read: at ρ = −0.42 its logit grows like D^0.16
TIME = 1e4  # up to which the flow is integrated, to hold the closed form against it
VOCABULARY = 52  # the letters that the trained models' P is read among


def condition(size: Size) -> Answer:
    """(i) ρ > −½ against the ODE and trained models.

    Heads of width two have one plane, so ρ = cos(δ→ + δ←) whatever the query is; training shows one distance, δ→ = 1.
    """
    data = one_distance(max(size.length, 8))
    options = {"encoding": "rope", "heads": size.width // 2, "max_length": 2 * max(size.length, 8)}
    cell = Cell("rope", options, size.train)
    found = [
        {"cell": "rope", "seed": seed, "step": stop.step, **row}
        for _, seed, m, stop in trained([cell], size, data)
        if stop.step == size.train.steps
        for row in _read(m, data)
    ]
    rows = pd.DataFrame(found)
    seeds = rows.groupby(["cell", "seed"], as_index=False)[["forward P", ACCURACY]].mean()
    forward = over_seeds(list(seeds["forward P"]))
    learned = forward.value
    flow = pd.DataFrame([_flow(delta, len(data.facts[0].forward), learned) for delta in sorted(rows.delta.unique())])
    rows = rows.merge(flow, on="delta")
    bands = {"above 0": (0.0, 1.0), "between −½ and 0": (-0.5, 0.0), "below −½": (-1.0, -0.5)}
    means = {name: _mean(rows[(rows.rho > low) & (rows.rho <= high)]) for name, (low, high) in bands.items()}
    gap = over_seeds(list(np.subtract(means["between −½ and 0"], means["below −½"])))
    ode = all((p > 0.5) == (rho > -0.5) for p, rho in zip(flow.limit, flow.rho, strict=True))
    decided = verdict(
        gap,
        "between −½ and 0, where the paper's ρ ≥ 0 promises nothing, more is learned than below −½",
        "no more is learned between −½ and 0 than below −½",
        "whether −½ is where trained models turn",
    )
    ranks = over_seeds([float(spearmanr(part.rho, part.P).statistic) for _, part in rows.groupby("seed")])
    near = flow[(flow.rho > -0.5) & (flow.rho < 0)].flow.max()
    above = flow[flow.rho > 0].flow.min()
    says = (
        f"Far out the flow {'turns at ρ = −½ at every distance' if ode else 'does not turn at ρ = −½'} (closed form "
        f"and integrator agree to {flow.off.max():.0e}), but where its forward P is the trained models' "
        f"{said(forward)}, it has come to {near:.2f} at most between −½ and 0, and to {above:.2f} at least above 0; in "
        f"trained models the reverse P(right letter | a letter) is "
        f"{', '.join(f'{said(over_seeds(v))} where ρ is {name}' for name, v in means.items())}, the last two apart by "
        f"{said(gap)} ({decided}), and its rank correlation with ρ is {said(ranks)}."
        f"{not_trained(seeds)}"
    )
    rows = rows.sort_values(["rho", "seed"])
    panel = Curves(
        "Reverse P by ρ, trained on δ→ = 1 alone",
        "ρ = cos(δ→ + δ←)",
        "P(right letter | a letter)",
        (
            series(rows, "P", "trained models", "reverse", "rho", _number),
            series(rows, "flow", "flow, at the same forward P", "extra", "rho", _number),
            series(rows, "limit", "flow, far out", "control", "rho", _number),
        ),
    )
    return Answer("i", says, rows, (panel,))


def one_distance(length: int) -> Dataset:
    """The letters at δ→ = 1, at every place; the k-th reverse query asks at δ← = k + 1."""
    forward = tuple(_template(length, k, "{a}{b}") for k in range(length - 1))
    reverse = tuple("{b}" + PLACEHOLDER * k + "{a}" + PLACEHOLDER * (length - 2 - k) for k in range(length - 1))
    letters = Size(length=2).letters()
    facts = tuple(Fact(fact.a, fact.b, forward, reverse) for fact in letters.facts)
    return Dataset("letters, one distance", facts, letters.readings, "seed")


def _template(length: int, place: int, pair: str) -> str:
    return PLACEHOLDER * place + pair + PLACEHOLDER * (length - 2 - place)


def _read(m: LoadedModel, data: Dataset) -> list[dict[str, float]]:
    pairs = encode(m, data.facts)
    seen = observe(m, pairs, read={"log_probs"}, candidates=data.readings)
    assert seen.readings is not None
    log_probs, right = seen.readings[LETTER][0], seen.readings[FULL][1]
    frame = pd.DataFrame(
        {
            "delta": [pair.distances[1] for pair in pairs],
            "P": log_probs[:, 1].exp().numpy(),
            "forward P": log_probs[:, 0].exp().numpy(),
            ACCURACY: right[:, 0].numpy(),
        }
    )
    means = frame.groupby("delta", as_index=False).mean()
    return [{str(name): float(value) for name, value in row.items()} for row in means.to_dict("records")]


def _flow(delta: float, others: int, learned: float) -> dict[str, float]:
    """ρ; the flow's reverse probability far out, and where its forward one is ``learned``; and how far closed form
    and integrator are apart on the way. It starts as a row that attends to all of ``others`` + 1 tokens alike.
    """
    rho, start = math.cos(1 + delta), -math.log(others)
    query = np.array([1.0, 0.0])
    key = np.linalg.solve(np.stack([query @ rotation(1.0, 2), query @ rotation(-delta, 2)]), [start, start])
    run = rope_flow(np.geomspace(1.0, TIME, 20), query, key, 1.0, delta, VOCABULARY)
    curve = rope_curve(run.gap, start, start, 1.0, rho, VOCABULARY)
    far = rope_curve([FAR], start, start, 1.0, rho, VOCABULARY)
    path = rope_curve(np.geomspace(1e-2, 1e4, 2000), start, start, 1.0, rho, VOCABULARY)
    same = int(np.searchsorted(path.forward_probability, learned).clip(max=len(path.gap) - 1))
    off = float(np.abs(curve.reverse_probability - run.reverse_probability).max())
    found = {"limit": float(far.reverse_probability[0]), "flow": float(path.reverse_probability[same]), "off": off}
    return {"delta": delta, "rho": rho, **found}


def _mean(rows: pd.DataFrame) -> list[float]:
    return list(rows.groupby("seed").P.mean())


def _number(value: object) -> float:
    return float(str(value))
