"""How each kind of panel is drawn: colours of Okabe and Ito, told apart by marker and dash as well."""

import math
import textwrap
from typing import Any

import numpy as np

from rcprobe.report.panels import Curves, Dots, HeatMap, Panel, Series

COLOURS = {  # light ones; the page swaps them for its own, so each must be unlike any other colour in a figure
    "ink": "#1d1e20",
    "rule": "#d9dadd",
    "forward": "#0072b2",
    "reverse": "#c44e01",
    "control": "#66676b",
    "extra": "#008a63",
    "other": "#b3558f",
}
MARKERS = {"forward": "o", "reverse": "s", "control": "D", "extra": "^", "other": "v"}
DASHES: dict[str, Any] = {"forward": "-", "reverse": "-", "control": (0, (4, 2)), "extra": (0, (1, 1)), "other": "-."}
ANNOTATED = 100  # cells of a heat map that still have room for their number


def draw(module: Any, figure: Any, axes: Any, panel: Panel) -> None:
    """Draw a panel on axes, without title and legend."""
    if isinstance(panel, HeatMap):
        _heat_map(module, figure, axes, panel)
    elif isinstance(panel, Dots):
        _dots(module, axes, panel)
    else:
        _curves(module, axes, panel)


def legend(axes: Any, panel: Panel) -> int:
    """Name the series above the axes where there are several; give the number of lines that takes."""
    if isinstance(panel, HeatMap) or len(panel.series) < 2:
        return 0
    # the longest first would jump about: one line each, in the order drawn
    short = sum(len(s.label) + 6 for s in panel.series) < 44
    columns = len(panel.series) if short else 1
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, frameon=False, borderpad=0, borderaxespad=0.3
    )
    return 1 if short else len(panel.series)


def wrapped(name: str) -> list[str]:
    """A category's name as lines beside its axis."""
    return textwrap.wrap(name, 17)


def _curves(module: Any, axes: Any, panel: Curves) -> None:
    single = all(len(series.places) == 1 for series in panel.series)
    for n, series in enumerate(panel.series):
        x, y, low, high = _arrays(series)
        if single:
            x = x + n - (len(panel.series) - 1) / 2  # side by side: the place itself says little
        colour, marker = COLOURS[series.style], MARKERS[series.style]
        for values in series.seeds.values():
            seen = {"linestyle": "none", "marker": ".", "markersize": 4} if single else {"linewidth": 0.7}
            axes.plot(x, values, color=colour, alpha=0.4, **seen)
        defined = ~np.isnan(low)
        if single:
            _bars(axes, x[defined], y[defined], low[defined], high[defined], colour, upright=True)
        else:
            axes.fill_between(x, low, high, where=defined, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.8, linestyle=DASHES[series.style],
            label=series.label,
        )  # fmt: skip
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    _scale(module, axes, panel)
    if single:
        places = sorted({float(p) for s in panel.series for p in s.places})
        axes.set_xticks(places, [f"{p:g}" for p in places])
        axes.set_xlim(places[0] - 2, places[0] + 2)
    elif all(float(p).is_integer() for s in panel.series for p in s.places):
        axes.xaxis.set_major_locator(module.ticker.MaxNLocator(5, integer=True, min_n_ticks=1))


def _scale(module: Any, axes: Any, panel: Curves) -> None:
    if panel.scale == "share":
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    elif panel.scale == "log":
        shown = [v for s in panel.series for p in s.points for v in (p.value, p.low) if v > 0 and math.isfinite(v)]
        shown += [v for s in panel.series for values in s.seeds.values() for v in values if v > 0]
        axes.set_yscale("log")
        lowest = min(shown, default=0.1)
        axes.set_ylim(10 ** math.floor(math.log10(min(lowest, 0.5)) - 0.02), 1.4)
        axes.yaxis.set_major_locator(module.ticker.LogLocator(10, numticks=6))
        axes.yaxis.set_minor_locator(module.ticker.NullLocator())
        axes.yaxis.set_major_formatter(module.ticker.FuncFormatter(lambda v, _: f"{v:g}" if v >= 1e-4 else f"{v:.0e}"))
    else:
        axes.axhline(0, color=COLOURS["ink"], linewidth=0.7)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.05), max(high, 0.05))
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)


