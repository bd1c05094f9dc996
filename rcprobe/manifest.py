"""What a run is, so that it can be told from another, gone on with, and repeated."""

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rcprobe.decoding import Decoding
from rcprobe.facts import Dataset
from rcprobe.files import strict
from rcprobe.loaded import LoadedModel
from rcprobe.metrics import Metric
from rcprobe.plugins import registry
from rcprobe.probing.sizes import BatchSize
from rcprobe.store import SCHEMA, dataset_json
from rcprobe.training import TrainConfig
from rcprobe.training.objectives import objective_of, own_objective

PACKAGES = ("rcprobe", "torch", "transformers", "nnsight", "numpy", "scipy", "pandas")


def make_manifest(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    seeds: Sequence[int],
    train: TrainConfig | None,
    batch_size: BatchSize,
    *,
    decoding: Decoding | None,
    config: Mapping[str, Any] | None,
    revisions: Mapping[str, str] | None,
    stops: Sequence[int],
) -> dict[str, Any]:
    """The manifest of a run that is about to start, as strict JSON holds it.

    ``settings`` are all that the numbers depend on, and what a run that goes on must agree with; ``config`` (of
    ``config_of``) runs it again; ``stops`` are the probed steps. Of a model's history ``revisions`` tells the weights.
    """
    settings = {
        **describe(m, dataset, metrics, seeds, train, batch_size, decoding, revisions),
        "fingerprint": None if revisions else m.fingerprint(),
        "tokenizer": _tokenizer(m.tokenizer),
        "facts_digest": _digest({**dataset_json(dataset), "options": None}),
        "conditions": {metric.name: [asdict(condition) for condition in metric.conditions] for metric in metrics},
        "hardware": torch.cuda.get_device_name(m.device)
        if m.device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
    }
    return strict(  # type: ignore[no-any-return]
        {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command(sys.argv),
            "config": config,
            "stops": list(stops),
            "settings": settings,
        }
    )


def describe(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    seeds: Sequence[int],
    train: TrainConfig | None,
    batch_size: BatchSize,
    decoding: Decoding | None,
    revisions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """How a run was made: what repeats it, and nothing of the machine's paths."""
    plugins = {(e.origin.distribution, e.origin.version) for e in registry().entries}
    drawn = "random weights, drawn from each seed" if len(seeds) > 1 else "random weights, as loaded"
    start = "given weights" if m.factory is None else drawn
    return {
        "model": without_path(m.source),
        "options": dict(m.options),
        "adapter": m.adapter.name,
        "objective": m.adapter.objective,
        "start": start,
        "parameters": sum(p.numel() for name, p in m.model.named_parameters() if "lora_" not in name),
        "dataset": dataset.name,
        "facts": len(dataset.facts),
        "metrics": [metric.name for metric in metrics],
        "seeds": list(seeds),
        "train": {**asdict(train), "objective": objective_of(m, train).name} if train else None,
        "loss": own_objective(type(m.adapter)) if _read(metrics, "training_gradients") else None,
        "batch_size": batch_size,
        "decoding": asdict(decoding or Decoding()) if _read(metrics, "answers") else None,
        "dtype": str(m.dtype).removeprefix("torch."),
        "device": m.device.type,
        "attention": getattr(m.config, "_attn_implementation", None),
        "revision": None if revisions else getattr(m.config, "_commit_hash", None),
        "revisions": dict(revisions or {}) or None,
        "loading": _told(m, of_history=bool(revisions)),
        "plugins": dict(sorted(plugins)),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def _read(metrics: Sequence[Metric], what: str) -> bool:
    return any(what in metric.reads for metric in metrics)


@cache
def versions() -> dict[str, str]:
    """Python's version, and those of the packages that numbers come from."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def config_of(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    seeds: Sequence[int],
    train: TrainConfig | None,
    batch_size: BatchSize,
    limit: int | None,
    decoding: Decoding | None,
    revisions: Sequence[str] = (),
) -> dict[str, Any] | None:
    """The configuration that ``rcprobe run --config`` takes to do the same, ``dataset`` being the one before ``limit``.

    None where the model, the facts or a metric are objects of the caller's.
    """
    names = registry()
    registered = names.names("metrics")
    ours = all(metric.name in registered and names.get("metrics", metric.name) is metric for metric in metrics)
    loadable = m.factory is not None or can_be_loaded(m.source)
    if dataset.options is None or not ours or not loadable:
        return None
    settings = {
        "model": _kept_here(m.source),
        "options": dict(m.options),
        **_told(m, of_history=bool(revisions)),
        "revision": None if revisions else getattr(m.config, "_commit_hash", None),
        "revisions": list(revisions) or None,
        "dataset": dataset.name,
        "dataset_options": dict(dataset.options),
        "limit": limit,
        "metrics": [metric.name for metric in metrics],
        "seeds": len(seeds),
        "batch_size": batch_size,
        "decoding": _given(decoding),
        "device": str(m.device),
        "dtype": str(m.dtype).removeprefix("torch."),
        "train": _given(replace(train, objective=train.objective or m.adapter.loss) if train else None),
    }
    return {key: value for key, value in settings.items() if value not in (None, {})}


def can_be_loaded(source: str) -> bool:
    """Whether a model's source names a file or folder here, or has the form of a hub id."""
    return Path(source).exists() or re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def _given(settings: TrainConfig | Decoding | None) -> dict[str, Any] | None:
    """Settings without those that are None, which TOML can't say."""
    return {key: value for key, value in asdict(settings).items() if value is not None} if settings else None


def command(argv: Sequence[str]) -> str:
    """The command line without paths of this machine; of somebody else's program, its name alone."""
    name = Path(argv[0]).name
    if Path(argv[0]).parts[-2:] == ("rcprobe", "__main__.py"):
        name = "rcprobe"
    if name != "rcprobe":
        return name  # its arguments are not ours to read: one may be a password
    return " ".join([name, *map(_argument, argv[1:])])


def without_path(source: str) -> str:
    """A model's source, an absolute path cut down to its last name."""
    return Path(source).name if os.path.isabs(os.path.expanduser(source)) else source


def _told(m: LoadedModel, *, of_history: bool) -> dict[str, Any]:
    """What ``load`` was told of a checkpoint; of a history, which revision is in place doesn't count."""
    told = {name: value for name, value in m.told.items() if not (of_history and name == "revision")}
    return {name: without_path(value) if isinstance(value, str) else value for name, value in told.items()}


def _kept_here(source: str) -> str:
    """A folder of this machine as one that its reader has beside the configuration: no registered name by chance."""
    return f"./{without_path(source)}" if without_path(source) != source else source


def _argument(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name}={without_path(value)}" if equals else without_path(word)


def _tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hashlib.sha256(type(tokenizer).__name__.encode()).hexdigest()
    state = json.loads(backend.to_str())
    return _digest({name: value for name, value in state.items() if name not in ("truncation", "padding")})


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
