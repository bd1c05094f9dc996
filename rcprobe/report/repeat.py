"""The commands that run a report's run again."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from rcprobe.errors import RunError
from rcprobe.metrics import resolve_metrics
from rcprobe.plugins import registry
from rcprobe.report.report import Report
from rcprobe.visible import visible

FLAGS = {"model", "dataset", "options", "metrics", "train", "seeds", "limit", "revision", "revisions", "peft"} | {
    "batch_size",
    "device",
    "dtype",
}
LOADING = ("options", "device", "dtype", "revision", "peft", "device_map", "quantization_config", "allow_pickle")


def repeat(report: Report) -> list[tuple[str, str]]:
    """(where, text): on the command line if it can be said there, and in Python; nothing if the run isn't described."""
    if "model" not in report.info or "," in report.info["model"]:  # a conversion has no place of its own
        return []
    config = _kept(report) or _described(report)
    said = [("on the command line", _shell(config, report.info))] if "dataset" in config else []
    return [*said, ("in Python", _python(config))]


def _kept(report: Report) -> Mapping[str, Any] | None:
    """The configuration in the run's manifest, if it has one."""
    from rcprobe.store import MANIFEST, RunFolder

    if report.folder is None or not (report.folder / MANIFEST).is_file():
        return None
    try:
        config = RunFolder(report.folder).manifest().get("config")
    except RunError:
        return None  # the page is worth having without it
    return config if isinstance(config, dict) else None


def _described(report: Report) -> dict[str, Any]:
    """A configuration made of what the report knows, without a dataset where its facts were given as objects."""
    info, dataset = report.info, report.dataset
    config = {name: info.get(name) for name in ("model", "options", "metrics", "device", "dtype", "train", "decoding")}
    if dataset.options is not None and dataset.name in registry().names("datasets"):
        config |= {"dataset": dataset.name, "dataset_options": dict(dataset.options)}
    config["revisions"] = list(info.get("revisions") or ()) or None
    for table in ("train", "decoding"):
        config[table] = {name: value for name, value in (config[table] or {}).items() if value is not None}
    return {name: value for name, value in {**config, "seeds": len(report.runs)}.items() if value not in (None, {})}


def _shell(config: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """The flags that say it all, or a configuration file and the command that takes it."""
    train = config.get("train", {})
    usual = set(config.get("metrics", ())) in (set(), {metric.name for metric in resolve_metrics(None)})
    said = set(config) <= FLAGS and config.get("batch_size", "auto") == "auto"
    if not (said and usual and _plain_training(train)):
        return "\n".join(visible(line) for line in ["# run.toml", *_toml(config), "", "rcprobe run --config run.toml"])
    words = ["rcprobe", "run", str(config["model"]), config["dataset"]]
    words += ["--steps", str(train["steps"])] if train else []
    words += ["--revisions", ",".join(config["revisions"])] if "revisions" in config else []
    for name in ("seeds", "limit", "revision", "peft"):
        words += [f"--{name}", str(config[name])] if name in config else []
    for name, value in config.get("options", {}).items():
        words += ["--option", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    words += ["--device", config["device"]] if config.get("device", "cpu") != "cpu" else []
    drawn = str(info.get("start", "")).startswith("random") and config.get("dtype") == "float32"
    words += ["--dtype", config["dtype"]] if "dtype" in config and not drawn else []
    return visible(shlex.join(words))


def _toml(config: Mapping[str, Any]) -> list[str]:
    plain = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in config.items() if isinstance(value, Mapping) and value}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return lines


def _python(config: Mapping[str, Any]) -> str:
    loading = [repr(config["model"])]
    loading += [f"{name}={config[name]!r}" for name in LOADING if name in config]
    lines = ["import rcprobe", f"m = rcprobe.load({', '.join(loading)})"]
    if "dataset" in config:
        options = [repr(dict(config["dataset_options"]))] if config.get("dataset_options") else []
        lines.append(f"facts = rcprobe.load_dataset({', '.join([repr(config['dataset']), *options])})")
    else:
        lines.append("# facts: those that were given to this run; the table above has their texts")
    lines += ["report = rcprobe.run(", "    m,", "    facts,"]
    lines += [f"    metrics={list(config['metrics'])!r},"] if "metrics" in config else []
    if config.get("train"):
        given = [f"{k}={tuple(v) if isinstance(v, list) else v!r}" for k, v in config["train"].items()]
        lines.append(f"    train=rcprobe.TrainConfig({', '.join(given)}),")
    if config.get("decoding"):
        given = [f"{name}={value!r}" for name, value in config["decoding"].items()]
        lines.append(f"    decoding=rcprobe.Decoding({', '.join(given)}),")
    lines += [f"    {name}={config[name]!r}," for name in ("revisions", "seeds", "limit") if name in config]
    return "\n".join(visible(line) for line in [*lines, ")"])


def _plain_training(train: Mapping[str, Any]) -> bool:
    """Whether all but the number of steps is as ``TrainConfig`` has it by itself."""
    if not train:
        return True
    from dataclasses import asdict

    from rcprobe.training import TrainConfig

    usual = {name: value for name, value in asdict(TrainConfig(steps=train["steps"])).items() if value is not None}
    return bool(json.loads(json.dumps(dict(train))) == json.loads(json.dumps(usual)))
