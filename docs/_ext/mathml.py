"""Formulas as MathML: browsers draw it without a script or a network."""

from typing import Any, Literal

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def inline(writer: Any, node: nodes.math) -> None:
    """Write a formula in a line of text."""
    writer.body.append(_mathml(node, "inline"))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    """Write a displayed formula."""
    writer.body.append(f'<div class="formula">{_mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, display: Literal["inline", "block"]) -> str:
    try:
        mathml = convert(node.astext(), display=display)
    except Exception as error:  # noqa: BLE001 - it has no base of its own; every one becomes a warning
        logger.warning("%r in the formula %s", error, node.astext(), location=node, type="math")
        return ""
    if "\\" in mathml:
        logger.warning("an unknown command in the formula %s", node.astext(), location=node, type="math")
    return mathml


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