def _dots(module: Any, axes: Any, panel: Dots) -> None:
    names = list(dict.fromkeys(str(p) for s in panel.series for p in s.places))
    axes.axvline(0, color=COLOURS["ink"], linewidth=0.7)
    if not math.isnan(panel.margin):
        axes.axvline(panel.margin, color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 3)))
    for n, series in enumerate(panel.series):
        shift = 0.2 * (n - (len(panel.series) - 1) / 2)
        y = np.array([names.index(str(p)) for p in series.places], dtype=np.float64) + shift
        _, x, low, high = _arrays(series, numbers=False)
        colour = COLOURS[series.style]
        for values in series.seeds.values():
            axes.plot(values, y, linestyle="none", marker=".", markersize=4, color=colour, alpha=0.4)
        defined = ~np.isnan(low)
        _bars(axes, y[defined], x[defined], low[defined], high[defined], colour, upright=False)
        axes.plot(x, y, linestyle="none", marker=MARKERS[series.style], markersize=6, color=colour, label=series.label)
        clear = 0.0 if math.isnan(panel.margin) else max(0.0, panel.margin)
        for i in np.flatnonzero(np.isnan(x)):
            axes.annotate(
                "no value", (clear, y[i]), (4, 0), textcoords="offset points", va="center", fontsize=8, color=colour
            )
    axes.set_yticks(range(len(names)), ["\n".join(wrapped(name)) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(panel.x_label)
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.05), max(high, 0.05))  # tiny values look tiny
    axes.xaxis.set_major_locator(module.ticker.MaxNLocator(4))


def _heat_map(module: Any, figure: Any, axes: Any, panel: HeatMap) -> None:
    limit = panel.limit
    colours = module.colormaps["RdBu_r"].with_extremes(bad=COLOURS["rule"])
    shown = np.ma.masked_invalid(panel.values)
    cells = axes.pcolormesh(shown, cmap=colours, vmin=-limit, vmax=limit, edgecolors=COLOURS["rule"], linewidth=0.3)
    axes.grid(False)
    axes.invert_yaxis()
    for axis, names in ((axes.xaxis, panel.x), (axes.yaxis, panel.y)):
        every = max(1, math.ceil(len(names) / 10))
        kept = range(0, len(names), every)
        axis.set_ticks([k + 0.5 for k in kept], [names[k] for k in kept])
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    bar = figure.colorbar(cells, ax=axes, label=f"{panel.unit} (grey: no value)")
    bar.set_ticks([k * limit / 2 for k in range(-2, 3)], labels=[f"{k * limit / 2:.3g}" for k in range(-2, 3)])
    bar.outline.set_linewidth(0.4)
    bar.solids.set(rasterized=False, edgecolor="face")  # no seams between its steps
    if panel.values.size <= ANNOTATED:
        for (i, j), value in np.ndenumerate(panel.values):
            if not math.isnan(value):
                said = f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")
                dark = abs(value) > 0.62 * limit
                axes.text(
                    j + 0.5, i + 0.5, said, ha="center", va="center", fontsize=7, color="#fefefe" if dark else "#010101"
                )


def _bars(axes: Any, along: Any, value: Any, low: Any, high: Any, colour: str, upright: bool) -> None:
    """Intervals as bars with caps."""
    sides = np.abs(np.stack([value - low, high - value]))
    given = {"fmt": "none", "ecolor": colour, "elinewidth": 1.6, "capsize": 3}
    if upright:
        axes.errorbar(along, value, yerr=sides, **given)
    else:
        axes.errorbar(value, along, xerr=sides, **given)


def _arrays(series: Series, numbers: bool = True) -> tuple[Any, Any, Any, Any]:
    places = np.array(series.places, dtype=np.float64) if numbers else None
    value, low, high = (
        np.array([getattr(p, name) for p in series.points], dtype=np.float64) for name in ("value", "low", "high")
    )
    return places, value, low, high
