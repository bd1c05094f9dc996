"""Docstrings are plain text: an upright line in them is an absolute value, never a substitution."""

from typing import Any

from sphinx.application import Sphinx


def plain(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Escape upright lines outside of code."""
    parts = "\n".join(lines).split("``")
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    lines[:] = "``".join(parts).split("\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Read every docstring so."""
    app.connect("autodoc-process-docstring", plain)
    return {"parallel_read_safe": True}
