"""The built wheel: the editable install puts the repository on the path and would hide what it lacks."""

import os
import subprocess
import sys
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

import rcprobe

ROOT = Path(__file__).parent.parent
PACKAGES = {"rcprobe": ROOT / "rcprobe", "rcprobe_plugins": ROOT / "plugins" / "rcprobe_plugins"}


def run_python(*arguments, **options):
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done


def pip(*arguments):
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (path,) = folder.iterdir()
    with ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel installed in a folder of its own: ``installed(…)`` runs Python with it, elsewhere."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    pip("install", "--target", str(site), wheel.filename)

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = run_python(*arguments, env=environment, cwd=elsewhere)
        assert done.stderr == ""
        return done.stdout

    run.site = site
    return run


def metadata(wheel, name):
    (path,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    return wheel.read(path)


@pytest.mark.parametrize(("package", "source"), PACKAGES.items(), ids=PACKAGES)
def test_it_holds_every_module_and_the_type_marker(wheel, package, source):
    ours = {f"{package}/{path.relative_to(source).as_posix()}" for path in source.rglob("*.py")}
    held = {name for name in wheel.namelist() if name.startswith(f"{package}/")}
    assert ours
    assert {name for name in held if name.endswith(".py")} == ours
    assert f"{package}/py.typed" in held


def test_it_holds_the_parts_of_a_reports_page(wheel):
    for name in ("report.html.j2", "report.css", "report.js", "figures.html.j2", "compare.html.j2"):
        assert f"rcprobe/report/page/{name}" in wheel.namelist()


def test_it_holds_what_new_plugins_are_made_from(wheel):
    templates = {f"rcprobe/templates/{path.name}" for path in (ROOT / "rcprobe" / "templates").iterdir()}
    assert len(templates) == 13
    assert templates <= set(wheel.namelist())


def test_it_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {*PACKAGES, f"rcprobe-{rcprobe.__version__}.dist-info"}
    assert not [
        name for name in wheel.namelist() if "test" in name.replace("pytest_plugin", "") or "__pycache__" in name
    ]


def test_every_folder_of_modules_is_a_package(wheel):
    modules = [name for name in wheel.namelist() if name.endswith(".py")]
    folders = {name.rpartition("/")[0] for name in modules}
    assert {folder for folder in folders if f"{folder}/__init__.py" not in modules} == set()


def test_its_metadata_is_the_projects(wheel):
    found = message_from_bytes(metadata(wheel, "METADATA"))
    assert (found["Name"], found["Version"]) == ("rcprobe", rcprobe.__version__)
    assert found["License-Expression"] == "Apache-2.0"
    needed = {line.split(">")[0] for line in found.get_all("Requires-Dist") if "extra ==" not in line}
    assert {"torch", "transformers", "nnsight", "pluggy", "typer"} <= needed
    assert not needed & {"pytest", "ruff", "mypy", "hatchling", "beartype"}
    assert metadata(wheel, "licenses/LICENSE")


def test_its_entry_points_are_the_command_and_the_bundled_plugins(wheel):
    points = ConfigParser()
    points.read_string(metadata(wheel, "entry_points.txt").decode())
    assert dict(points["console_scripts"]) == {"rcprobe": "rcprobe.cli:main"}
    assert dict(points["rcprobe"]) == {"bundled": "rcprobe_plugins"}


def test_it_works_away_from_the_repository(installed):
    where = "import rcprobe, rcprobe_plugins; print(rcprobe.__file__, rcprobe_plugins.__file__, sep='\\n')"
    for path in installed("-c", where).splitlines():
        assert Path(path).is_relative_to(installed.site)
    listed = installed("-m", "rcprobe", "plugins", "list")
    for name in ("radd", "rope", "letters", "gradient_alignment"):
        assert name in listed
    assert "demo" in installed("-m", "rcprobe", "--help")
    kept = "from rcprobe_plugins.studies.published import published; print(len(published('tab4')))"
    assert installed("-c", kept).strip() == "30"


def test_every_bundled_name_and_public_name_is_in_it(installed):
    script = """
import rcprobe
from rcprobe.plugins import registry
for entry in registry().entries:
    if entry.origin.distribution == "rcprobe":
        print(registry().get(entry.kind, entry.name).__class__.__name__)
for name in rcprobe.__all__:
    getattr(rcprobe, name)
"""
    assert len(installed("-c", script).splitlines()) >= 12
