"""What a metric is: a plain function of an observation, and what is asked of its values.

>>> import rcprobe
>>> @rcprobe.metric(reads={"log_probs"})
... def loss(seen):
...     return -seen.log_probs[:, 1]
>>> loss.name, loss.pairings
('loss', ('same_target',))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rcprobe.errors import PluginError, RcprobeError
from rcprobe.facts import Pairing
from rcprobe.plugins import registry

if TYPE_CHECKING:
    from torch import Tensor

    from rcprobe.probing.engine import Observation

Values = Mapping[str, "Tensor"]
Columns = dict[str, NDArray[np.float64]]
STATISTICS = {"mean": (1, 2), "effect_size": (1, 2), "correlation": (2,)}  # → how many columns each takes


@dataclass(frozen=True)
class Condition:
    """One thing that must hold for a signature to be present: a statistic beyond a margin fixed beforehand.

    ``mean`` and ``effect_size`` (Hedges-corrected d_z) take a column, or a column and its control whose difference
    counts; ``correlation`` takes the two columns it correlates over facts. ``growth`` counts from the first step.
    What isn't ``judged`` is shown beside, where the metric gives its columns, and has no part in the verdict.
    """

    label: str
    statistic: Literal["mean", "effect_size", "correlation"]
    columns: tuple[str, ...]
    margin: float
    unit: str
    growth: bool = False
    judged: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.statistic, str) or self.statistic not in STATISTICS:
            raise PluginError(f"condition {self.label!r}: statistic is {self.statistic!r}; use {', '.join(STATISTICS)}")
        named = isinstance(self.columns, tuple | list) and all(isinstance(name, str) for name in self.columns)
        if not named or len(self.columns) not in STATISTICS[self.statistic]:
            raise PluginError(
                f"condition {self.label!r}: columns is {self.columns!r}; a {self.statistic} takes a tuple of "
                f"{' or '.join(map(str, STATISTICS[self.statistic]))} names"
            )
        object.__setattr__(self, "columns", tuple(self.columns))


@dataclass(frozen=True)
class Metric:
    """A named function of an observation; with conditions it is a signature and gets a verdict.

    One ``on_request`` is measured only where it is named. A ``check`` is judged as a signature is, but it isn't one
    of them: its p is its own, and takes no part in their correction.
    """

    name: str
    reads: frozenset[str]
    pairings: tuple[Pairing, ...]
    function: Callable[["Observation"], "Values | Tensor"]
    conditions: tuple[Condition, ...] = ()
    title: str = ""
    on_request: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.conditions, tuple) or not all(isinstance(c, Condition) for c in self.conditions):
            raise PluginError(
                f"metric {self.name!r}: conditions is {self.conditions!r}; it needs a tuple of rcprobe.Condition, as "
                "in (first,) or (first, second)"
            )
        if not self.pairings:
            raise PluginError(f"metric {self.name!r}: it names no pairing; use {' or '.join(get_args(Pairing))}")
        for pairing in self.pairings:
            if pairing not in get_args(Pairing):
                raise PluginError(
                    f"metric {self.name!r}: pairing is {pairing!r}; use {' or '.join(get_args(Pairing))}, or a tuple"
                )
        if self.conditions and not any(condition.judged for condition in self.conditions):
            raise PluginError(f"metric {self.name!r}: none of its conditions is judged; judge one, or give none")

    @property
    def differentiates(self) -> bool:
        """Whether it needs backward passes."""
        return bool(self.reads & {"gradients", "training_gradients"})

    @property
    def costly(self) -> bool:
        """Whether it is measured for one template pair a fact and distance alone."""
        return self.differentiates or self.knocks_out

    @property
    def knocks_out(self) -> bool:
        """Whether it needs many forward passes a query."""
        return "knockout" in self.reads

    def measure(self, seen: "Observation") -> Columns:
        """The metric's columns: [B] or [B, N, H] in float64, one value a pair, NaN where it is undefined.

        Raises ``PluginError`` if the function raises, or returns another shape or an infinite value.
        """
        try:
            found = self.function(seen)
        except RcprobeError:
            raise
        except Exception as error:
            at = extract_tb(error.__traceback__)[-1]
            unread = f"; what its reads ({', '.join(sorted(self.reads))}) don't name is None in the observation"
            raise PluginError(
                f"metric {self.name!r}: {type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {error}"
                f"{unread if 'NoneType' in str(error) else ''}"
            ) from error
        values = found if isinstance(found, Mapping) else {"value": found}
        for name, given in values.items():
            if not hasattr(given, "detach"):
                raise PluginError(
                    f"metric {self.name!r}: column {name!r} is a {type(given).__name__}; return tensors, as those of "
                    "the observation are"
                )
        columns = {name: np.asarray(tensor.detach().cpu().double().numpy()) for name, tensor in values.items()}
        for name, column in columns.items():
            if column.ndim not in (1, 3) or len(column) != len(seen.pairs):
                raise PluginError(
                    f"metric {self.name!r}: column {name!r} has shape {column.shape}; it needs one value a pair, "
                    f"[{len(seen.pairs)}], or one a pair, layer and head"
                )
            if np.isinf(column).any():
                raise PluginError(
                    f"metric {self.name!r}: column {name!r} holds an infinite value; use NaN for undefined"
                )
        missing = {c for condition in self.conditions if condition.judged for c in condition.columns} - set(columns)
        if missing:
            raise PluginError(
                f"metric {self.name!r}: a condition needs column {sorted(missing)[0]!r}, which it didn't give"
            )
        return columns


def metric(
    *,
    reads: set[str],
    pairing: Pairing | tuple[Pairing, ...] = "same_target",
    conditions: tuple[Condition, ...] = (),
    title: str = "",
    on_request: bool = False,
    check: bool = False,
) -> Callable[[Callable[["Observation"], "Values | Tensor"]], Metric]:
    """Make a metric of a function that takes an ``Observation`` and returns one value a pair, or named columns.

    ``reads`` says what the engine must measure (``scores``, ``span_scores``, ``log_probs``, ``alternatives``,
    ``answers``, ``gradients``, ``training_gradients``, ``storage``, ``knockout``); ``pairing`` what is asked, the
    first being the one that is judged. A costly metric may be measured ``on_request`` alone; a causal ``check`` is
    judged apart from the signatures. Statistics, controls and verdicts are the core's.
    """

    def decorate(function: Callable[["Observation"], "Values | Tensor"]) -> Metric:
        pairings: tuple[Pairing, ...] = (pairing,) if isinstance(pairing, str) else pairing
        name = function.__name__
        return Metric(name, frozenset(reads), pairings, function, conditions, title or name, on_request, check)

    return decorate


def resolve_metrics(metrics: Sequence[str | Metric] | None) -> list[Metric]:
    """Names → metrics; for None every registered one but those on request. Raises ``UnknownNameError``."""
    if metrics is None:
        return [metric for metric in registered_metrics() if not metric.on_request]
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
