"""Questions (g) and (h): the signatures layer by layer, and which of them tell who transfers."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from rcprobe.facts import Dataset
from rcprobe.loaded import LoadedModel
from rcprobe.probe import one_per_distance
from rcprobe.probing.engine import observe
from rcprobe.queries import encode
from rcprobe.report.panels import Curves, Dots, Point, Series, Style
from rcprobe.statistics import Estimate, over_clusters, over_seeds
from rcprobe_plugins.studies.reviews.answer import ENOUGH, Answer, not_trained, said, series, undecided, verdict
from rcprobe_plugins.studies.reviews.cells import Cell, Size, outcomes, routing, signatures, table, trained
from rcprobe_plugins.studies.reviews.variants import ENCODINGS, REVERSE, deep

LAYERS = 4
SIGNATURES = ("storage", "routing", "matched", "same_target", "other_target", "other_fact", "dynamics")
NAMES = {
    "storage": "storage W̃[a, b] − others, at the reverse place",
    "routing": "routing r",
    "matched": "cos matched",
    "same_target": "cos same target, other evidence",
    "other_target": "cos other target, same evidence",
    "other_fact": "cos other fact",
    "dynamics": "cos matched − same target",
}


def by_layer(size: Size) -> Answer:
    """(g) Gradient alignment and routing layer by layer, in a model of four layers under RoPE."""
    data = size.letters()
    cell = Cell("rope", {"encoding": "rope", "depth": LAYERS}, deep(size))
    rows = pd.DataFrame(
        [
            {"cell": cell.label, "seed": seed, "layer": layer, **found, **outcome}
            for _, seed, m, stop in trained([cell], size, data)
            if stop.step == size.train.steps
            for outcome in [outcomes(m, data)]
            for layer, found in enumerate(_layers(m, data), start=1)
        ]
    )
    wide = {name: rows.pivot(index="seed", columns="layer", values=name) for name in ("part", "excess", "routing")}
    trends = {name: over_seeds(list(wide[name][LAYERS] - wide[name][1])) for name in ("excess", "routing")}
    by = {name: ", ".join(said(over_seeds(list(of[n]))) for n in range(1, LAYERS + 1)) for name, of in wide.items()}
    decided = {
        name: verdict(trend, "it is stronger in the last", "it is stronger in the first", "where it is stronger")
        for name, trend in trends.items()
    }
    whole = over_seeds(list(rows[rows.layer == 1].whole))
    says = (
        f"To a whole matched cosine of {said(whole)}, layers 1 to {LAYERS} contribute {by['part']} (the rest lies in "
        f"embedding, final norm and head). Inside the layers, the matched − same-target cosine is {by['excess']}, from "
        f"the first to the last a change of {said(trends['excess'])}: {decided['excess']}. Routing's correlation is "
        f"{by['routing']}, a change of {said(trends['routing'])}: {decided['routing']}."
        f"{not_trained(rows[rows.layer == 1])}"
    )
    panel = Curves(
        "Layer by layer",
        "layer",
        "cosine or correlation",
        (
            series(rows, "cosine", "cos matched", "forward", "layer", _number),
            series(rows, "same_target", "cos same target, other evidence", "control", "layer", _number),
            series(rows, "part", "contribution to the whole cosine", "extra", "layer", _number),
            series(rows, "routing", "routing r", "other", "layer", _number),
        ),
    )
    return Answer("g", says, rows, (panel,))


def _layers(m: LoadedModel, data: Dataset) -> list[dict[str, float]]:
    seen = observe(m, one_per_distance(encode(m, data.facts)), read={"scores", "gradients"})
    products = seen.gradients
    assert products is not None
    whole = products.indices()
    norms = (products.forward_norm2[:, whole].sum(1) * products.reverse_norm2[:, whole].sum(1)).sqrt()
    found = []
    for layer in range(LAYERS):
        inside = products.indices(layer=layer)
        cosine = float(products.cosine(inside).nanmean())
        control = float(products.control_cosine("same_target", inside).nanmean())
        found.append(
            {
                "cosine": cosine,
                "same_target": control,
                "excess": cosine - control,
                "part": float((products.inner[:, inside].sum(1) / norms).nanmean()),
                "whole": float(products.cosine(whole).nanmean()),
                "routing": routing(seen, slice(layer, layer + 1)),
            }
        )
    return found


def telling(size: Size) -> Answer:
    """(h) Which signatures tell encodings that transfer from those that don't, and which are there before training."""
    cells = [Cell(name, {"encoding": name}, size.train) for group in ENCODINGS.values() for name in group]
    rows = table(cells, size, size.letters(), signatures, every=True)
    final, first = (rows[rows.step == step].reset_index(drop=True) for step in (size.train.steps, 0))
    kept = ~final.cell.isin(ENCODINGS["mirror identity"])
    final, first = final[kept], first[kept]
    after = {name: _rank(final, final, name) for name in SIGNATURES}
    before = {name: _rank(first, final, name) for name in SIGNATURES}
    told = [f"{NAMES[name]} ({said(e)})" for name, e in after.items() if e.low > 0 or e.high < 0]
    early = [f"{NAMES[name]} ({said(e)})" for name, e in before.items() if e.low > 0 or e.high < 0]
    unsure = [NAMES[name] for name, e in after.items() if not (e.low > 0 or e.high < 0)]
    square = {name: said(over_seeds(list(first.groupby("seed")[name].mean()))) for name in SIGNATURES[2:]}
    found = (
        f"the interval of the rank correlation with reverse P leaves out zero for {', '.join(told) or 'no signature'}, "
        f"and holds it for {', '.join(unsure) or 'none'}; before training it leaves out zero for "
        f"{', '.join(early) or 'none'}"
        if size.seeds >= ENOUGH
        else undecided(size.seeds, "which signatures go with reverse P")
    )
    says = (
        f"Over {len(final)} models of {final.cell.nunique()} encodings (without those that answer alike by identity; "
        f"routing also without those whose scores do), {found}. So few encodings describe and decide nothing. "
        f"Untrained, the gradient cosine is {square['matched']} matched, {square['same_target']} with the same target "
        f"from other evidence (a difference of {square['dynamics']}), {square['other_target']} with another target "
        f"from the same evidence and {square['other_fact']} for another fact.{not_trained(final)}"
    )
    panel = Dots(
        "Rank correlation with reverse P at the end",
        "rank correlation over models, intervals over encodings",
        (_dots("signature at the end", "forward", after), _dots("signature before training", "control", before)),
    )
    how = "Points are Spearman's rank correlations over models, with 95 % bootstrap intervals over encodings."
    return Answer("h", says, rows, (panel,), how)


def _rank(signature: pd.DataFrame, outcome: pd.DataFrame, name: str) -> Estimate:
    """Spearman's correlation over models, encodings being resampled whole.

    Routing is asked of those alone whose forward and reverse scores aren't one by construction.
    """
    if name == "routing":
        free = ~outcome.cell.isin(ENCODINGS["position in values"]).to_numpy()
        signature, outcome = signature[free], outcome[free]
    x, y = signature[name].to_numpy(dtype=np.float64), outcome[REVERSE].to_numpy(dtype=np.float64)
    defined = ~(np.isnan(x) | np.isnan(y))

    def statistic(weights: NDArray[np.float64]) -> float:
        times = (weights * defined).astype(int)
        a, b = np.repeat(np.nan_to_num(x), times), np.repeat(np.nan_to_num(y), times)
        return float(spearmanr(a, b).statistic) if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan

    clusters = pd.factorize(outcome.cell)[0]
    return over_clusters(statistic, clusters, defined=defined)


def _dots(label: str, style: Style, found: dict[str, Estimate]) -> Series:
    points = tuple(Point(e.value, e.low, e.high) for e in found.values())
    return Series(label, style, tuple(NAMES[name] for name in found), points)


def _number(value: object) -> float:
    return float(str(value))
