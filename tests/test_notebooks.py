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
    return "\n".join(body)


IN_TURN = """
import runpy, sys

for path in sys.argv[1:]:
    print("notebook", path)
    runpy.run_path(path)  # not as __main__, which workers would import anew
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """(Notebook → what it prints, the folder they ran in); one process runs them all, to import torch once."""
    folder = tmp_path_factory.mktemp("notebooks")
    names = ("your_own_encoding", "first_probe", "your_own_metric", "your_own_model")  # the first names a plugin module
    for name in names:
        code = script(EXAMPLES / f"{name}.ipynb", folder)
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RCPROBE_")} | {"COLUMNS": "200"}
    command = [sys.executable, "-c", IN_TURN, *(f"{name}.py" for name in names)]
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    parts = found.stdout.split("notebook ")[1:]
    return {name: part.partition("\n")[2] for name, part in zip(names, parts, strict=True)}, folder


def test_an_encoding_of_ones_own_is_seen_in_the_table(printed):
    out, folder = printed
    assert len((folder / "sided_slopes.py").read_text().splitlines()) < 40
    assert "sided-slopes, L = 4" in out["your_own_encoding"]
    assert "which encodings transfer" in out["your_own_encoding"]


def test_a_first_probe_prints_what_it_found(printed):
    out = printed[0]["first_probe"]
    assert "52 letters" in out
    assert {"0", "200", "400"} <= set(out.split())


def test_a_metric_of_ones_own_is_checked_and_measured(printed):
    out = printed[0]["your_own_metric"]
    assert "surprise: every check that applies passed" in out
    assert "kept" in out


def test_a_model_of_ones_own_is_checked_and_learns(printed):
    out = printed[0]["your_own_model"]
    assert "my-lm: every check that applies passed" in out
    assert "it declares causal attention, but changing the last token" in out
    (((forward, reverse),),) = [eval(line, {}) for line in out.splitlines() if line.startswith("((")]
    assert 0 <= reverse <= forward
    assert forward > 0.2


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_output(notebook):
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
