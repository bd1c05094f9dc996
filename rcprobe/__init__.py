"""Probe language models for the reversal curse: shared storage, correlated attention routes, aligned gradients.

``rcprobe.run(model, dataset)`` does it all; ``load``, ``encode``, ``observe`` and ``Probe`` do its parts. Names are
imported when they are first used, so that a command that needs no model starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rcprobe.adapter import Adapter, OvCircuit
    from rcprobe.callback import ProbeCallback
    from rcprobe.comparison import Comparison, compare
    from rcprobe.decoding import Decoding, decode, decoder
    from rcprobe.encoding import Encoding
    from rcprobe.errors import OptionError, RcprobeError
    from rcprobe.facts import Dataset, Fact, Query, QueryPair
    from rcprobe.hookspecs import hookimpl
    from rcprobe.loaded import LoadedModel
    from rcprobe.loading import load
    from rcprobe.metrics import Condition, Metric, metric
    from rcprobe.probe import Probe
    from rcprobe.probing.engine import Observation, observe
    from rcprobe.queries import encode
    from rcprobe.report import Report
    from rcprobe.runner import load_dataset, run
    from rcprobe.training import TrainConfig

__version__ = "0.1.0"

_HOME = {
    "Adapter": "adapter",
    "Comparison": "comparison",
    "Condition": "metrics",
    "Dataset": "facts",
    "Decoding": "decoding",
    "Encoding": "encoding",
    "Fact": "facts",
    "LoadedModel": "loaded",
    "Metric": "metrics",
    "Observation": "probing.engine",
    "OptionError": "errors",
    "OvCircuit": "adapter",
    "Probe": "probe",
    "ProbeCallback": "callback",
    "Query": "facts",
    "QueryPair": "facts",
    "RcprobeError": "errors",
    "Report": "report",
    "TrainConfig": "training",
    "compare": "comparison",
    "decode": "decoding",
    "decoder": "decoding",
    "encode": "queries",
    "hookimpl": "hookspecs",
    "load": "loading",
    "load_dataset": "runner",
    "metric": "metrics",
    "observe": "probing.engine",
    "run": "runner",
}

__all__ = [
    "Adapter",
    "Comparison",
    "Condition",
    "Dataset",
    "Decoding",
    "Encoding",
    "Fact",
    "LoadedModel",
    "Metric",
    "Observation",
    "OptionError",
    "OvCircuit",
    "Probe",
    "ProbeCallback",
    "Query",
    "QueryPair",
    "RcprobeError",
    "Report",
    "TrainConfig",
    "compare",
    "decode",
    "decoder",
    "encode",
    "hookimpl",
    "load",
    "load_dataset",
    "metric",
    "observe",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rcprobe' has no attribute {name!r}")
    return getattr(import_module(f"rcprobe.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
