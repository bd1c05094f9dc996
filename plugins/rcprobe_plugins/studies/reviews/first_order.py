"""Question (e): how tight is the first order of the reverse loss's change by a forward step (§4.3)?"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from rcprobe.facts import Dataset, Query
from rcprobe.loaded import LoadedModel
from rcprobe.probe import one_per_distance
from rcprobe.probing.batch import collate
from rcprobe.probing.captured import log_softmax, negative_log_prob, target_rows
from rcprobe.queries import encode
from rcprobe.report.panels import Curves
from rcprobe.statistics import Estimate, over_seeds
from rcprobe.theory import FirstOrder, first_order
from rcprobe.theory.first_order import Loss, Parameters
from rcprobe_plugins.studies.reviews.answer import ENOUGH, Answer, said, series
from rcprobe_plugins.studies.reviews.cells import Cell, Size, trained

RATES = tuple(10.0**n for n in np.arange(-4.0, -0.9, 0.5))
SMALL = 4  # of the rates: those whose error is of one order


def step_sizes(size: Size) -> Answer:
    """(e) Measured against first-order predicted change of the reverse loss, over step sizes, on raw weights."""
    stop = max(1, size.train.steps // 4)  # later on, gradients vanish with the loss
    cell = Cell("rope", {"encoding": "rope"}, replace(size.train, steps=stop, ema=0.0, probe_at=(), probe_every=None))
    data = size.letters()
    found = {seed: _measured(m, data) for _, seed, m, at in trained([cell], size, data) if at.step == stop}
    rows = pd.concat([_rows(seed, f) for seed, f in found.items()], ignore_index=True)
    orders = {name: over_seeds([_order(f, name) for f in found.values()]) for name in ("first", "second")}
    off = over_seeds([float(f.actual[2] / f.first[2] - 1) if f.first[2] else math.nan for f in found.values()])
    tight = over_seeds([float(f.tightness[0]) for f in found.values()])
    says = (
        f"A forward step of rate {RATES[2]:g} changes the reverse loss by {said(_percent(off))} % more than first "
        f"order predicts; the error grows as rate^{said(orders['first'])} (2 if the first order is right), and as "
        f"rate^{said(orders['second'])} with the second order (3): "
        f"{_held(orders['first'])}, its tightness at small rates being {said(tight)} per unit of rate."
    )
    panel = Curves(
        "Error of the predicted change of the reverse loss",
        "log10 of the rate",
        "log10 of the error",
        (
            series(rows, "log error, first", "first order", "forward", "log rate", _number),
            series(rows, "log error, second", "second order", "extra", "log rate", _number),
        ),
    )
    return Answer("e", "How tight is the first order?", says, rows, (panel,))


def _held(order: Estimate) -> str:
    if order.n < ENOUGH:
        return f"{order.n} seeds don't decide whether the prediction holds ({ENOUGH} are needed)"
    return "the prediction holds" if abs(order.value - 2) < 0.1 else "the prediction fails"


def query_loss(m: LoadedModel, queries: Sequence[Query]) -> Loss:
    """The mean of −log p(target) over queries, as a pure function of the model's parameters."""
    batch = collate(m, list(queries))

    def loss(parameters: Parameters) -> Tensor:
        logits = functional_call(m.model, dict(parameters), kwargs={"input_ids": batch.input_ids}).logits
        return negative_log_prob(log_softmax(m, target_rows(logits, batch)), batch).mean()

    return loss


def _measured(m: LoadedModel, data: Dataset) -> FirstOrder:
    m.model.double()
    m.model.set_attn_implementation("eager")  # type: ignore[operator]
    pairs = one_per_distance(encode(m, data.facts))
    forward, reverse = (query_loss(m, [getattr(p, way) for p in pairs]) for way in ("forward", "reverse"))
    return first_order(forward, reverse, dict(m.model.named_parameters()), RATES)


def _error(found: FirstOrder, name: str) -> NDArray[np.float64]:
    second = found.second if name == "second" else 0.0
    return np.abs(found.actual - found.first - second)


def _order(found: FirstOrder, name: str) -> float:
    """The exponent of the error in the rate, by least squares over the small rates that rounding leaves."""
    error = _error(found, name)
    last = SMALL if name == "first" else len(RATES) - 1
    kept = [i for i in range(last) if error[i] > 1e-12]
    if len(kept) < 2:
        return math.nan
    return float(np.polyfit(np.log(found.rates[kept]), np.log(error[kept]), 1)[0])


def _rows(seed: int, found: FirstOrder) -> pd.DataFrame:
    errors = {name: _error(found, name) for name in ("first", "second")}
    logs = {f"log error, {name}": np.log10(np.where(e > 0, e, np.nan)) for name, e in errors.items()}
    columns = {"rate": found.rates, "actual": found.actual, "first": found.first, "second": found.second}
    return pd.DataFrame({"seed": seed, "log rate": np.log10(found.rates), **columns, **logs})


def _percent(estimate: Estimate) -> Estimate:
    return replace(estimate, value=100 * estimate.value, low=100 * estimate.low, high=100 * estimate.high)


def _number(value: object) -> float:
    return float(str(value))
