"""Whatever a stranger can call has words and, where they show an example, one that runs."""

import doctest
import inspect
import shlex
import shutil
from importlib import import_module, metadata
from pathlib import Path

import pytest
from test_cli import call, commands

import rcprobe
from rcprobe import hookspecs
from rcprobe.hookspecs import Register
from rcprobe.plugins import KINDS, OTHER_HOOKS
from rcprobe.probing.engine import READS

ROOT = Path(__file__).parent.parent
FOLDERS = (ROOT, ROOT / "plugins")
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "rcprobe_spec")}
BY_HELP = {("demo",), ("reproduce",), ("models", "inspect")}  # minutes, or a hub


def modules_with_examples():
    for folder, package in zip(FOLDERS, ("rcprobe", "rcprobe_plugins"), strict=True):
        for path in sorted((folder / package).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                yield ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


def public():
    """Each public name, and each public method and property of its class that rcprobe wrote."""
    for name in rcprobe.__all__:
        thing = getattr(rcprobe, name)
        yield name, thing
        if inspect.isclass(thing):
            own = [cls for cls in thing.__mro__ if cls.__module__.startswith("rcprobe")]
            for member, value in {m: v for cls in reversed(own) for m, v in vars(cls).items()}.items():
                kept = isinstance(value, property) or callable(getattr(thing, member))
                if kept and not member.startswith("_") and not inspect.isclass(value):
                    yield f"{name}.{member}", value


@pytest.mark.parametrize(("name", "thing"), list(public()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_public_name_and_method_is_described(name, thing):
    described = getattr(thing, "__func__", getattr(thing, "func", thing))
    words = (described.__doc__ or "").strip()
    assert words
    assert not words.startswith(f"{name}("), "dataclass made it up"


@pytest.mark.parametrize("hook", [*(f"register_{kind}" for kind in KINDS), *OTHER_HOOKS])
def test_every_hook_is_described_where_plugins_are_explained(hook):
    assert HOOKS[hook].__doc__
    assert f"`{hook}(" in (ROOT / "docs" / "add-a-plugin.md").read_text(encoding="utf-8")


def test_there_are_no_other_hooks():
    assert set(HOOKS) == {*(f"register_{kind}" for kind in KINDS), *OTHER_HOOKS}
    assert Register.__doc__


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where examples run: a folder with kept runs called as theirs are."""
    folder = tmp_path_factory.mktemp("examples")
    options = ("--limit", "2", "--option", "width=8", "--metric", "accuracy", "--quiet")
    assert call("run", "radd", "letters", *options, "--out", str(folder / "runs" / "alibi")).code is None
    shutil.copytree(folder / "runs" / "alibi", folder / "runs" / "rope")
    return folder


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_the_example_of_every_command_runs(path, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (line,) = [text for text in commands()[path].help.splitlines() if "Example: rcprobe " in text]
    words = shlex.split(line.partition("Example: rcprobe ")[2])
    more = ["--help"] if path in BY_HELP else ["--dry-run", "--quiet"] if path == ("run",) else []
    done = call(*words, *more)
    assert not done.code, done


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_in_docstrings_run(name):
    module = import_module(name)
    tests = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert tests
    for test in tests:
        failed = doctest.DocTestRunner(verbose=False).run(test).failed
        assert not failed, test.name


def test_every_reading_is_in_the_table_for_metrics():
    page = (ROOT / "docs" / "add-a-metric.md").read_text(encoding="utf-8")
    assert [name for name in sorted(READS) if f"| `{name}` |" not in page] == []


def test_the_readme_names_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in commands():
        assert f"`rcprobe {' '.join(path)}" in readme, path
    assert metadata.version("rcprobe") == rcprobe.__version__
