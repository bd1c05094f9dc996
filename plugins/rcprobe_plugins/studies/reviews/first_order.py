"""Question (e): how tight is the first order of the reverse loss's change by a forward step (§4.3)?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from rcprobe.theory import FirstOrder, change_along, first_order, gradient_step
from rcprobe.theory.first_order import Change, Loss, Parameters
from rcprobe_plugins.studies.reviews.answer import ENOUGH, Answer, said, series, undecided
from rcprobe_plugins.studies.reviews.cells import Cell, Size, outcomes, trained

RATES = tuple(10.0**n for n in np.arange(-4.0, -0.9, 0.5))
SMALL = 4  # of the rates: those whose error is of one order
TOLERANCE = 0.1  # of the error's order, which is 2 if the first order is right
EPSILON = 1e-8  # AdamW's


@dataclass(frozen=True)
class Measured:
    """What forward steps do to a model's reverse loss: gradient descent's at each rate, AdamW's first at ``RATES[2]``;
    and its forward P.
    """

    descent: FirstOrder
    adamw: Change
    forward: float


def step_sizes(size: Size) -> Answer:
    """(e) Measured against first-order predicted change of the reverse loss, over step sizes, on raw weights."""
    stop = max(1, size.train.steps // 4)  # later on, gradients vanish with the loss
    cell = Cell("rope", {"encoding": "rope"}, replace(size.train, steps=stop, ema=0.0, probe_at=(), probe_every=None))
    data = size.letters()
    read = [_measured(m, data) for _, _, m, at in trained([cell], size, data) if at.step == stop]
    found = [one.descent for one in read]
    rows = pd.concat([_rows(seed, one) for seed, one in enumerate(read)], ignore_index=True)
    orders = {name: over_seeds([_order(f, name) for f in found]) for name in ("first", "second")}
    ratio = [float(f.actual[2] / f.first[2]) if f.first[2] else math.nan for f in found]
    tight = over_seeds([float(f.tightness[0]) for f in found])
    learned = over_seeds([one.forward for one in read])
    steps = [
        f"{_scaled(1000, actual)} thousandths (by the first order {_scaled(1000, first)})"
        for actual, first in (
            ([f.actual[2] for f in found], [f.first[2] for f in found]),
            ([one.adamw.actual for one in read], [one.adamw.first for one in read]),
        )
    ]
    says = (
        f"Where forward P is {said(learned)}, a forward step of rate {RATES[2]:g} changes the reverse loss by "
        f"{steps[0]}: {_scaled(100, ratio)} % of what the first order says. The error grows as "
        f"rate^{said(orders['first'])} (2 if the first order is right), and as rate^{said(orders['second'])} with the "
        f"second order (3): {_held(orders['first'])}, its tightness at small rates being {said(tight)} per unit of "
        f"rate. AdamW's first step at that rate changes it by {steps[1]}."
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
    return Answer("e", says, rows, (panel,))


def _held(order: Estimate) -> str:
    if order.n < ENOUGH:
        return undecided(order.n, "whether the prediction holds")
    low, high = order.low - 2, order.high - 2
    if low > -TOLERANCE and high < TOLERANCE:
        return "the prediction holds"
    return "the prediction fails" if low > TOLERANCE or high < -TOLERANCE else "the data don't decide whether it holds"


def query_loss(m: LoadedModel, queries: Sequence[Query]) -> Loss:
    """The mean of −log p(target) over queries, as a pure function of the model's parameters."""
    batch = collate(m, list(queries))

    def loss(parameters: Parameters) -> Tensor:
        logits = functional_call(m.model, dict(parameters), kwargs={"input_ids": batch.input_ids}).logits
        return negative_log_prob(log_softmax(m, target_rows(logits, batch)), batch).mean()

    return loss


def _measured(m: LoadedModel, data: Dataset) -> Measured:
    m.model.double()
    m.model.set_attn_implementation("eager")  # type: ignore[operator]
    pairs = one_per_distance(encode(m, data.facts))
    forward, reverse = (query_loss(m, [getattr(p, way) for p in pairs]) for way in ("forward", "reverse"))
    at = dict(m.model.named_parameters())
    adamw = change_along(reverse, at, adamw_step(gradient_step(forward, at, 1.0), RATES[2]))
    return Measured(first_order(forward, reverse, at, RATES), adamw, outcomes(m, data)["forward P"])


def adamw_step(descent: Parameters, rate: float) -> dict[str, Tensor]:
    """AdamW's first step where the gradient is −``descent``, without weight decay."""
    return {name: rate * step / (step.abs() + EPSILON) for name, step in descent.items()}


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


def _rows(seed: int, read: Measured) -> pd.DataFrame:
    found = read.descent
    errors = {name: _error(found, name) for name in ("first", "second")}
    logs = {f"log error, {name}": np.log10(np.where(e > 0, e, np.nan)) for name, e in errors.items()}
    columns = {"rate": found.rates, "actual": found.actual, "first": found.first, "second": found.second}
    one = {"forward P": read.forward}
    adamw = {f"AdamW at {RATES[2]:g}, actual": read.adamw.actual, f"AdamW at {RATES[2]:g}, first": read.adamw.first}
    return pd.DataFrame({"seed": seed, "log rate": np.log10(found.rates), **columns, **logs, **one, **adamw})


def _scaled(by: float, values: Sequence[float]) -> str:
    return said(over_seeds([by * float(value) for value in values]))


def _number(value: object) -> float:
    return float(str(value))
