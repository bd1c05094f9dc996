"""What a report says of itself: what was left out and why, how it was made, and the command that makes it again."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rcprobe.report.report import Report
from rcprobe.report.values import finished
from rcprobe.report.visible import visible
from rcprobe.signatures import Signature


@dataclass(frozen=True)
class Coverage:
    """What was asked and what it lost.

    ``asked`` rows are (pairing, pairs asked, excluded, share); ``excluded`` (pairing, reason, pairs); ``lines`` all
    else that is missing.
    """

    asked: list[tuple[str, int, int, str]]
    excluded: list[tuple[str, str, int]]
    lines: list[str]


def coverage(report: Report) -> Coverage:
    """Pairs asked and excluded at the last step, failed seeds, held-out facts, and shares without a value."""
    runs = finished(report)
    sizes: dict[str, int] = {}
    for measured in runs[0].steps[-1].measured if runs else ():
        sizes[measured.pairing] = max(sizes.get(measured.pairing, 0), len(measured.table.fact))
    asked = []
    for pairing, count in sizes.items():
        lost = sum(report.excluded.get(pairing, {}).values())
        asked.append((pairing, count, lost, f"{lost / count:.0%}" if count else "–"))
    excluded = [
        (visible(p), visible(reason), n) for p, reasons in report.excluded.items() for reason, n in reasons.items()
    ]
    lines = [
        f"seed {run.seed} failed and is in no average: {visible(run.failure)}" for run in report.runs if run.failure
    ]
    lines += [f"seed {run.seed} was never probed" for run in report.runs if not run.steps and not run.failure]
    held = sum(not fact.trained for fact in report.dataset.facts)
    if held:
        lines.append(f"{held:,} facts were held out of training; signatures and figures leave them out")
    for run in runs[:1]:
        lines += [f"{visible(name)} wasn't measured: {visible(why)}" for name, why in run.steps[-1].skipped.items()]
    lines += [line for signature in report.signatures.values() for line in _undefined(signature)]
    return Coverage(asked, excluded, lines)


def _undefined(signature: Signature) -> list[str]:
    found = [
        (f.condition.label, f.undefined_pairs)
        for f in signature.findings
        if f.undefined_pairs > 0 and not math.isnan(f.undefined_pairs)
    ]
    return [
        f"{visible(signature.title)} ({signature.pairing}), {visible(label)}: {share:.0%} of pairs have no value"
        for label, share in found
    ]


def settings(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections of (name, value): what was run, how it was trained, the seeds' weights, versions."""
    info = {key: value for key, value in report.info.items() if key not in ("train", "versions", "plugins", "seeds")}
    sections = [("Run", _pairs(info))]
    if report.info.get("train"):
        sections.append(("Training", _pairs(report.info["train"])))
    seeds = []
    for run in report.runs:
        steps = f"{len(run.steps)} probed step{'s'[: len(run.steps) != 1]}"
        state = f"failed: {visible(run.failure)}" if run.failure else "finished"
        seeds.append((f"seed {run.seed}", f"{state}, {steps}; weights {visible(run.fingerprint) or 'unknown'}"))
    sections.append(("Seeds, and fingerprints of the weights last probed", seeds))
    versions = {**report.info.get("versions", {}), **report.info.get("plugins", {})}
    sections.append(("Versions", _pairs(versions)))
    return [(title, rows) for title, rows in sections if rows]


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (visible(name).replace("_", " "), _said(value)) for name, value in values.items() if value not in (None, {})
    ]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{visible(k)} = {visible(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(visible(v) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else visible(value)


def repeat(report: Report) -> list[tuple[str, str]]:
    """(where, text): the command that repeats the run if the command line can say it, and the same in Python."""
    info = report.info
    if "model" not in info:
        return []
    commands = []
    shell = _shell(report, info)
    if shell:
        commands.append(("on the command line", shell))
    commands.append(("in Python", _python(report, info)))
    return commands


def _shell(report: Report, info: Mapping[str, Any]) -> str | None:
    train = info.get("train")
    if not _registered(report) or (train and not _plain_training(train)):
        return None
    words = ["rcprobe", "run", str(info["model"]), report.dataset.name]
    words += ["--steps", str(train["steps"])] if train else []
    words += ["--seeds", str(len(report.runs))]
    words += ["--limit", str(len(report.dataset.facts))]
    for name, value in info.get("options", {}).items():
        words += ["--option", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    words += ["--device", info["device"]] if info.get("device", "cpu") != "cpu" else []
    words += ["--dtype", info["dtype"]] if info.get("dtype", "float32") != "float32" else []
    return visible(shlex.join(words))


def _python(report: Report, info: Mapping[str, Any]) -> str:
    options = dict(info.get("options", {}))
    loading = [repr(str(info["model"]))]
    loading += [f"options={options!r}"] if options else []
    loading += [
        f"{k}={info[k]!r}" for k, usual in (("device", "cpu"), ("dtype", "float32")) if info.get(k, usual) != usual
    ]
    data = repr(report.dataset.name) if _registered(report) else "facts"
    lines = ["import rcprobe", f"m = rcprobe.load({', '.join(loading)})", "report = rcprobe.run(", f"    m, {data},"]
    if info.get("metrics"):
        lines.append(f"    metrics={list(info['metrics'])!r},")
    if info.get("train"):
        given = ", ".join(f"{name}={value!r}" for name, value in info["train"].items())
        lines.append(f"    train=rcprobe.TrainConfig({given}),")
    lines += [f"    seeds={len(report.runs)}, limit={len(report.dataset.facts)},", ")"]
    note = [] if _registered(report) else ["# facts: the ones given to this run; their texts are in the table above"]
    return visible_lines([*note, *lines])


def visible_lines(lines: list[str]) -> str:
    """Lines of code; what is invisible inside one is spelt out."""
    return "\n".join(visible(line) for line in lines)


def _registered(report: Report) -> bool:
    from rcprobe.plugins import registry

    return report.dataset.name in registry().names("datasets")


def _plain_training(train: Mapping[str, Any]) -> bool:
    """Whether all but the number of steps is as ``TrainConfig`` has it by itself."""
    from dataclasses import asdict

    from rcprobe.training import TrainConfig

    return dict(train) == asdict(TrainConfig(steps=train["steps"]))
