"""The notebooks, run as a reader would from top to bottom, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(notebook, folder):
    """The code cells one after another; a cell that writes a file writes it."""
    cells = [c["source"] for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    body = []
    for first, *rest in cells:
        if first.startswith("%%writefile "):
            (folder / first.split()[1]).write_text("".join(rest), encoding="utf-8")
        else:
            body.append("".join([first, *rest]))
    # workers import the script anew
    inside = "\n".join(f"    {line}" for line in "\n".join(body).splitlines())
    return f"if __name__ == '__main__':\n{inside}\n"


def test_an_encoding_of_ones_own_is_seen_in_the_table(tmp_path):
    code = script(EXAMPLES / "your_own_encoding.ipynb", tmp_path)
    assert len((tmp_path / "sided_slopes.py").read_text().splitlines()) < 40
    (tmp_path / "notebook.py").write_text(code, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RCPROBE_")} | {"COLUMNS": "200"}
    found = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert "sided-slopes, L = 4" in found.stdout
    assert "which encodings transfer" in found.stdout


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_output(notebook):
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
