"""How the site is built: `make docs`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.environ["RCPROBE_PLUGINS"] = ""  # the bundled plugins' commands alone are described

import rcprobe  # noqa: E402

project = "rcprobe"
version = release = rcprobe.__version__
copyright = "the authors of rcprobe"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "docstrings",
    "mathml",
    "command_pages",
    "public_names",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!rcprobe\.\w+$).*")
]  # what isn't public, and other projects' names, may be unlinked

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
smartquotes = False  # --out is a flag, no dash
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"rcprobe {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
