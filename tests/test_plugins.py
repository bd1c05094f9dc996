"""Plugins of strangers, good and bad, installed as real distributions in a temporary folder."""

import os
import random
import subprocess
import sys
from importlib import import_module, metadata
from itertools import count, permutations
from pathlib import Path

import pytest

import rcprobe
from rcprobe.cli import main
from rcprobe.errors import PluginError, UnknownNameError, UsageError
from rcprobe.plugins import KINDS, Origin, load_registry, registry

NUMBER = count()
GOOD = """
import rcprobe

@rcprobe.hookimpl
def register_models(register):
    register("fine", "somewhere:Fine")
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """``plugin(source, distribution=…)`` installs a one-module distribution and gives its entry point.

    ``{me}`` in the source is the module's own name.
    """
    for name in ("RCPROBE_DISABLE_PLUGINS", "RCPROBE_RAISE_PLUGIN_ERRORS"):
        monkeypatch.delenv(name, raising=False)
    before = set(sys.modules)

    def install(source=GOOD, distribution="stranger", name=None, value=None):
        number = next(NUMBER)
        module = f"stranger_{number}"
        site = tmp_path / str(number)
        info = site / f"{distribution}-1.2.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source.replace("{me}", module))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[rcprobe]\n{name or module} = {value or module}\n")
        monkeypatch.syspath_prepend(site)
        (installed,) = metadata.distributions(path=[str(site)])
        (point,) = installed.entry_points
        return point

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("stranger_"):
            del sys.modules[name]


@pytest.fixture
def bundled():
    (point,) = metadata.entry_points(group="rcprobe", name="bundled")
    return point


def left_out(found):
    """The one failure: (plugin, distribution, version, reason)."""
    (failure,) = found.failures
    return failure.origin.plugin, failure.origin.distribution, failure.origin.version, failure.reason


def claims(found):
    return [(entry.kind, entry.name, entry.target) for entry in found.entries]


# --- what is bundled ---


def test_every_bundled_name_can_be_imported(bundled):
    found = load_registry([bundled])
    assert found.failures == []
    assert all(found.get(entry.kind, entry.name) is not None for entry in found.entries)


def test_bundled_plugins_come_from_the_distribution_rcprobe(bundled):
    found = load_registry([bundled])
    assert {entry.origin.distribution for entry in found.entries} == {"rcprobe"}
    assert {entry.origin.version for entry in found.entries} == {rcprobe.__version__}
    assert set(KINDS[:4]) <= {entry.kind for entry in found.entries}


def test_no_name_is_given_twice_within_a_kind(bundled):
    keys = [(entry.kind, entry.name) for entry in load_registry([bundled]).entries]
    assert len(keys) == len(set(keys))


# --- a plugin that works ---


def test_a_good_plugin_is_listed_with_its_distribution(plugin):
    found = load_registry([plugin(distribution="my-models")])
    (entry,) = found.entries
    assert (entry.kind, entry.name, entry.target) == ("models", "fine", "somewhere:Fine")
    assert (entry.origin.distribution, entry.origin.version) == ("my-models", "1.2")
    assert found.names("models") == ["fine"]
    assert found.names("datasets") == []
    assert found.failures == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_hook(plugin, kind):
    source = GOOD.replace("register_models", f"register_{kind}")
    assert claims(load_registry([plugin(source)])) == [(kind, "fine", "somewhere:Fine")]


def test_one_name_may_stand_for_things_of_different_kinds(plugin):
    both = GOOD + GOOD.replace("register_models", "register_datasets")
    found = load_registry([plugin(both)])
    assert {kind for kind, *_ in claims(found)} == {"models", "datasets"}
    assert found.failures == []


def test_a_plugin_may_be_an_object_in_a_module(plugin):
    source = """
import rcprobe

class Plugin:
    @rcprobe.hookimpl
    def register_models(self, register):
        register("fine", "somewhere:Fine")

