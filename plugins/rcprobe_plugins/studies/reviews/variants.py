"""Questions (a)–(d): the encoding, the depth, the objective, what may be masked; all else fixed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from rcprobe.report.panels import Curves, Dots
from rcprobe.statistics import over_seeds
from rcprobe.training import TrainConfig
from rcprobe.training.objectives import OBJECTIVES
from rcprobe_plugins.studies.reviews.answer import (
    HOW,
    Answer,
    by_label,
    not_trained,
    paired,
    said,
    series,
    shown,
    verdict,
)
from rcprobe_plugins.studies.reviews.cells import Cell, Size, outcomes, signatures, table

ENCODINGS = {
    "relative": ("rope", "t5"),
    "absolute": ("absolute", "sinusoidal"),
    "mirror identity": ("alibi", "nope"),
    "position in values": ("turned-values",),
}
DEPTHS = (1, 2, 4, 8)
DEEP_RATE = 1e-3  # at most: at 3e-3 models of eight layers don't learn
P = "P(right letter | a letter)"
CHANCE = 1 / 52  # of P, among the letters
REVERSE, FORWARD = "reverse P", "forward P"


def encodings(size: Size) -> Answer:
    """(a) Relative against absolute against no encoding, all else fixed."""
    names = [name for group in ENCODINGS.values() for name in group]
    cells = [Cell(name, {"encoding": name}, size.train) for name in names]
    rows = table(cells, size, size.letters(), outcomes)
    of = by_label(rows, REVERSE)
    wide = rows.pivot(index="seed", columns="cell", values=REVERSE)
    relative, absolute = (wide[list(ENCODINGS[kind])].mean(axis=1, skipna=False) for kind in ("relative", "absolute"))
    gap = over_seeds(list(relative - absolute))
    decided = verdict(gap, "the first two transfer more", "the last two transfer more", "which two transfer more")
    left = verdict(
        over_seeds(list(absolute - CHANCE)),
        "the last two are above chance, so that at this stop mitigation hasn't vanished without relative positions",
        "the last two are below chance",
        "whether any mitigation is left without relative positions",
    )
    says = (
        f"Reverse {P} is {shown(of['rope'])} under RoPE, {shown(of['t5'])} under T5's bias, {shown(of['absolute'])} "
        f"under learned absolute positions and {shown(of['sinusoidal'])} under sinusoidal ones (chance {CHANCE:.2f}); "
        f"relative − absolute is {said(gap)}: {decided}; {left}. Symmetric ALiBi ({shown(of['alibi'])}) and no "
        f"encoding ({shown(of['nope'])}) answer a mirrored query alike by identity; with ALiBi's scores but position "
        f"in the values, relative too, it is {shown(of['turned-values'])}.{not_trained(rows)}"
    )
    return Answer("a", says, rows, (_both_ways(rows),))


def depth(size: Size) -> Answer:
    """(b) Depth 1, 2, 4, 8 under RoPE: does the coupling of forward and reverse grow with depth?"""
    cells = [Cell(str(n), {"encoding": "rope", "depth": n}, deep(size)) for n in DEPTHS]
    rows = table(cells, size, size.letters(), signatures).assign(depth=lambda frame: frame.cell.astype(int))
    slopes = {name: over_seeds(_slopes(rows, name)) for name in (REVERSE, "dynamics")}
    by_depth = {
        name: ", ".join(f"depth {n}: {shown(values)}" for n, values in by_label(rows, name).items()) for name in slopes
    }
    trends = {name: verdict(slopes[name], "it grows", "it falls", "whether it grows or falls") for name in slopes}
    says = (
        f"The gradient's matched − same-target cosine ({by_depth['dynamics']}) changes by {said(slopes['dynamics'])} "
        f"with each doubling of depth: {trends['dynamics']}; the reverse {P} ({by_depth[REVERSE]}) by "
        f"{said(slopes[REVERSE])}: {trends[REVERSE]}.{not_trained(rows.assign(cell='depth ' + rows.cell))}"
    )
    panels = (
        Curves(
            "Coupling and outcome by depth",
            "layers",
            "cosine, or probability",
            (
                series(rows, "dynamics", "cos matched − same target", "extra", "depth", _number),
                series(rows, REVERSE, f"reverse {P}", "reverse", "depth", _number),
                series(rows, FORWARD, f"forward {P}", "forward", "depth", _number),
            ),
        ),
    )
    return Answer("b", says, rows, panels)


def objectives(size: Size) -> Answer:
    """(c) Do other objectives that mix positions mitigate the reversal curse too?"""
    names = [o.name for o in OBJECTIVES.values() if o.kind == "masked"]
    cells = [Cell(name, {"encoding": "rope"}, replace(size.train, objective=name)) for name in names]
    rows = table(cells, size, size.letters(), outcomes)
    others = [name for name in names if name != "t-dce"]
    differences = {name: paired(rows, REVERSE, name, "t-dce") for name in others}
    parts = [
        f"{name} {shown(by_label(rows, REVERSE)[name])}, by {said(e)} ({verdict(e, 'more', 'less', 'the difference')})"
        for name, e in differences.items()
    ]
    says = (
        f"Under RoPE the reverse {P} is {shown(by_label(rows, REVERSE)['t-dce'])} with t-DCE; compared with it: "
        f"{'; '.join(parts)}.{not_trained(rows)}"
    )
    how = "; ".join(f"{name}: {OBJECTIVES[name].source}" for name in names)
    return Answer("c", says, rows, (_both_ways(rows),), f"{HOW} {how}.")


def maskable(size: Size) -> Answer:
    """(d) Does it matter whether placeholders may be masked, or letters only?"""
    cells = [
        Cell(f"{encoding}, {which}", {"encoding": encoding}, replace(size.train, maskable=which))
        for encoding in ("rope", "absolute")
        for which in ("all", "entities")
    ]
    rows = table(cells, size, size.letters(), outcomes)
    parts = []
    for encoding in ("rope", "absolute"):
        e = paired(rows, "reverse accuracy", f"{encoding}, entities", f"{encoding}, all")
        found = verdict(e, "masking letters alone helps", "masking letters alone hurts", "whether it matters")
        parts.append(f"by {said(e)} under {encoding} ({found})")
    says = (
        "Masking letters alone, and never placeholders, changes reverse accuracy over the full vocabulary "
        f"{' and '.join(parts)}.{not_trained(rows)}"
    )
    return Answer("d", says, rows, (_both_ways(rows), _both_ways(rows, "accuracy")))


def deep(size: Size) -> TrainConfig:
    """How models of several layers are trained."""
    return replace(size.train, lr=min(size.train.lr, DEEP_RATE))


def _both_ways(rows: pd.DataFrame, what: str = "P") -> Dots:
    title = P if what == "P" else "Accuracy, full vocabulary"
    return Dots(
        title,
        title,
        (
            series(rows, f"forward {what}", "forward", "forward"),
            series(rows, f"reverse {what}", "reverse", "reverse"),
        ),
    )


def _number(value: object) -> float:
    return float(str(value))


def _slopes(rows: pd.DataFrame, column: str) -> list[float]:
    """Each seed's least-squares slope over log2(depth)."""
    wide = rows.pivot(index="seed", columns="depth", values=column)
    x: Sequence[float] = np.log2(wide.columns.to_numpy(dtype=np.float64)).tolist()
    return [float(np.polyfit(x, values.to_numpy(), 1)[0]) for _, values in wide.iterrows()]
