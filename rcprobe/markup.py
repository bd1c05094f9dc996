"""HTML for notebooks: texts are escaped, nothing is scripted, and colours go with light and dark pages."""

from collections.abc import Sequence
from html import escape

from rcprobe.visible import visible

CELL = "text-align:left;vertical-align:top;padding:.15em .7em;border-bottom:1px solid rgba(128,128,128,.35)"
EVIDENCE = "background:rgba(40,120,220,.28);border-radius:.25em;padding:.1em .25em"
MASK = "border:1.5px dashed rgba(200,90,0,.9);border-radius:.25em;padding:.05em .3em"
TOKEN = "padding:.1em .05em;white-space:pre"
MONO = "font-family:ui-monospace,monospace;line-height:2"
QUIET = "opacity:.7"


class Markup(str):
    """A piece of HTML; any other text is escaped where it becomes a part of one."""


def safe(value: object) -> Markup:
    """The value as HTML: a piece of it as it is; any other as text, escaped, with hidden characters spelt out."""
    return value if isinstance(value, Markup) else Markup(escape(visible(value)))


def element(name: str, *inside: object, style: str = "", title: str = "") -> Markup:
    """An element with what is inside it."""
    attributes = "".join(f' {key}="{safe(value)}"' for key, value in (("style", style), ("title", title)) if value)
    return Markup(f"<{name}{attributes}>{''.join(map(safe, inside))}</{name}>")


def table(headings: Sequence[object], rows: Sequence[Sequence[object]]) -> Markup:
    """A table; a row may hold pieces of HTML."""
    head = element("tr", *(element("th", heading, style=CELL) for heading in headings))
    body = [element("tr", *(element("td", cell, style=CELL) for cell in row)) for row in rows]
    return element(
        "table", element("thead", head), element("tbody", *body), style="border-collapse:collapse;margin:.4em 0"
    )


def quiet(value: object) -> Markup:
    """A remark beside."""
    return element("span", value, style=QUIET)