plugin = Plugin()
"""
    point = plugin(source)
    point = metadata.EntryPoint(point.name, f"{point.value}:plugin", point.group)._for(point.dist)
    assert claims(load_registry([point])) == [("models", "fine", "somewhere:Fine")]


def test_a_plugin_that_only_observes_is_no_failure(plugin):
    source = "import rcprobe\n\n@rcprobe.hookimpl\ndef run_finished(report):\n    pass\n"
    found = load_registry([plugin(source)])
    assert (found.entries, found.failures) == ([], [])


def test_listing_imports_no_target(plugin):
    target = plugin("FINE = object()\n")
    point = plugin(GOOD.replace("somewhere:Fine", f"{target.value}:FINE"))
    found = load_registry([point])
    assert found.names("models") == ["fine"]
    assert found.entry("models", "fine").target == f"{target.value}:FINE"
    assert point.value in sys.modules
    assert target.value not in sys.modules
    assert found.get("models", "fine") is import_module(target.value).FINE


def test_an_entry_point_found_twice_is_loaded_once(plugin):
    point = plugin()
    found = load_registry([point, point])
    assert len(found.entries) == 1
    assert found.failures == []


def test_an_entry_point_without_a_distribution_still_loads(plugin):
    point = plugin()
    orphan = metadata.EntryPoint(point.name, point.value, point.group)
    found = load_registry([orphan])
    assert found.names("models") == ["fine"]
    assert found.entries[0].origin.distribution == "unknown distribution"


# --- plugins that are left out ---

BAD = {
    "fails to import": ("import no_such_module_at_all\n", "no_such_module_at_all"),
    "raises while it is imported": ("1 / 0\n", "ZeroDivisionError"),
    "isn't Python": ("def (:\n", "SyntaxError"),
    "is a script that exits": ("import sys\nsys.exit(3)\n", "SystemExit"),
    "misspells a hook": (GOOD.replace("register_models", "register_modles"), "register_modles"),
    "misspells a hook beside a right one": (
        GOOD + GOOD.replace("register_models", "registr_datasets"),
        "registr_datasets",
    ),
    "names a hook's argument otherwise": (GOOD.replace("(register)", "(registry)"), "registry"),
    "implements nothing": ("", "implements no hook"),
    "forgets the decorator": (GOOD.replace("@rcprobe.hookimpl", ""), "implements no hook"),
    "registers nothing": (GOOD.replace('register("fine", "somewhere:Fine")', "pass"), "registers nothing"),
    "raises in its hook": (GOOD + "    raise RuntimeError('no luck')\n", "no luck"),
    "gives a target without attribute": (GOOD.replace("somewhere:Fine", "somewhere"), "module:attribute"),
    "gives a target without module": (GOOD.replace("somewhere:Fine", ":Fine"), "module:attribute"),
    "gives an empty attribute": (GOOD.replace("somewhere:Fine", "somewhere:"), "module:attribute"),
    "gives an empty target": (GOOD.replace("somewhere:Fine", ""), "module:attribute"),
    "gives an object for a target": (GOOD.replace('"somewhere:Fine"', "object()"), "object"),
    "claims a name twice": (GOOD + '    register("fine", "elsewhere:Fine")\n', "already registered"),
}


@pytest.mark.parametrize(("source", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_plugin_is_left_out_with_its_distribution_and_the_rest_works(plugin, bundled, source, reason):
    bad = plugin(source, distribution="bad-news")
    other = plugin(GOOD.replace('"fine"', '"finer"'), distribution="good-news")
    found = load_registry([bad, other, bundled])
    name, distribution, version, why = left_out(found)
    assert (name, distribution, version) == (bad.name, "bad-news", "1.2")
    assert reason in why
    assert "finer" in found.names("models")
    assert "letters" in found.names("datasets")
    assert not [entry for entry in found.entries if entry.origin.plugin == bad.name]
    assert not found.manager.has_plugin(bad.name)


@pytest.mark.parametrize("name", ["radd", "llama"])
def test_a_bundled_name_stays_with_the_bundled_plugin(plugin, bundled, name):
    thief = plugin(GOOD.replace('"fine"', f'"{name}"'), distribution="aardvark")
    for order in permutations([thief, bundled]):
        found = load_registry(order)
        assert found.entry("models", name).origin.distribution == "rcprobe"
        plugin_name, distribution, _, why = left_out(found)
        assert (plugin_name, distribution) == (thief.name, "aardvark")
        assert name in why
        assert "rcprobe" in why


def test_a_plugin_that_takes_one_taken_name_is_left_out_whole(plugin, bundled):
    source = GOOD + '    register("letters-too", "somewhere:Fine")\n    register("radd", "somewhere:Fine")\n'
    observer = "\n@rcprobe.hookimpl\ndef run_finished(report):\n    report.append('thief')\n"
    found = load_registry([plugin(source + observer), bundled])
    assert "fine" not in found.names("models")
    assert "letters-too" not in found.names("models")
    heard = []
    found.notify("run_finished", report=heard)
    assert heard == []


def test_two_strangers_who_want_one_name_are_settled_alike_in_any_order(plugin):
    points = [plugin(distribution=name) for name in ("one", "two", "three")]
    winners = set()
    for order in permutations(points):
        found = load_registry(order)
        (entry,) = found.entries
        winners.add(entry.origin.distribution)
        assert {f.origin.distribution for f in found.failures} == {"one", "two", "three"} - {entry.origin.distribution}
    assert len(winners) == 1


def test_the_order_of_entry_points_makes_no_difference(plugin, bundled):
    sources = [GOOD, GOOD.replace('"fine"', '"finer"'), GOOD, BAD["misspells a hook"][0], "1 / 0\n"]
    points = [bundled, *(plugin(s, distribution=f"d{i}") for i, s in enumerate(sources))]
    rng, seen = random.Random(0), set()
    for _ in range(6):
        rng.shuffle(points)
        found = load_registry(points)
        seen.add((tuple(claims(found)), tuple((str(f.origin), f.reason) for f in found.failures)))
    assert len(seen) == 1


def test_an_entry_point_named_like_another_takes_nothing_from_it(plugin):
    """Names of entry points are not unique: two distributions may choose the same."""
    heard = "\n@rcprobe.hookimpl\ndef run_finished(report):\n    report.append('{me}')\n"
    points = [plugin(GOOD.replace('"fine"', f'"{n}"') + heard, n, name="mine") for n in ("one", "two")]
    found = load_registry(points)
    report = []
    found.notify("run_finished", report=report)
    working = {point.value for point in points if point.dist.name in {e.origin.distribution for e in found.entries}}
    assert working
    assert set(report) == working, "a plugin whose names are listed has lost its hooks"
    assert len(found.entries) + len(found.failures) == 2


def test_an_entry_point_named_bundled_does_not_unload_the_bundled_plugin(plugin, bundled):
    found = load_registry([plugin(name="bundled", distribution="mimic"), bundled])
    assert "radd" in found.names("models")
    (command,) = found.manager.hook.register_commands.get_hookimpls()
    assert command.plugin is import_module("rcprobe_plugins")


# --- names → objects ---


def test_an_unknown_name_suggests_the_nearest(bundled):
    found = load_registry([bundled])
    with pytest.raises(UnknownNameError, match="no dataset is called 'leters'; did you mean 'letters'"):
        found.get("datasets", "leters")
    with pytest.raises(UnknownNameError, match="gpt2-mini"):
        found.get("models", "gpt2mini")


def test_a_name_like_no_other_lists_what_is_known(bundled):
    found = load_registry([bundled])
    with pytest.raises(UnknownNameError, match="known: absolute, alibi, "):
        found.get("encodings", "zzz")
    with pytest.raises(UnknownNameError, match="known: none"):
        load_registry([]).get("decoders", "zzz")


def test_a_name_of_another_kind_is_unknown(bundled):
    with pytest.raises(UnknownNameError, match="no dataset"):
        load_registry([bundled]).get("datasets", "radd")


def test_an_unknown_name_is_a_usage_error(bundled):
    with pytest.raises(UsageError) as caught:
        load_registry([bundled]).get("models", "rad")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("no_such_module_at_all:Fine", ""),
        ("{value}:Missing", "FINE = 1\n"),
        ("{value}:FINE", "import no_such_module_at_all\n"),
        ("{value}:FINE", "raise RuntimeError('needs a licence key')\n"),
        ("{value}:FINE", "def (:\n"),
    ],
    ids=["no module", "no attribute", "a missing dependency", "raises on import", "isn't Python"],
)
def test_a_target_that_cannot_be_imported_names_plugin_and_distribution(plugin, target, source):
    target = target.format(value=plugin(source).value)
    point = plugin(GOOD.replace("somewhere:Fine", target), distribution="half-there")
    found = load_registry([point])
    assert found.names("models") == ["fine"]
    with pytest.raises(PluginError) as caught:
        found.get("models", "fine")
    for part in (point.name, "half-there", "1.2", "fine", target):
        assert part in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_strangers_missing_target_stops_no_checkpoint_from_loading(plugin, bundled, monkeypatch):
    from rcprobe import loading

    broken = plugin(GOOD.replace("somewhere:Fine", "no_such_module_at_all:Fine"), distribution="broken")
    found = load_registry([broken, bundled])
    monkeypatch.setattr(loading, "registry", lambda: found)
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    assert loading.adapter_for(raw, "a checkpoint").name == "llama"


def test_a_target_that_is_no_metric_is_the_plugins_error(plugin, monkeypatch):
    from rcprobe import metrics

    target = plugin("def fine(seen):\n    return seen.log_probs[:, 0]\n").value
    source = GOOD.replace("register_models", "register_metrics").replace("somewhere:Fine", f"{target}:fine")
    found = load_registry([plugin(source, distribution="no-metric")])
    monkeypatch.setattr(metrics, "registry", lambda: found)
    with pytest.raises(PluginError, match="no-metric"):
        metrics.resolve_metrics(["fine"])


def test_a_target_that_is_no_adapter_is_the_plugins_error(plugin, monkeypatch):
    from rcprobe import loading

    target = plugin("class Fine:\n    pass\n").value
    found = load_registry([plugin(GOOD.replace("somewhere:Fine", f"{target}:Fine"), distribution="no-adapter")])
    monkeypatch.setattr(loading, "registry", lambda: found)
    with pytest.raises(PluginError, match="no-adapter"):
        loading.load("fine")


# --- observers ---

OBSERVER = """
import rcprobe

