"""Docstrings are plain text: what reStructuredText would read into them is put into its terms first."""

import re
from typing import Any

from sphinx.application import Sphinx

ATTRIBUTE = re.compile(r"^ {4}(?=\w)([\w, ]+): (.*)")


def plain(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """An upright line is an absolute value, no substitution; a list of attributes is a list of fields."""
    parts = "\n".join(lines).split("``")
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    lines[:] = "``".join(parts).split("\n")
    if "Attributes:" in lines:
        start = lines.index("Attributes:")
        lines[start:] = [ATTRIBUTE.sub(r":ivar \1: \2", line) for line in lines[start + 1 :]]


def signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, called: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A default that is made anew for each call has no text that Python reads."""
    return called and called.replace("<factory>", "..."), returned


def setup(app: Sphinx) -> dict[str, Any]:
    """Read every docstring so."""
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True}
