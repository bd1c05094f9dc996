"""Shapes are checked while tests run: jaxtyping's annotations are enforced wherever tensors are."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import beartype  # noqa: F401 - before torch: imported after it and nnsight, it fails
import pytest
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

# modules that keep many runs to look at other things than their pages: drawing a page takes longer than all the rest
UNDRAWN = {
    f"test_{name}"
    for name in (
        "callback", "cli", "commands", "config", "decoding", "documented", "estimate", "families", "fine_tuned",
        "fine_tuning", "lora", "models", "resume", "revisions", "runner", "scaffold", "shares", "store", "terminal",
        "trackers", "verify",
    )
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _pages_without_curves(request):
    if request.module.__name__ not in UNDRAWN:
        yield
        return
    import rcprobe.report.html

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rcprobe.report.html, "panel_svg", lambda panel, key, label: "<svg></svg>")
        yield