@rcprobe.hookimpl
def step_finished(step):
    step.append("{me}")
"""
RAISING = OBSERVER.replace('step.append("{me}")', 'raise OSError("tracker is down")')


def test_observers_all_hear_of_a_step(plugin):
    points = [plugin(OBSERVER, f"d{i}") for i in range(3)]
    found = load_registry(points)
    heard = []
    found.notify("step_finished", step=heard)
    assert sorted(heard) == sorted(point.value for point in points)


def test_a_raising_observer_stops_no_other(plugin):
    points = [plugin(RAISING if i == 1 else OBSERVER, f"d{i}") for i in range(3)]
    found = load_registry(points)
    heard = []
    found.notify("step_finished", step=heard)
    assert sorted(heard) == sorted([points[0].value, points[2].value])
    name, distribution, version, why = left_out(found)
    assert (name, distribution, version) == (points[1].name, "d1", "1.2")
    assert "step_finished" in why
    assert "tracker is down" in why


def test_an_observer_that_raises_each_time_is_reported_once(plugin):
    found = load_registry([plugin(RAISING)])
    for _ in range(3):
        found.notify("step_finished", step=[])
    assert len(found.failures) == 1


def test_nobody_listens_and_nothing_happens():
    found = load_registry([])
    found.notify("step_finished", step=[])
    found.notify("run_finished", report=[])
    assert found.failures == []


# --- commands ---


def test_a_stranger_cannot_replace_a_command_of_the_core(plugin, bundled):
    """Commands are names too: ``run`` stays ours, and the plugin that claims it is reported."""
    source = """
