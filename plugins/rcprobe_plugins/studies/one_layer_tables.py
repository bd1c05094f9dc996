"""Tab. 1 and 2 of the paper beside ours: every reading, every seed, along training, and why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np

from rcprobe.report import Report, words
from rcprobe.report.sheet import Grid, Sheet, even
from rcprobe.report.tables import signature_rows
from rcprobe.signatures import Signature
from rcprobe.statistics import Estimate, over_seeds
from rcprobe_plugins.studies.one_layer import (
    FULL,
    PAPER,
    PROBABILITY,
    Setting,
    accuracies,
    finished,
    notes,
    probabilities,
    rows,
)
from rcprobe_plugins.studies.one_layer_figures import figures
from rcprobe_plugins.studies.published import published

FALL = 5.0  # percentage points under which a mean is called steady
ROUNDING = 1e-9  # by which a correlation of 1 may miss it
WHY = ("storage", "attention_correlation", "gradient_alignment")
Paper = Mapping[Setting, tuple[float, float]]
Reports = Mapping[Setting, Report]

EXPLAINED = (
    "Forward asks in the order of training, reverse in the order never seen. Full vocabulary: the answer competes with "
    f"the placeholder 0 too; 52 and 26 letters: with letters alone. {PROBABILITY}: the probability of the right letter "
    "given that the answer is not the placeholder, its mean over queries (in curves, the geometric mean); its forward "
    "query asks for the capital from its letter, that of a masked model's accuracy for the letter from its capital. "
    "The paper doesn't say which reading its figures are of.",
    "Storage: was evidence→answer written into the weights? Routing: do forward and reverse attention scores go "
    "together over facts? Dynamics: does a forward step serve the reverse query, beyond the same answer from other "
    "evidence? Identity: true by construction, trained or not. After an effect size d_z stand the means that it "
    "contrasts, W̃[a, b] and that of other facts; dynamics are cos(matched) − cos(same target, other evidence), and the "
    "control is the latter. Where places only add to scores, r of scores is 1 by construction, and r of log weights is "
    "shown.",
)
CAUSAL = (
    "A causal model's forward accuracy over the full vocabulary is rightly low: after a letter its capital may stand "
    "at any later place, so what comes next is most often another 0. Greedy to the end: whether it writes the right "
    "letter when it goes on by itself from the evidence. It can't be asked for one target both ways, as it sees what "
    "stands before a target alone; so routing and dynamics, which compare such queries, are undefined."
)


def tab1(reports: Reports) -> Sheet:
    """Tab. 1: the masked model with RoPE and the causal one, by length."""
    paper: dict[Setting, tuple[float, float]] = {}
    for row in published("tab1").to_dict("records"):
        length = int(row["length"])
        paper[Setting("radd", "rope", length)] = (row["mdm_forward"], row["mdm_reverse"])
        paper[Setting("gpt2-mini", "absolute", length)] = (row["arm_forward"], row["arm_reverse"])
    sheet = _sheet("tab1", "Tab. 1: masked diffusion with RoPE, and a causal model", reports, paper)
    return replace(sheet, notes=(*sheet.notes, CAUSAL))


def tab2(reports: Reports) -> Sheet:
    """Tab. 2: the masked model by encoding and length."""
    paper = {
        Setting("radd", row["encoding"], int(row["length"])): (row["forward"], row["reverse"])
        for row in published("tab2").to_dict("records")
    }
    sheet = _sheet("tab2", "Tab. 2: which encodings transfer", reports, paper)
    lengths = dict.fromkeys(setting.length for setting in reports)
    order = tuple(_order({s: r for s, r in reports.items() if s.length == length}) for length in lengths)
    return replace(sheet, answer=(*order, *sheet.answer))


def fig3(reports: Reports) -> Sheet:
    """Fig. 3: routing, dynamics and outcome of the masked model with RoPE, by length and along training."""
    return Sheet(
        "fig3",
        "Fig. 3: score correlation, gradient cosine and probability, with RoPE",
        tuple(_because(reports)),
        (_why(reports), _training(reports), _seeds(reports)),
        _values(reports),
        (*notes(reports), EXPLAINED[1]),
        figures(reports),
    )


def _sheet(key: str, title: str, reports: Reports, paper: Paper) -> Sheet:
    grids = (_outcome(reports, paper), _why(reports), _training(reports), _seeds(reports))
    answer = (_whole(reports), *_moves(reports), *_because(reports))
    return Sheet(key, title, answer, grids, _values(reports), (*notes(reports), *EXPLAINED), figures(reports))


def _values(reports: Reports) -> tuple[Mapping[str, object], ...]:
    """Accuracy and probability of each seed at each step, and each signature's findings, under one set of columns."""
    signatures = (
        {"model": s.model, "encoding": s.encoding, "length": s.length, **row}
        for s, report in reports.items()
        for row in signature_rows(report)
    )
    return even([*rows(reports), *signatures])


