"""Figures drawn by matplotlib, for the page and as files. matplotlib is imported when something is drawn."""

import html
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcprobe.errors import MissingExtraError
from rcprobe.files import whole, write_bytes
from rcprobe.report.along import along
from rcprobe.report.correlations import by_distance, by_head
from rcprobe.report.cosines import cosines
from rcprobe.report.curves import accuracy, probability
from rcprobe.report.drawing import COLOURS, draw, legend, wrapped
from rcprobe.report.foretold import foretold
from rcprobe.report.knockouts import knockouts
from rcprobe.report.panels import FigureData, HeatMap, Panel, has_values
from rcprobe.report.report import Report
from rcprobe.report.tables import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, found and copied
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["ink"],
    "grid.color": COLOURS["rule"],
}
FORMATS = ("svg", "png", "pdf")
WIDTH = 3.7  # inches of a panel: what a narrow screen shows at full size


def figures(report: Report) -> list[FigureData]:
    """The numbers of every figure, in the order of the page; one that can't be drawn says why.

    What is measured on request alone has a figure where it was asked for.
    """
    made = [probability(report), accuracy(report), along(report)]
    made += [by_distance(report), by_head(report), cosines(report)]
    return [_defined(data) for data in (*made, foretold(report), knockouts(report)) if data is not None]


def _defined(data: FigureData) -> FigureData:
    """The figure without panels that have no value at all."""
    kept = tuple(panel for panel in data.panels if has_values(panel))
    return replace(data, panels=kept, missing=data.missing or ("" if kept else "none of its values is defined"))


def installed() -> bool:
    """Whether matplotlib and jinja2 are there."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def panel_svg(panel: Panel, key: str, label: str) -> str:
    """One panel as SVG to be put into a page: its colours are the page's, its ids begin with ``key``.

    ``label`` is what a screen reader says. Raises ``MissingExtraError`` without matplotlib.
    """
    with _settings(key) as module:
        figure = _figure(module, [panel], titles=False)
        held = io.StringIO()
        figure.savefig(held, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = held.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\1#{key}-", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def save_figures(report: Report, folder: str | Path) -> list[Path]:
    """Write every figure that can be drawn as SVG, PNG (200 dpi) and PDF, and its numbers as CSV; give the files.

    Raises ``MissingExtraError`` without matplotlib, ``UsageError`` for a folder that holds files.
    """
    from rcprobe.report.report import new_folder

    _matplotlib()
    return write_figures(figures(report), new_folder(folder))


def write_figures(made: Sequence[FigureData], into: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write what can be drawn of figures in ``formats``, and their numbers as CSV, into a folder that is there.

    Raises ``MissingExtraError`` without matplotlib.
    """
    written = []
    for data in made:
        if not data.panels:
            continue
        table = into / f"{data.key}.csv"
        write_bytes(table, csv_text(data.rows()).encode())
        written.append(table)
        with _settings(data.key) as module:
            figure = _figure(module, data.panels, titles=True)
            for kind in formats:
                path = into / f"{data.key}.{kind}"
                with whole(path) as temporary:
                    figure.savefig(temporary, format=kind, dpi=200, facecolor="white", metadata=_UNDATED[kind])
                written.append(path)
    return written


_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.ticker
    except ImportError as error:
        raise MissingExtraError("drawing figures", "matplotlib", "report") from error
    return matplotlib


@contextmanager
def _settings(salt: str) -> Iterator[Any]:
    """matplotlib under our settings; the caller's are left alone."""
    module = _matplotlib()
    with module.rc_context({**module.rcParamsDefault, **SETTINGS, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # the page's fonts have it
        yield module


def _figure(module: Any, panels: Sequence[Panel], titles: bool) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    sizes = [_height(panel) for panel in panels]
    heights = [max(sizes[r * columns : (r + 1) * columns]) for r in range(rows)]
    figure = Figure(figsize=(WIDTH * columns, sum(heights) + 0.4 * titles * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        draw(module, figure, axes, panel)
        title = "\n".join(line for part in panel.title.splitlines() for line in textwrap.wrap(part, 44))
        if titles:
            axes.set_title(title, loc="left", pad=8 + 15 * legend(axes, panel))
        else:
            legend(axes, panel)
    return figure


def _height(panel: Panel) -> float:
    """Inches: what curves need, and more for many categories."""
    if isinstance(panel, HeatMap):
        most = 0.8 * WIDTH if len(panel.x) == len(panel.y) else 6.0  # what is as wide as high looks it
        return min(most, max(2.9, 1.2 + 0.24 * len(panel.y)))
    places = {p for series in panel.series for p in series.places if isinstance(p, str)}
    lines = max((len(wrapped(place)) for place in places), default=0)
    return max(2.9, 1.1 + max(0.34, 0.16 * lines) * len(places))