import rcprobe

@rcprobe.hookimpl
def register_commands(cli):
    @cli.command("run")
    def stolen():
        "Stolen."
"""
    site = plugin(source, "thief").dist.locate_file("")
    command = [sys.executable, "-m", "rcprobe", "run", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "Stolen" not in done.stdout
    assert "Probe a model" in done.stdout


# --- switches ---


def test_a_module_in_the_working_folder_is_found_by_the_installed_command(tmp_path):
    """Unlike ``python -m``, it doesn't look there by itself."""
    (tmp_path / "beside_me.py").write_text(GOOD)
    command = [Path(sys.executable).with_name("rcprobe"), "plugins", "list"]
    environment = {**os.environ, "RCPROBE_PLUGINS": "beside_me"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.stderr == ""
    assert "beside_me" in done.stdout


def test_a_check_says_what_was_left_out_before_it_says_that_a_name_is_unknown(monkeypatch, capsys):
    names = load_registry([])
    names.blame(Origin("mine", "mine", None), "ModuleNotFoundError: No module named 'mine'")
    for module in ("rcprobe.commands.output", "rcprobe.commands.plugins", "rcprobe.contracts"):
        monkeypatch.setattr(f"{module}.registry", lambda: names)
    for command in ("check", "show"):
        monkeypatch.setattr(sys, "argv", ["rcprobe", "plugins", command, "surprise"])
        with pytest.raises(SystemExit, match="2"):
            main()
        left_out, unknown = capsys.readouterr().err.strip().splitlines()
        assert "No module named 'mine'" in left_out
        assert "no plugin entry is called 'surprise'" in unknown


def fresh(monkeypatch, *points):
    """``registry()`` as a new process would make it, with these entry points installed."""
    monkeypatch.setattr(metadata, "entry_points", lambda group: list(points))
    return registry.__wrapped__()


@pytest.mark.parametrize("spelling", ["{name}", "off-key", " off-key , nothing", "nothing,{name}"])
def test_a_plugin_is_disabled_by_its_name_or_its_distribution(plugin, bundled, monkeypatch, spelling):
    marker = "\nimport sys\nsys.modules['stranger_was_imported'] = sys\n"
    point = plugin(GOOD + marker, distribution="off-key")
    monkeypatch.setenv("RCPROBE_DISABLE_PLUGINS", spelling.format(name=point.name))
    found = fresh(monkeypatch, bundled, point)
    assert "fine" not in found.names("models")
    assert "radd" in found.names("models")
    assert found.failures == []
    assert "stranger_was_imported" not in sys.modules, "a disabled plugin was imported"


def test_a_plugin_that_would_fail_can_be_disabled(plugin, monkeypatch):
    monkeypatch.setenv("RCPROBE_DISABLE_PLUGINS", "broken")
    assert fresh(monkeypatch, plugin("1 / 0\n", distribution="broken")).failures == []


def test_the_bundled_plugins_can_be_disabled(plugin, bundled, monkeypatch):
    monkeypatch.setenv("RCPROBE_DISABLE_PLUGINS", "bundled")
    assert [entry.name for entry in fresh(monkeypatch, bundled, plugin()).entries] == ["fine"]


@pytest.mark.parametrize("value", ["", " ", ","])
def test_an_empty_list_disables_nothing(plugin, monkeypatch, value):
    monkeypatch.setenv("RCPROBE_DISABLE_PLUGINS", value)
    assert fresh(monkeypatch, plugin()).names("models") == ["fine"]


@pytest.mark.parametrize(
    ("source", "error"),
    [("1 / 0\n", ZeroDivisionError), (GOOD + "    raise OSError('x')\n", OSError), ("", PluginError)],
)
def test_errors_can_be_made_to_raise(plugin, monkeypatch, source, error):
    monkeypatch.setenv("RCPROBE_RAISE_PLUGIN_ERRORS", "1")
    with pytest.raises(error):
        load_registry([plugin(source)])


def test_errors_of_observers_can_be_made_to_raise(plugin, monkeypatch):
    found = load_registry([plugin(RAISING)])
    monkeypatch.setenv("RCPROBE_RAISE_PLUGIN_ERRORS", "1")
    with pytest.raises(OSError, match="tracker is down"):
        found.notify("step_finished", step=[])
