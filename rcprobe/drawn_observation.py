"""An observation as a notebook shows it: named dimensions, a summary of each reading, some pairs with scores."""

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rcprobe.drawn_pairs import pair_html
from rcprobe.markup import Markup, element, quiet, table
from rcprobe.report.words import number

if TYPE_CHECKING:
    from rcprobe.probing.engine import Observation

PAIRS = 3  # that are drawn
CELLS = 8  # layers and heads whose scores are drawn
BAR = 4.0  # em, an attention weight of 1
BLUE = "rgba(40,120,220,.6)"
WAYS, CELL = "forward, reverse", ("layers", "heads")
DIMENSIONS = {
    "scores": ("pairs", WAYS, *CELL),
    "log_weights": ("pairs", WAYS, *CELL),
    "log_probs": ("pairs", WAYS),
    "continued": ("pairs", WAYS),
    "alternatives": ("pairs",),
    "training_cosine": ("pairs",),
    "storage": ("pairs", *CELL),
    "storage_mismatched": ("pairs", *CELL),
    "storage_spread": ("pairs", *CELL),
}


def observation_html(seen: "Observation") -> Markup:
    """What was read, of how much, and the first pairs."""
    parts: list[object] = [element("div", f"{len(seen.pairs)} query pairs, {len(seen.excluded)} without numbers")]
    parts += [
        element("div", quiet(f"{count} without numbers: {reason}"))
        for reason, count in Counter(seen.excluded.values()).most_common(PAIRS)
    ]
    rows = _rows(seen)
    if rows:
        parts.append(table(("reading", "dimensions", "defined", "mean", "from", "to"), rows))
    drawn = [i for i in range(len(seen.pairs)) if i not in seen.excluded][:PAIRS]
    heading = "" if seen.scores is None or seen.scores.shape[2] == 0 else "score from mask to evidence (weight)"
    parts += [pair_html(seen.pairs[i], tuple(_scores(seen, i, way) for way in (0, 1)), heading) for i in drawn]
    if len(seen.pairs) > len(drawn):
        parts.append(quiet(f"… {len(seen.pairs) - len(drawn)} more pairs"))
    return element("div", *parts)


def _rows(seen: "Observation") -> list[tuple[object, ...]]:
    read: dict[str, tuple[Tensor, tuple[str, ...]]] = {
        name: (getattr(seen, name), names) for name, names in DIMENSIONS.items() if getattr(seen, name) is not None
    }
    for name, (log_probs, right) in (seen.readings or {}).items():
        read[f"readings[{name!r}], log p"] = (log_probs, ("pairs", WAYS))
        read[f"readings[{name!r}], right"] = (right, ("pairs", WAYS))
    if seen.gradients is not None:
        read["gradients.cosine()"] = (seen.gradients.cosine(), ("pairs",))
    return [(element("code", name), _shape(values, names), *_summary(values)) for name, (values, names) in read.items()]


def _shape(values: Tensor, names: tuple[str, ...]) -> str:
    return " × ".join(
        f"{size} ({name})" if name == WAYS else f"{size} {name}" for size, name in zip(values.shape, names, strict=True)
    )


def _summary(values: Tensor) -> tuple[str, str, str, str]:
    """How many are defined, and their mean, least and greatest."""
    defined = values[~values.isnan()].double()
    share = f"{len(defined)} of {values.numel()}"
    if not len(defined):
        return share, "–", "–", "–"
    mean, low, high = (
        f"{float(value):.3g}".replace("-", "−") for value in (defined.mean(), defined.min(), defined.max())
    )
    return share, mean, low, high


def _scores(seen: "Observation", i: int, way: int) -> Markup:
    """A pair's scores in one direction, a line a layer and head, with its attention weight as a bar."""
    if seen.scores is None or seen.log_weights is None or seen.attendable is None:
        return Markup()
    layers, heads = seen.scores.shape[2:]
    lines = []
    for cell in range(min(CELLS, layers * heads)):
        at = (i, way, cell // heads, cell % heads)
        name = f"layer {at[2]} head {at[3]}: "
        if not bool(seen.attendable[at]):
            lines.append(element("div", name, "masked"))
            continue
        weight = float(torch.exp(seen.log_weights[at]))
        full = element("span", style=f"display:inline-block;height:.6em;width:{BAR * weight:.2f}em;background:{BLUE}")
        bar = element(
            "span", full, style=f"display:inline-block;width:{BAR}em;line-height:.6em;outline:1px solid {BLUE}"
        )
        lines.append(
            element("div", name, f"{number(float(seen.scores[at]))} ({weight:.0%}) ", bar, style="white-space:nowrap")
        )
    if layers * heads > CELLS:
        lines.append(quiet(f"… {layers * heads - CELLS} more"))
    return element("div", *lines)