def _outcome(reports: Reports, paper: Paper) -> Grid:
    body = []
    for setting, report in reports.items():
        printed = paper.get(setting)
        said = "–" if printed is None else f"{printed[0]:.1f} / {printed[1]:.1f}"
        for reading in report.accuracy.get(setting.pairing, {}):
            forward, reverse = (
                accuracies(report, setting, reading, "forward"),
                accuracies(report, setting, reading, "reverse"),
            )
            body.append((setting.label, reading, said, _spread(_end(forward)), _spread(_end(reverse))))
        body.append(
            (
                setting.label,
                PROBABILITY,
                "–",
                _spread(_end(probabilities(report, "forward"))),
                percent(_end(probabilities(report, "reverse"))),
            )
        )
    headings = ("model", "reading", "paper: forward / reverse", "forward, %", "reverse, %")
    return Grid(
        "Mean ± standard deviation (range over seeds), at the last step; [95 % interval]", headings, tuple(body)
    )


def _why(reports: Reports) -> Grid:
    body = []
    for setting, report in reports.items():
        found = [said_signature(report.signatures[name]) for name in WHY if name in report.signatures]
        body.append((setting.label, *found, *["–"] * (len(WHY) - len(found))))
    return Grid(
        "Why: each signature's verdict, estimate and 95 % interval",
        ("model", "storage, W̃[a, b]", "routing, r of scores", "dynamics, difference of cosines"),
        tuple(body),
    )


def said_signature(signature: Signature) -> str:
    """A signature in a cell: verdict, estimate, interval, and what it is held against."""
    if not signature.findings:
        return signature.verdict
    first = signature.findings[0]
    correlations = [f for f in signature.findings if f.condition.statistic == "correlation" and f.condition.judged]
    # where all are 1, that is the verdict; where some are, the others are what was found
    finding = next((f for f in correlations if f.estimate.value < 1 - ROUNDING), first)
    of = "" if finding is first else f"{words.label(finding)} "
    return f"{signature.verdict}: {of}{words.interval(finding)}; {words.control(finding)}"


def _training(reports: Reports) -> Grid:
    """Reverse accuracy in each reading, and probability, at each probed step."""
    steps = sorted({step for r in reports.values() for run in finished(r) for step in (s.step for s in run.steps)})
    body = []
    for setting, report in reports.items():
        read = {r: accuracies(report, setting, r, "reverse") for r in report.accuracy.get(setting.pairing, {})}
        for reading, found in {**read, PROBABILITY: probabilities(report, "reverse")}.items():
            body.append((setting.label, reading, *(_spread(found[s]) if s in found else "" for s in steps)))
    return Grid("Reverse queries along training, %", ("model", "reading", *(f"step {s}" for s in steps)), tuple(body))


def _seeds(reports: Reports) -> Grid:
    """Each seed at the last step: forward and reverse over the full vocabulary, and the reverse probability."""
    seeds = sorted({run.seed for report in reports.values() for run in report.runs})
    body = []
    for setting, report in reports.items():
        columns = [
            _end(accuracies(report, setting, FULL, "forward")),
            _end(accuracies(report, setting, FULL, "reverse")),
            _end(probabilities(report, "reverse")),
        ]
        done = [run.seed for run in finished(report)]
        each = dict(zip(done, zip(*columns, strict=True), strict=True))
        cells = (" / ".join(f"{v:.1f}" for v in each[seed]) if seed in each else "failed" for seed in seeds)
        body.append((setting.label, *cells))
    title = f"Every seed: forward / reverse, full vocabulary, / reverse {PROBABILITY}, %"
    return Grid(title, ("model", *(f"seed {seed}" for seed in seeds)), tuple(body))


