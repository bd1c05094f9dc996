"""What ``rcprobe run`` refuses before anything is loaded."""

import subprocess
import sys
from dataclasses import replace

import pytest

from rcprobe.commands.refuse import refuse
from rcprobe.config import RunConfig
from rcprobe.errors import UsageError

ASKED = RunConfig("radd", "letters")


def test_what_can_be_run_passes(tmp_path):
    refuse(ASKED, None)
    refuse(replace(ASKED, dataset="facts.csv", metrics=["storage"], adapter="llama", seeds=3), "run.toml")
    refuse(replace(ASKED, model=f"{tmp_path}", dataset_options={"path": str(tmp_path)}), "manifest.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": " "}, "no model is named"),
        ({"dataset": ""}, "no dataset is named"),
        ({"dataset": "leters"}, "no dataset is called 'leters'; did you mean 'letters'?"),
        ({"metrics": ["storage", "storag"]}, "no metric is called 'storag'; did you mean 'storage'?"),
        ({"adapter": "lama"}, r"no family \(--adapter\) is called 'lama'; did you mean 'llama'?"),
        ({"seeds": 0}, "seeds is 0; use 1 or more"),
    ],
)
def test_slips_are_named(changes, said):
    with pytest.raises(UsageError, match=said):
        refuse(replace(ASKED, **changes), None)


@pytest.mark.parametrize(
    ("changes", "name", "way"),
    [
        ({"model": "./mine"}, "mine", "rcprobe run FOLDER"),
        ({"dataset": "./facts.csv"}, "facts.csv", "rcprobe run MODEL FILE"),
        ({"dataset_options": {"path": "parent_child"}}, "parent_child", "--data-option path="),
        ({"peft": "adapters"}, "adapters", "--peft"),
    ],
)
def test_what_a_manifest_knows_by_name_alone_must_be_there_or_named_again(changes, name, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = replace(ASKED, **changes)
    with pytest.raises(UsageError, match=f"run/manifest.json: this run read '{name}'.* name it again: {way} … "):
        refuse(asked, "run/manifest.json")
    (tmp_path / name).touch()
    refuse(asked, "run/manifest.json")
    refuse(replace(asked, dataset_options={"path": "owner/on-the-hub"}), "run/manifest.json")


def test_nothing_heavy_is_imported_for_it():
    code = (
        "import sys\nfrom rcprobe.commands.refuse import refuse\nfrom rcprobe.config import RunConfig\n"
        "refuse(RunConfig('radd', 'letters', metrics=['storage'], adapter='llama'), 'run.toml')\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'nnsight'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
