"""The one-layer study (§5): which models are trained, how, and their numbers by seed and step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rcprobe.files import safe_name
from rcprobe.plugins import registry
from rcprobe_plugins.datasets.letters import letters

if TYPE_CHECKING:
    from rcprobe.report import Report
    from rcprobe.training import TrainConfig

LENGTHS = (10, 20, 30, 40)  # of Tab. 1
PAPER = ("absolute", "rope", "alibi")  # of Tab. 2, in its order
FULL, LETTERS, PROBABILITY = "full vocabulary", "52 letters", "P(right letter | a letter)"
ROOM = 64  # tokens that a tiny model holds unless told otherwise
LEARNED = 90.0  # % of forward queries under which a seed is named
Direction = Literal["forward", "reverse"]


@dataclass(frozen=True)
class Setting:
    """A one-layer model on sequences of one length."""

    model: str
    encoding: str
    length: int

    @property
    def label(self) -> str:
        """As tables and figures name it."""
        kind = "" if self.model == "radd" else f" {self.model}"
        return f"{self.encoding}{kind}, L = {self.length}"

    @property
    def options(self) -> dict[str, Any]:
        """Of the model: its encoding, and room for the sequence."""
        room = {"max_length": self.length} if self.length > ROOM else {}
        return {"encoding": self.encoding, **room}

    @property
    def file(self) -> str:
        """A file's name of its own, whatever the encoding's name holds."""
        return f"{safe_name(self.label)}-{sha256(repr(self).encode()).hexdigest()[:8]}.safetensors"

    @property
    def pairing(self) -> Literal["same_target", "swapped"]:
        """What accuracy is of: a masked model is asked for a both ways, a causal one for b and for a."""
        return "same_target" if self.model == "radd" else "swapped"


def encodings(quick: bool = False) -> list[str]:
    """The paper's three first, then every other registered one; ``quick`` leaves out bundled ones that aren't its."""
    mine = registry().entry("encodings", PAPER[0]).origin
    others = [name for name in registry().names("encodings") if name not in PAPER]
    return [*PAPER, *(n for n in others if not quick or registry().entry("encodings", n).origin != mine)]


def recipe(setting: Setting, quick: bool = False) -> "TrainConfig":
    """How a model is trained, the same for every encoding: RADD's t-DCE (a causal model: next-token cross-entropy),
    AdamW at 1e-3 (β2 .98), batch 64, EMA .999, clipped at norm 1 after 100 steps of warm-up. The loss is a sum over
    tokens, and its gradient's norm grows with the length: to clip nearly every step leaves seeds stuck. So a masked
    model beyond length 10 is clipped at 30. From 11 to 20 it warms up for 1,000 steps, without which one ALiBi seed
    stays stuck at 20; at 40, where RoPE alone was tried, that left two seeds of eight under 97 % of forward answers.
    """
    from rcprobe.training import TrainConfig

    masked = setting.model == "radd"
    clip = 30.0 if masked and setting.length > 10 else 1.0
    warmup = 1000 if masked and 10 < setting.length <= 20 else 100
    if quick:
        return TrainConfig(steps=3000, clip=clip, warmup=warmup, probe_at=(1000,))
    if setting.length <= 10:
        return TrainConfig(steps=10_000, clip=clip, warmup=warmup, probe_at=(300, 1000, 3000, 5000))
    if not masked:
        # at length 10 its answers among letters hardly move after 3,000
        return TrainConfig(steps=5000, clip=clip, warmup=warmup, probe_at=(1000,))
    # a probe costs as length to the power of two
    stops, steps = (1000, 4000 if setting.length <= 20 else 5000), 10_000 if setting.length <= 30 else 15_000
    return TrainConfig(steps=steps, clip=clip, warmup=warmup, probe_at=stops)


def train_settings(
    settings: Sequence[Setting],
    seeds: int,
    train: "Callable[[Setting], TrainConfig]" = recipe,
    *,
    kept: Path | None = None,
    show: bool = False,
) -> "dict[Setting, Report]":
    """Train every setting as ``train`` says, on seeds 0 … ``seeds`` − 1, probe it, and judge it.

    What is trained goes into the folder ``kept``, and what that holds already isn't trained again.
    Before anything is trained, raises ``DataError`` for a length without room for a pair, ``UnknownNameError`` for an
    encoding nobody registered, ``PluginError`` or ``VerificationError`` for one that lacks part of its contract. Raises
    ``RunError`` or ``RunChangedError`` for a kept training that is damaged or another one.
    """
    from rcprobe_plugins.studies.jobs import Job, start_server
    from rcprobe_plugins.studies.reports import run_reports

    for setting in settings:
        registry().entry("encodings", setting.encoding)
        letters(setting.length)
    start_server()
    _try_out(settings)
    longest_first = sorted(dict.fromkeys(settings), key=lambda s: -s.length)  # so that no core waits at the end
    jobs = [
        Job(
            s.label, s.model, s.options, "letters", {"length": s.length}, train(s),
            tuple(range(seeds)), kept / s.file if kept is not None else None,
        )
        for s in longest_first
    ]  # fmt: skip
    reports = dict(zip(longest_first, run_reports(jobs, show), strict=True))
    return {s: reports[s] for s in settings}


def _try_out(settings: Sequence[Setting]) -> None:
    """Build a model with each encoding; that takes a moment, and a worker would only fail when its turn comes."""
    from rcprobe.loading import load

    for setting in dict.fromkeys(replace(s, length=max(s.length, ROOM)) for s in settings):
        load(setting.model, options=setting.options)


def accuracies(report: "Report", setting: Setting, reading: str, direction: Direction) -> dict[int, list[float]]:
    """Step → the share of right answers of each seed that finished, in percent."""
    way = ("forward", "reverse").index(direction)
    found: dict[int, list[float]] = {}
    for run in finished(report):
        for step in run.steps:
            found.setdefault(step.step, []).append(100 * step.accuracy[setting.pairing][reading][way])
    return found


def probabilities(report: "Report", direction: Direction) -> dict[int, list[float]]:
    """Step → each seed's mean probability of the right letter, given that it isn't the placeholder, in percent."""
    found: dict[int, list[float]] = {}
    for run in finished(report):
        for step in run.steps:
            for measured in step.measured:
                if measured.metric == "reverse_probability":
                    log = measured.columns[f"{direction}, {LETTERS}"]
                    found.setdefault(step.step, []).append(100 * float(np.nanmean(np.exp(log))))
    return found


def finished(report: "Report") -> list[Any]:
    """The seeds that reached their last step."""
    return [run for run in report.runs if run.failure is None]


def rows(reports: "Mapping[Setting, Report]") -> Iterator[dict[str, Any]]:
    """Every accuracy and probability, one row a number: setting, step, seed, reading, pairing, direction, value in
    percent. Probabilities are of the pairing "swapped", whose forward query asks for b, whatever accuracy is of.
    """
    directions: tuple[Direction, ...] = ("forward", "reverse")
    for setting, report in reports.items():
        start = {"model": setting.model, "encoding": setting.encoding, "length": setting.length}
        seeds = [run.seed for run in finished(report)]
        for direction in directions:
            read = {r: accuracies(report, setting, r, direction) for r in report.accuracy.get(setting.pairing, {})}
            for reading, steps in {**read, PROBABILITY: probabilities(report, direction)}.items():
                pairing = "swapped" if reading == PROBABILITY else setting.pairing
                for step, values in steps.items():
                    for seed, value in zip(seeds, values, strict=True):
                        yield {
                            **start, "step": step, "seed": seed, "reading": reading, "pairing": pairing,
                            "direction": direction, "percent": value,
                        }  # fmt: skip


def notes(reports: "Mapping[Setting, Report]") -> tuple[str, ...]:
    """What must be known first of each setting: seeds that diverged or are stuck, what wasn't measured (but for the
    accuracy that its tables don't read), and which seeds know the letters but answer the placeholder in their stead.
    """
    said = []
    for setting, report in reports.items():
        unread = "swapped" if setting.pairing == "same_target" else "same_target"
        said += [f"{setting.label}: {n}" for n in report.notes if not n.startswith(f"accuracy ({unread}) was not")]
        if setting.model != "radd" or not finished(report):
            continue
        found = accuracies(report, setting, FULL, "forward")
        last = zip(finished(report), found[max(found)], strict=True)
        low = [f"{run.seed} ({percent:.1f} %)" for run, percent in last if percent < LEARNED]
        if low:
            said.append(
                f"{setting.label}: forward accuracy over the full vocabulary is under {LEARNED:.0f} % in seed "
                f"{', '.join(low)}; the average keeps it"
            )
    return tuple(said)