def _order(reports: Reports) -> str:
    """Which encoding transfers how well at one length, and between which neighbours the seeds decide."""
    found = {setting: over_seeds(_end(probabilities(report, "reverse"))) for setting, report in reports.items()}
    ranked = sorted((s for s in found if found[s].value == found[s].value), key=lambda s: -found[s].value)
    if not ranked:
        return "No seed finished, so nothing can be said of transfer."
    said = [f"{s.encoding} {percent(_end(probabilities(reports[s], 'reverse')))} %" for s in ranked]
    start = f"L = {ranked[0].length}: reverse {PROBABILITY}, mean [95 % interval over seeds]: {', '.join(said)}."
    paper = [s for s in ranked if s.encoding in PAPER]
    verdicts = {"Of the paper's encodings": combinations(paper, 2), "Between neighbours": pairwise(ranked)}
    if paper == ranked:  # there is nobody else
        del verdicts["Between neighbours"]
    return " ".join([start, *(_apart(found, who, pairs) for who, pairs in verdicts.items())]).rstrip()


def _apart(found: Mapping[Setting, Estimate], who: str, pairs: Iterable[tuple[Setting, Setting]]) -> str:
    """Between which two of a ranking the seeds decide."""
    between: dict[bool, list[str]] = {True: [], False: []}
    for better, worse in pairs:
        between[found[better].low > found[worse].high].append(f"{better.encoding} over {worse.encoding}")
    names = {True: "intervals apart", False: "not decided"}
    verdict = "; ".join(f"{names[apart]}: {', '.join(said)}" for apart, said in between.items() if said)
    return f"{who}, {verdict}." if verdict else ""


def _moves(reports: Reports) -> list[str]:
    """Whose reverse accuracy fell again along training, its seeds' fall clear of zero, in one sentence; none where
    nobody's did.
    """
    said = []
    for setting, report in reports.items():
        found = accuracies(report, setting, FULL, "reverse")
        means = {step: float(np.mean(values)) for step, values in found.items()}
        if not means:
            continue
        best, last = max(means, key=lambda step: means[step]), max(means)
        fall = over_seeds(np.subtract(found[best], found[last]))
        if fall.value >= FALL and fall.low > 0:
            said.append(f"{setting.label} {means[best]:.0f} % at step {best}, {means[last]:.0f} % at step {last}")
    if not said:
        return []
    return [f"Over the full vocabulary it depends on when one stops, and falls again over seeds: {'; '.join(said)}."]


def _because(reports: Reports) -> list[str]:
    """The verdicts on what transfer would need, each with its models; a reason, where they have one in common."""
    alike: dict[str, dict[str, str]] = {}
    for setting, report in reports.items():
        signatures = [s for name, s in report.signatures.items() if name in WHY]
        verdicts = ", ".join(f"{s.title} {s.verdict}" for s in signatures)
        whys = dict.fromkeys(s.why for s in signatures if s.why)
        alike.setdefault(verdicts, {})[setting.label] = "; ".join(whys)
    said = []
    for verdicts, why in alike.items():
        reasons = set(why.values()) - {""}
        common = f" ({reasons.pop()})" if len(reasons) == 1 else ""
        said.append(f"{'; '.join(why)}: {verdicts}{common}.")
    return said


def _whole(reports: Reports) -> str:
    """What a model answers when every token may be the answer."""
    ends = {s: _end(accuracies(report, s, FULL, "reverse")) for s, report in reports.items()}
    said = "; ".join(f"{s.label} {_spread(values)} %" for s, values in ends.items())
    return f"Reverse accuracy at the last step when the placeholder may be answered too ({FULL}): {said}."


def _end(steps: Mapping[int, Sequence[float]]) -> list[float]:
    """The values of the last step."""
    return list(steps[max(steps)]) if steps else []


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, low, high = float(np.mean(values)), min(values), max(values)
    if len(values) < 2 or f"{low:.1f}" == f"{high:.1f}":
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {np.std(values, ddof=1):.1f} ({low:.1f}–{high:.1f})"


def percent(values: Sequence[float]) -> str:
    """A mean over seeds with its 95 % interval, within 0 … 100."""
    if not values:
        return "–"
    found = over_seeds(values)
    low, high = max(found.low, 0.0), min(found.high, 100.0)
    return f"{found.value:.1f}" + ("" if found.low != found.low else f" [{low:.1f}, {high:.1f}]")
