"""What ``rcprobe run`` refuses before anything is loaded."""

import subprocess
import sys
from dataclasses import replace

import pytest

import rcprobe
from rcprobe.commands.refuse import refuse
from rcprobe.config import RunConfig
from rcprobe.errors import UsageError
from rcprobe.manifest import config_of
from rcprobe.metrics import resolve_metrics

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


def test_what_a_manifest_knows_by_name_alone_must_be_there_or_named_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "facts.csv").write_text("person,child\nAnn,Bob\n")
    options = {"a": "person", "b": "child", "forward": "{a} has {b}", "reverse": "{b} is of {a}"}
    m = replace_source(rcprobe.load("radd", options={"width": 8, "max_length": 8}), tmp_path / "far" / "mine")
    facts = rcprobe.load_dataset(str(tmp_path / "far" / "facts.csv"), options)
    kept = config_of(m, facts, resolve_metrics(["accuracy"]), [0], None, 4, None, None)
    asked = RunConfig(**{name: value for name, value in kept.items() if name not in ("options", "train")})
    for name, way in (("mine", "rcprobe run FOLDER"), ("facts.csv", "rcprobe run MODEL FILE")):
        with pytest.raises(UsageError, match=f"run/manifest.json: '{name}' isn't here, .* again: {way} … --config"):
            refuse(asked, "run/manifest.json")
        (tmp_path / name).touch()
    refuse(asked, "run/manifest.json")
    with pytest.raises(UsageError, match=r"'low' isn't here, .* name it again: --peft … --config"):
        refuse(replace(asked, peft="low"), "run/manifest.json")
    refuse(replace(ASKED, model="owner/on-the-hub", dataset_options={"path": "owner/data"}), "run/manifest.json")


def replace_source(m, source):
    source.mkdir()
    m.source = str(source)
    return m


def test_nothing_heavy_is_imported_for_it():
    code = (
        "import sys\nfrom rcprobe.commands.refuse import refuse\nfrom rcprobe.config import RunConfig\n"
        "refuse(RunConfig('radd', 'letters', metrics=['storage'], adapter='llama'), 'run.toml')\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'nnsight'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
