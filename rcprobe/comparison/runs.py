"""The runs that are set side by side: each under a name, and those that asked the same facts together."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rcprobe.errors import UsageError
from rcprobe.report import Report, load_report
from rcprobe.report.report import FULL
from rcprobe.visible import visible

Given = Report | str | Path


@dataclass(frozen=True)
class Run:
    """A run under its name. ``model`` is what heads its column: the model, and the settings that tell it apart."""

    name: str
    report: Report
    model: str = ""

    @cached_property
    def tokenizer(self) -> str:
        """What tells tokenizers apart: the digest in the manifest of a kept run, the model's name of any other."""
        from rcprobe.store import MANIFEST, RunFolder

        folder = self.report.folder
        if folder is None or not (folder / MANIFEST).is_file():
            return f"of {self.report.info.get('model')}"
        return str(RunFolder(folder).manifest()["settings"].get("tokenizer"))


@dataclass(frozen=True)
class Group:
    """Runs that were asked the same facts, read the same way; only they are ever compared."""

    label: str
    runs: tuple[Run, ...]

    @property
    def reading(self) -> str:
        """The set of rivals that decides."""
        return next(iter(self.runs[0].report.dataset.readings), FULL)

    @property
    def replicate(self) -> str:
        """What repeats the experiment: ``seed`` or ``fact``."""
        return self.runs[0].report.dataset.replicate


def gather(given: Sequence[Given] | Mapping[str, Given]) -> tuple[Run, ...]:
    """Load runs and name them: by a mapping's keys, else by their folders.

    Raises ``UsageError`` for fewer than two, an empty name, or two of the same name; ``RunError`` for a run that
    isn't finished or is damaged.
    """
    named = given.items() if isinstance(given, Mapping) else [(None, one) for one in given]
    if len(named) < 2:
        raise UsageError(
            f"{len(named)} run{'s'[: len(named) != 1]} named; a comparison takes two or more "
            "(rcprobe report RUN shows one)"
        )
    found = [(name, one if isinstance(one, Report) else _load(one)) for name, one in named]
    runs = [Run(visible(name if name is not None else _name(report)), report) for name, report in found]
    for name, count in Counter(run.name for run in runs).items():
        if count > 1:
            places = [str(run.report.folder or "a report in memory") for run in runs if run.name == name]
            raise UsageError(
                f"{count} runs are called {name!r} ({', '.join(dict.fromkeys(places))}); name each once, "
                "and rename folders that share a name (in Python, name them: rcprobe.compare({'name': folder, …}))"
            )
    return tuple(Run(run.name, run.report, label) for run, label in zip(runs, _models(runs), strict=True))


def group(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Runs by what they were asked, in the order in which it first appears."""
    found: list[list[Run]] = []
    for run in runs:
        same = next((members for members in found if _same(members[0], run)), None)
        if same is None:
            found.append([run])
        else:
            same.append(run)
    names = Counter(members[0].report.dataset.name for members in found)
    labels = [_label(members[0].report, names) for members in found]
    clash = Counter(labels)
    texts = [
        label if clash[label] == 1 else f"{label} (as in {m[0].name})" for label, m in zip(labels, found, strict=True)
    ]
    return tuple(Group(text, tuple(members)) for text, members in zip(texts, found, strict=True))


def settings(report: Report) -> dict[str, str]:
    """How a run was made, flat: ``train.lr`` → 0.001. What names the model or the data is left out."""
    kept = {k: v for k, v in report.info.items() if k not in _NAMING}
    return {visible(key): visible(value) for key, value in _flat(kept) if value not in (None, {}, [])}


_NAMING = {"model", "dataset", "facts", "metrics", "parameters", "versions", "plugins", "threads", "seeds"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _load(one: str | Path) -> Report:
    if not str(one).strip():
        raise UsageError("a run's folder has an empty name")
    return load_report(one)


def _name(report: Report) -> str:
    if report.folder is None:
        return f"{report.info.get('model', 'a model')} on {report.dataset.name}"
    return os.path.basename(os.path.abspath(report.folder)) or str(report.folder)  # a link keeps its own name


def _same(a: Run, b: Run) -> bool:
    x, y = a.report.dataset, b.report.dataset
    return (x.name, x.facts, x.readings, x.replicate) == (y.name, y.facts, y.readings, y.replicate)


def _label(report: Report, names: Mapping[str, int]) -> str:
    """The dataset's name; where several share it, what may tell them apart."""
    dataset = report.dataset
    if names[dataset.name] == 1:
        return visible(dataset.name)
    options = [f"{key} {value}" for key, value in (dataset.options or {}).items()]
    return visible(", ".join([dataset.name, *options, f"{len(dataset.facts):,} facts"]))


def _models(runs: Sequence[Run]) -> list[str]:
    """Each run's model, with the settings in which runs of one model on the same facts differ."""
    telling: dict[str, dict[str, None]] = {}
    for one in group(runs):
        for model in {_model(run) for run in one.runs}:
            own = [settings(run.report) for run in one.runs if _model(run) == model]
            keys = {k: None for found in own for k in found if len({s.get(k) for s in own}) > 1}
            telling.setdefault(model, {}).update(keys)
    labels = [_with_settings(run, telling[_model(run)]) for run in runs]
    cells = Counter((label, _asked(run)) for label, run in zip(labels, runs, strict=True))
    return [
        label if cells[label, _asked(run)] == 1 else f"{label} ({run.name})"
        for label, run in zip(labels, runs, strict=True)
    ]


def _asked(run: Run) -> int:
    return hash((run.report.dataset.name, run.report.dataset.facts))


def _model(run: Run) -> str:
    return visible(run.report.info.get("model", "a model"))


def _with_settings(run: Run, keys: Iterable[str]) -> str:
    own = settings(run.report)
    told = [f"{key.rpartition('.')[2]} {own[key]}" for key in keys if key in own]
    return ", ".join([_model(run), *told])
