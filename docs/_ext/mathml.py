"""Formulas as MathML: browsers draw it without a script or a network."""

import re
from typing import Any, Literal

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# TeX does by itself what the converter doesn't: thin spaces around a function's name, and ∼ as a relation
FUNCTION = re.compile(r"\\(cos|log)(?![A-Za-z_^(])")
SIMILAR = "<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>"


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
        mathml = convert(FUNCTION.sub(r"\\,\\\1\\,", node.astext()), display=display).replace(*SIMILAR)
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
