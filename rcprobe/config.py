"""A run's configuration: from a TOML file, or from the manifest of a run that was kept."""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcprobe.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from rcprobe.decoding import Decoding
    from rcprobe.probing.sizes import BatchSize
    from rcprobe.training import TrainConfig


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


def _all(*kinds: type) -> Callable[[Any], bool]:
    one = _is(*kinds)
    return lambda value: isinstance(value, list) and all(map(one, value))


KINDS: Mapping[str, Callable[[Any], bool]] = {
    "a text": _is(str),
    "a whole number": _is(int),
    "a number": _is(int, float),
    'a whole number or "auto"': lambda value: value == "auto" or _is(int)(value),
    "a table": _is(dict),
    "true or false": lambda value: isinstance(value, bool),
    "a list of texts": _all(str),
    "a list of whole numbers": _all(int),
    "a list of numbers": _all(int, float),
}
KEYS = {
    "model": "a text",
    "options": "a table",
    "revision": "a text",
    "revisions": "a list of texts",
    "adapter": "a text",
    "peft": "a text",
    "device_map": "a text",
    "quantization_config": "a table",
    "allow_pickle": "true or false",
    "dataset": "a text",
    "dataset_options": "a table",
    "metrics": "a list of texts",
    "seeds": "a whole number",
    "limit": "a whole number",
    "batch_size": 'a whole number or "auto"',
    "device": "a text",
    "dtype": "a text",
    "out": "a text",
    "train": "a table",
    "decoding": "a table",
}
TRAIN_KEYS = {  # those of TrainConfig, whose import costs seconds
    "steps": "a whole number",
    "lr": "a number",
    "betas": "a list of numbers",
    "weight_decay": "a number",
    "warmup": "a whole number",
    "clip": "a number",
    "batch_size": "a whole number",
    "ema": "a number",
    "probe_every": "a whole number",
    "probe_at": "a list of whole numbers",
    "seed": "a whole number",
    "objective": "a text",
    "maskable": "a text",
    "method": "a text",
    "rank": "a whole number",
    "alpha": "a whole number",
    "targets": "a list of texts",
    "precision": "a text",
    "accumulate": "a whole number",
    "checkpointing": "true or false",
    "lr_grid": "a list of numbers",
}
FINE_TUNING = {  # what --train starts from: facts in text, on weights that know a language
    "steps": 400,
    "lr": 3e-4,
    "betas": [0.9, 0.99],
    "warmup": 20,
    "batch_size": 16,
    "ema": 0.0,
    "probe_every": 100,
}
DECODING_KEYS = {
    "decoder": "a text",
    "steps": "a whole number",
    "temperature": "a number",
    "length": "a whole number",
    "block": "a whole number",
    "seed": "a whole number",
}


@dataclass(frozen=True)
class RunConfig:
    """All that ``rcprobe run`` can be told, as ``rcprobe.run`` and ``rcprobe.load`` take it."""

    model: str = ""
    dataset: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    revisions: list[str] | None = None
    adapter: str | None = None
    peft: str | None = None
    device_map: str | None = None
    quantization_config: Mapping[str, Any] | None = None
    allow_pickle: bool = False
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[str] | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    limit: int | None = None
    batch_size: "BatchSize" = "auto"
    device: str = "cpu"
    dtype: str | None = None
    out: str | None = None

    def with_flags(self, flags: Mapping[str, Any]) -> "RunConfig":
        """This configuration with what was given on the command line; tables are joined, and flags win."""
        given = {name: value for name, value in flags.items() if value is not None}
        tables = {name: {**getattr(self, name), **value} for name, value in given.items() if isinstance(value, dict)}
        return replace(self, **{**given, **tables})

    def training(self) -> "TrainConfig | None":
        """The settings of training; None without a table ``train``. Raises ``UsageError`` for values out of range."""
        if not self.train:
            return None
        from rcprobe.training import TrainConfig

        if "steps" not in self.train:
            raise UsageError("training: steps is missing; add it to [train], or give --steps")
        return TrainConfig(**{name: _as(TRAIN_KEYS[name], value) for name, value in self.train.items()})

    def answering(self) -> "Decoding | None":
        """How answers are written; None without a table ``decoding``. Raises ``UsageError`` for values out of range."""
        from rcprobe.decoding import Decoding

        given = {name: _as(DECODING_KEYS[name], value) for name, value in self.decoding.items()}
        return Decoding(**given) if given else None


def read_config(path: str | Path) -> RunConfig:
    """Read a TOML file, or a run's ``manifest.json``.

    Raises ``UsageError`` naming file and key for what can't be read, isn't known (with the nearest known name) or is
    of the wrong kind.
    """
    path = Path(path)
    try:
        text = path.read_text()
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: can't be read as a configuration ({reason})") from error
    if path.suffix == ".json":
        table = _from_manifest(path, table)
    _check(path, table, KEYS, "")
    _check(path, table.get("train", {}), TRAIN_KEYS, "train.")
    _check(path, table.get("decoding", {}), DECODING_KEYS, "decoding.")
    return RunConfig(**table)


def _from_manifest(path: Path, manifest: Any) -> dict[str, Any]:
    if not isinstance(manifest, dict) or "config" not in manifest:
        raise UsageError(f"{path}: isn't a run's manifest; a configuration of your own is a TOML file")
    config = manifest["config"]
    if not isinstance(config, dict):
        raise UsageError(f"{path}: this run was made of Python objects (a model, facts or a metric); repeat it there")
    return config


def _as(kind: str, value: Any) -> Any:
    """1 is a number too, and a list is kept as what can't change."""
    if isinstance(value, list):
        return tuple(map(float, value)) if kind == "a list of numbers" else tuple(value)
    return float(value) if kind == "a number" else value


def _check(path: Path, table: Mapping[str, Any], known: Mapping[str, str], prefix: str) -> None:
    for name, value in table.items():
        if name not in known:
            raise UnknownNameError(f"setting in {path}", prefix + name, {prefix + key for key in known})
        if not KINDS[known[name]](value):
            raise UsageError(f"{path}: {prefix}{name} is {value!r}; it must be {known[name]}")
