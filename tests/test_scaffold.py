"""Plugins made by `plugins new`: one of each kind, installed as a stranger's and used in a process of its own."""

import json
import string
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import call, refused

import rcprobe
from rcprobe.commands.plugins import Kind
from rcprobe.contracts import CHECKS
from rcprobe.errors import UsageError
from rcprobe.plugins import KINDS, registry
from rcprobe.scaffold import STARTS, new_plugin

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind → the folder of a new plugin of that kind, called ``new_KIND``."""
    folder = tmp_path_factory.mktemp("made")
    for kind in STARTS:
        done = call("plugins", "new", f"new_{kind}", "--kind", kind, "--out", str(folder / kind))
        assert (done.code, done.err) == (None, "")
        assert set(map(Path, done.out.split())) == {path for path in (folder / kind).rglob("*") if path.is_file()}
    return {kind: folder / kind for kind in STARTS}


@pytest.fixture(scope="module")
def installed(made, tmp_path_factory):
    """All of them installed, offline, and found by this process while the module's tests run."""
    site = tmp_path_factory.mktemp("site")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    install = [sys.executable, "-m", "pip", "install", *offline, "--target", str(site), *map(str, made.values())]
    subprocess.run(install, check=True, capture_output=True, text=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        registry.cache_clear()
        yield site
    registry.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("new_", "test_new_"))]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
def test_each_passes_its_own_test(made, capsys):
    tests = [str(folder / f"test_new_{kind}.py") for kind, folder in made.items()]
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]) == 0
    assert "10 passed" in capsys.readouterr().out


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", STARTS)
def test_each_is_listed_and_keeps_its_contract(kind):
    listed = json.loads(call("plugins", "list", "--json").out)
    assert listed["failures"] == []
    (entry,) = [entry for entry in listed["entries"] if entry["name"] == f"new_{kind}"]
    assert (entry["kind"], entry["distribution"], entry["state"]) == (f"{kind}s", f"new-{kind}", "loaded")
    done = call("plugins", "check", f"new_{kind}", "--json")
    checks = json.loads(done.out)
    assert not done.code
    assert {check["kind"] for check in checks} == {f"{kind}s"}
    assert sum(bool(check["passed"]) for check in checks) >= 2


def test_each_is_clean_by_ruff_and_by_strict_mypy(made):
    folders = list(map(str, made.values()))
    tools = Path(sys.executable).parent
    for command in (
        [tools / "ruff", "check", "--no-cache", *folders],
        [tools / "ruff", "format", "--no-cache", "--check", *folders],
        [tools / "mypy", "--config-file", ROOT / "pyproject.toml", *folders],  # strict, and what is cached is used
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("installed")
def test_each_is_used_as_its_readme_says(tmp_path):
    config = "metrics = ['answers']\ndecoding.decoder = 'new_decoder'\noptions.encoding = 'new_encoding'\n"
    (tmp_path / "run.toml").write_text(config)
    small = ("--limit", "2", "--quiet")
    for arguments in (
        ("new_model", "letters", "--data-option", "length=4", "--metric", "new_metric", "--steps", "3"),
        ("radd", "letters", "--option", "width=8", "--config", str(tmp_path / "run.toml")),
    ):
        assert call("run", *arguments, *small).code is None
    m = rcprobe.load("radd", options={"alphabet": string.printable, "width": 8})
    report = rcprobe.run(m, "new_dataset", metrics=["new_metric"], limit=2, progress=False)
    assert len(report.frame("new_metric")) == 4


@pytest.mark.parametrize("kind", STARTS)
def test_each_is_typed_and_has_ten_lines_to_read(made, kind):
    folder = made[kind]
    assert (folder / f"new_{kind}" / "py.typed").exists()
    assert len((folder / "README.md").read_text().splitlines()) == 10
    assert "$" not in (folder / f"new_{kind}" / "__init__.py").read_text()


def test_every_kind_has_a_start_and_a_contract():
    assert list(STARTS) == [kind.value for kind in Kind]
    assert {f"{kind}s" for kind in STARTS} == set(KINDS) == set(CHECKS)


def test_the_folder_is_the_name_with_dashes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_plugin("my_metric", "metric")[0] == Path("my-metric/pyproject.toml")
    assert 'my_metric = "my_metric"' in Path("my-metric/pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my-metric", "identifier"),
        ("2nd", "identifier"),
        ("My_Metric", "identifier"),
        ("a__b", "identifier"),
        ("../x", "identifier"),
        ("", "identifier"),
        ("class", "identifier"),
        ("match", "identifier"),
        ("storage", "metric 'storage' is already registered by plugin 'bundled'"),
        ("bundled", "taken by plugin 'bundled' (rcprobe"),
        ("rcprobe", "installed package"),
        ("typing_extensions", "installed package"),
        ("json", "installed package"),
        ("rcprobe_plugins", "installed package"),
    ],
)
def test_a_name_that_will_not_do_is_refused_and_nothing_written(name, reason, tmp_path):
    assert reason in refused("plugins", "new", "--kind", "metric", "--out", str(tmp_path / "x"), "--", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("none", "model"),
        ("true", "encoding"),
        ("value_error", "model"),
        ("tuple", "dataset"),
        ("len", "decoder"),
        ("tokenizer", "model"),
        ("report", "metric"),
        ("seen", "metric"),
        ("register", "dataset"),
    ],
)
def test_a_name_that_would_hide_what_the_package_itself_uses_is_refused(name, kind, tmp_path):
    with pytest.raises(UsageError, match="means something else"):
        new_plugin(name, kind, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_kind_is_free(tmp_path):
    assert "rope" in registry().names("encodings")
    assert new_plugin("rope", "metric", tmp_path)


def test_a_registered_name_with_dashes_is_taken_too(tmp_path):
    with pytest.raises(UsageError, match="'gpt2-mini' is already registered"):
        new_plugin("gpt2_mini", "model", tmp_path)


@pytest.mark.parametrize("occupied", ["a folder", "a file"])
def test_a_place_that_is_taken_is_refused_and_left_alone(occupied, tmp_path):
    place = tmp_path / "x"
    kept = place / "kept" if occupied == "a folder" else place
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    assert str(place) in refused("plugins", "new", "my_metric", "--kind", "metric", "--out", str(place))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("arguments", [("--kind", "quantiser"), ("--kind", "metric", "--out", ""), ()])
def test_other_senseless_requests_are_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("plugins", "new", "my_metric", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_written_is_named():
    done = call("plugins", "new", "my_metric", "--kind", "metric", "--out", "/proc/x")
    assert done.code == 2
    assert "/proc/x" in done.err
