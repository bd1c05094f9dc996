"""Every name of ``rcprobe.__all__`` must stand in the reference: one that doesn't is a warning, and fails the build."""

from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import rcprobe

logger = logging.getLogger(__name__)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name without an entry."""
    described = env.domains.python_domain.objects
    for name in rcprobe.__all__:
        if f"rcprobe.{name}" not in described:
            logger.warning("rcprobe.%s is public and isn't in docs/reference/python.md", name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Check once all pages have been read."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
