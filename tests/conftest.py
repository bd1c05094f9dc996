"""Shapes are checked while tests run: jaxtyping's annotations are enforced wherever tensors are."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import beartype  # noqa: F401 - before torch: imported after it and nnsight, it fails
from jaxtyping import install_import_hook

# not the models: a wrapped forward hides the source that nnsight reads
TENSORS = [
    "rcprobe.probing",
    "rcprobe.training",
    "rcprobe.encoding",
    "rcprobe_plugins.encodings",
    # of the theory, what has tensors; elsewhere beartype takes no whole number for a float
    "rcprobe.theory.alignment",
    "rcprobe.theory.gradients",
    "rcprobe.theory.storage",
]

install_import_hook(TENSORS, "beartype.beartype")
