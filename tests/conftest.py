"""Shapes are checked while tests run: jaxtyping's annotations are enforced in the whole package."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(["rcprobe", "rcprobe_plugins"], "beartype.beartype")
