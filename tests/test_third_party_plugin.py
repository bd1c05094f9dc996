"""The example plugin, installed as a stranger's distribution is and used in processes of its own."""

import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rcprobe

EXAMPLE = Path(__file__).parent.parent / "examples" / "third_party_plugin"
OURS = {("models", "word-bert"), ("datasets", "capitals-in-words"), ("metrics", "margin")}
CHANCE = 1 / 26  # of naming one capital

PIPELINE = """
import json, sys
import rcprobe

train = rcprobe.TrainConfig(steps=400)
report = rcprobe.run("word-bert", "capitals-in-words", limit=20, train=train, progress=False)

built = rcprobe.load("word-bert", options={"hidden_size": 16, "intermediate_size": 32}, seed=3)
built.model.save_pretrained(sys.argv[1])
built.tokenizer.save_pretrained(sys.argv[1])
loaded = rcprobe.load(sys.argv[1])

try:
    rcprobe.load("word-bert", options={"hiden_size": 16})
except rcprobe.RcprobeError as error:
    refused = str(error)

print(json.dumps({
    "report": report.to_dict(),
    "margins": report.frame("margin").query("step == 400")["value"].tolist(),
    "adapter": loaded.adapter.name,
    "fingerprints": [built.fingerprint(), loaded.fingerprint()],
    "refused": refused,
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """``python(…)`` runs Python with the example plugin installed, built offline from its folder."""
    site = tmp_path_factory.mktemp("site")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    install = [sys.executable, "-m", "pip", "install", *offline, "--target", str(site), str(EXAMPLE)]
    subprocess.run(install, check=True, capture_output=True, text=True)

    def run(*arguments):
        path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=site)
        assert done.returncode == 0, done.stderr[-800:]
        return done

    return run


@pytest.fixture(scope="module")
def pipeline(python, tmp_path_factory):
    """What the whole way gave: (strictly parsed JSON, what was said on stderr)."""
    done = python("-c", PIPELINE, str(tmp_path_factory.mktemp("checkpoint")))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(done.stdout, parse_constant=refuse), done.stderr


def test_it_uses_nothing_but_the_public_names():
    for path in EXAMPLE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("rcprobe."), path
            elif isinstance(node, ast.Import):
                assert not any(name.name.startswith("rcprobe.") for name in node.names), path
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rcprobe":
                assert node.attr in rcprobe.__all__, f"{path}: rcprobe.{node.attr}"


def test_its_names_are_listed_with_its_distribution(python):
    found = json.loads(python("-m", "rcprobe", "plugins", "list", "--json").stdout)
    assert found["failures"] == []
    mine = [entry for entry in found["entries"] if entry["distribution"] == "rcprobe-capitals"]
    assert {(entry["kind"], entry["name"]) for entry in mine} == OURS
    assert {entry["version"] for entry in mine} == {"0.1.0"}
    assert "radd" in {entry["name"] for entry in found["entries"]}


def test_the_report_says_what_was_asked_of_what(pipeline):
    info = pipeline[0]["report"]["info"]
    assert (info["model"], info["adapter"], info["dataset"]) == ("word-bert", "word-bert", "capitals-in-words")
    assert info["facts"] == 20
    assert info["plugins"]["rcprobe-capitals"] == "0.1.0"
    assert "margin" in info["metrics"]


def test_it_learns_forwards_and_cannot_answer_backwards(pipeline):
    accuracy = pipeline[0]["report"]["accuracy"]
    assert set(accuracy) == {"same_target", "swapped"}
    for readings in accuracy.values():
        assert set(readings) == {"full vocabulary", "capitals or countries"}
        for ((forward, reverse),) in readings.values():
            assert 0.9 <= forward <= 1
            assert 0 <= reverse <= 0.5
        assert readings["full vocabulary"][0][1] < 3 * CHANCE


def test_its_metric_is_measured_and_judged(pipeline):
    found, _ = pipeline
    signature = found["report"]["signatures"]["margin"]
    estimate = signature["findings"][0]["estimate"]
    assert signature["verdict"] == "absent"
    assert estimate["n"] == 20
    assert estimate["low"] < estimate["value"] < estimate["high"] < -1
    assert len(found["margins"]) == 40  # two template pairs a fact
    assert estimate["value"] == pytest.approx(math.fsum(found["margins"]) / 40)


def test_the_bundled_metrics_work_on_its_model(pipeline):
    signatures = pipeline[0]["report"]["signatures"]
    for name in ("attention_correlation", "gradient_alignment", "gradient_alignment (swapped)"):
        for finding in signatures[name]["findings"]:
            assert finding["estimate"]["n"] == 20, name
            assert -1 <= finding["estimate"]["value"] <= 1
    assert signatures["storage"]["verdict"] == "undefined"
    assert "ov_circuit" in signatures["storage"]["why"]
    assert pipeline[0]["report"]["excluded"] == {"same_target": {}, "swapped": {}}


def test_its_checkpoints_are_recognised(pipeline):
    found, _ = pipeline
    assert found["adapter"] == "word-bert"
    assert found["fingerprints"][0] == found["fingerprints"][1]


def test_a_misspelt_option_is_refused_by_name(pipeline):
    assert "hiden_size" in pipeline[0]["refused"]
    assert "hidden_size" in pipeline[0]["refused"]


def test_no_warning_reaches_the_user(pipeline):
    assert "Warning" not in pipeline[1]
