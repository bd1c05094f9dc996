"""The command line: what it prints where, and with which exit code it ends."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import typer

import rcprobe
from rcprobe import cli
from rcprobe.plugins import registry

SMALL = ("--limit", "1", "--option", "width=8")
HEAVY = {"torch", "nnsight", "transformers", "pandas", "scipy"}


@dataclass
class Done:
    """How a command ended. ``code`` None is what ``sys.exit`` takes for success."""

    code: int | None
    out: str
    err: str


def call(*arguments):
    """Run ``rcprobe …`` in this process. An exception that would be a traceback fails the test."""
    out, err = io.StringIO(), io.StringIO()
    argv = patch.object(sys, "argv", ["rcprobe", *arguments])
    with argv, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main()
    return Done(ended.value.code, out.getvalue(), err.getvalue())


def refused(*arguments):
    """Run a command that must be refused: exit code 2, nothing on stdout, one short reason on stderr."""
    done = call(*arguments)
    assert done.code == 2, done
    assert done.out == ""
    assert "Traceback" not in done.err
    assert 0 < len(done.err) < 700
    return done.err


def strict(text):
    """Parse JSON as the standard has it: NaN and Infinity are errors."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def python(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def commands():
    """Every command's path and its parser, those of plugins among them."""
    call("--help")  # plugins add theirs when the command line starts

    def walk(group, path):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, (*path, name))
            else:
                yield (*path, name), command

    return dict(walk(typer.main.get_command(cli.cli), ()))


# --- starting up ---

IMPORTS = f"""
import sys
from rcprobe.cli import main
for line in ("--help", "plugins list", "plugins list --json", "run --help", "demo --help", "rum", "runs list .",
             "run --config nowhere.toml", "run", "--show-completion", "plugins show bundled", "doctor --help",
             "plugins new class --kind metric"):
    sys.argv = ["rcprobe", *line.split()]
    try:
        main()
    except SystemExit:
        pass
    loaded = sorted({HEAVY!r} & set(sys.modules))
    if loaded:
        sys.exit(f"{{line}} imported {{', '.join(loaded)}}")
"""


def test_commands_that_need_no_model_import_nothing_heavy():
    done = python("-c", IMPORTS)
    assert done.returncode == 0, done.stderr
    assert "radd" in done.stdout


def test_python_m_rcprobe_is_the_same_command():
    done = python("-m", "rcprobe", "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name in ("run", "runs", "plugins", "Exit codes: 0 done, 1 failed, 2 asked wrongly, 130 interrupted"):
        assert name in done.stdout


def test_without_arguments_it_shows_its_help():
    done = call()
    assert done.code == 2
    assert "Commands:" in done.out + done.err


# --- help ---


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_the_help_of_every_command_gives_an_example(path):
    done = call(*path, "--help")
    assert done.code in (0, None)
    assert done.err == ""
    assert f"Example: rcprobe {' '.join(path)}" in " ".join(done.out.split())


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_the_example_of_every_command_can_be_parsed(path):
    command = commands()[path]
    (example,) = re.findall(r"Example: rcprobe (.+)", command.help)
    words = shlex.split(example)
    assert tuple(words[: len(path)]) == path
    command.make_context(path[-1], words[len(path) :])


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_option_of_every_command_is_described(path):
    for parameter in commands()[path].params:
        assert parameter.help or parameter.name == "help", parameter.name


@pytest.mark.parametrize("path", [(), *commands()], ids=" ".join)
def test_help_fits_a_screen(path):
    with patch.dict(os.environ, {"COLUMNS": "80", "TERMINAL_WIDTH": "80"}):
        lines = call(*path, "--help").out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_quiet_is_no_pair_of_switches():
    assert "--no-" not in call("run", "--help").out


@pytest.mark.parametrize(
    ("words", "found"), [("rcprobe ru", "run"), ("rcprobe run ra", "radd"), ("rcprobe run radd l", "letters")]
)
def test_the_shell_completes_commands_and_names(words, found):
    asked = {"_RCPROBE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    script = "import sys; sys.argv = ['rcprobe']; from rcprobe.cli import main; main()"
    done = python("-c", script, env={**os.environ, **asked})
    assert found in done.stdout.split()


# --- names that nobody knows ---


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("rum", "'run'"),
        ("plugins lst", "'list'"),
        ("run radd letters --limt 3", "--limit"),
        ("run rad letters", "'radd'"),
        ("run gpt2mini letters", "'gpt2-mini'"),
        ("run radd leters", "'letters'"),
        ("run radd letters --option encoding=rop", "'rope'"),
        ("run radd letters --option widht=8", "width"),
        ("plugins show letres", "'letters'"),
    ],
)
def test_an_unknown_name_is_refused_with_a_suggestion(line, suggestion):
    assert suggestion in refused(*line.split())


@pytest.mark.parametrize("arguments", [(), ("radd",), ("", "letters"), ("radd", ""), (" ", "letters")])
def test_a_run_without_a_model_or_a_dataset_is_refused(arguments):
    assert "rcprobe run MODEL DATASET" in refused("run", *arguments)


@pytest.mark.parametrize("model", ["./no-such-folder", "nobody/no-such-model"])
def test_a_model_that_is_nowhere_is_refused(model, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert model in refused("run", model, "letters")


# --- values that make no sense ---


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--limit 0", "limit 0"),
        ("--limit -3", "limit -3"),
        ("--limit some", "--limit"),
        ("--seeds 0", "seeds is 0"),
        ("--seeds -1", "seeds is -1"),
        ("--steps 0", "steps is 0"),
        ("--device nonsense", "nonsense"),
        ("--device ''", "device"),
        ("--device meta", "meta"),
        ("--device xpu", "xpu"),
        ("--dtype foo", "bfloat16"),
        ("--dtype ''", "bfloat16"),
        ("--option width", "name=value"),
        ("--option =8", "name=value"),
        ("--option width=wide", "width"),
        ("--option width=0", "width"),
        ("--option width=9 --option heads=2", "heads"),
        ("--out ''", "empty name"),
        ("--fresh", "--out"),
    ],
)
def test_a_senseless_value_is_refused(arguments, reason):
    if "xpu" in arguments:
        import torch

        if torch.xpu.is_available():
            pytest.skip("here it makes sense")
    assert reason in refused("run", "radd", "letters", *shlex.split(arguments))


def test_cuda_without_cuda_is_refused_with_the_way_out():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    assert "--device cpu" in refused("run", "radd", "letters", "--device", "cuda")


@pytest.mark.parametrize(
    ("option", "why"), [("alphabet=abc", "the tokenizer can't read it"), ("max_length=4", "the model holds 4")]
)
def test_a_model_too_small_for_the_dataset_is_refused(option, why):
    done = call("run", "radd", "letters", *SMALL, "--option", option)
    assert done.code == 2
    assert "can't be asked about any of these facts" in done.err
    assert why in done.err


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "no JSON",
        "[]",
        "{}",
        '{"model_type": "no-such-type"}',
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
    ],
    ids=["no config", "empty config", "no JSON", "a list", "no model type", "unknown type", "no weights"],
)
def test_a_folder_without_a_usable_model_is_refused(config, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    done = call("run", str(tmp_path), "letters")
    assert done.code in (1, 2)
    assert done.out == ""
    assert str(tmp_path) in done.err


# --- where results go ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One run of two facts: how it ended, and its folder."""
    folder = tmp_path_factory.mktemp("run") / "new" / "folder"
    options = ("--limit", "2", "--option", "width=8", "--json", "--out", str(folder))
    return call("run", "radd", "letters", *options), folder


def test_json_is_strict_and_alone_on_stdout(saved):
    done, _ = saved
    assert done.code is None
    assert done.err == ""
    report = strict(done.out)
    assert report["info"]["model"] == "radd"
    assert report["info"]["facts"] == 2
    assert report["info"]["options"] == {"width": 8}
    for readings in report["accuracy"].values():
        for seeds in readings.values():
            assert all(value is None or 0 <= value <= 1 for seed in seeds for value in seed)
    assert {"storage", "attention_correlation", "gradient_alignment"} <= set(report["signatures"])


def test_out_holds_the_same_report_and_every_value(saved):
    done, folder = saved
    assert {"report.json", "values.csv", "manifest.json", "seed-0"} <= {path.name for path in folder.iterdir()}
    assert strict((folder / "report.json").read_text()) == strict(done.out)
    header, first, *_ = (folder / "values.csv").read_text().splitlines()
    assert {"seed", "step", "metric", "fact", "layer", "head", "value"} <= set(header.split(","))
    assert len(first.split(",")) == len(header.split(","))


def test_out_on_a_folder_with_files_overwrites_nothing(saved):
    _, folder = saved
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    before = {path: path.read_bytes() for path in files}
    told = refused("run", "radd", "letters", *SMALL, "--out", str(folder))
    assert str(folder) in told
    assert "facts: 2 there, 1 now" in told
    assert {path: path.read_bytes() for path in files} == before


def test_out_takes_an_empty_folder_and_quiet_prints_nothing(tmp_path):
    done = call("run", "radd", "letters", *SMALL, "--quiet", "--out", str(tmp_path))
    assert (done.code, done.out, done.err) == (None, "", "")
    assert {"report.json", "values.csv"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("place", ["/proc/x", "{file}", "{file}/below"])
def test_out_where_nothing_can_be_written_is_refused(place, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    assert "can't write" in refused("run", "radd", "letters", *SMALL, "--out", place.format(file=file))
    assert file.read_text() == "kept"


@pytest.fixture(scope="module")
def printed():
    """A report at eighty columns: what a pipe, a log and a small terminal get."""
    with patch.dict(os.environ, {"COLUMNS": "80"}):
        return call("run", "radd", "letters", *SMALL, "--limit", "2")


def test_the_report_is_printed_for_people(printed):
    assert printed.code is None
    assert printed.err == ""
    for part in ("Accuracy", "Signatures", "full vocabulary", "26 letters", "radd on letters"):
        assert part in printed.out


def test_nothing_in_the_printed_report_is_cut_off(printed):
    assert "…" not in printed.out


# --- plugins ---


def test_plugins_list_shows_every_name():
    done = call("plugins", "list")
    assert done.code is None
    for entry in registry().entries:
        assert entry.name in done.out


def test_starting_twice_in_one_process_blames_nobody():
    before = call("plugins", "list")
    again = call("plugins", "list")
    assert (again.out, again.err) == (before.out, before.err)
    assert f"bundled                  rcprobe {rcprobe.__version__}            loaded\n" in before.out
    assert "demo" not in again.err


def test_plugins_list_as_json():
    found = strict(call("plugins", "list", "--json").out)
    assert set(found) == {"plugins", "entries", "failures"}
    assert {"plugin": "bundled", "state": "loaded", "error": None}.items() <= found["plugins"][0].items()
    radd = next(entry for entry in found["entries"] if entry["name"] == "radd")
    assert radd["kind"] == "models"
    assert radd["distribution"] == "rcprobe"
    assert radd["target"] == "rcprobe_plugins.models.radd:Radd"


@pytest.mark.parametrize("name", ["radd", "rope", "letters", "storage"])
def test_plugins_show_describes_a_name(name):
    done = call("plugins", "show", name)
    assert done.code is None
    assert name in done.out
    assert "rcprobe_plugins." in done.out
    assert "(no description)" not in done.out
    (entry,) = strict(call("plugins", "show", name, "--json").out)
    assert entry["name"] == name
    assert entry["description"] in done.out


def test_plugins_show_takes_a_plugins_own_name():
    done = call("plugins", "show", "bundled")
    assert done.code is None
    assert "bundled (plugin): registers radd, gpt2-mini" in done.out
    assert "state    loaded\n" in done.out


SOURCES = {
    "quits": "raise RuntimeError('needs a licence key')\n",
    "half_there": """
import rcprobe

@rcprobe.hookimpl
def register_models(register):
    register("half", "no_such_module:Half")
""",
    "never": "1 / 0\n",
    "silent": """
import rcprobe

class Silent(rcprobe.Encoding):
    reads_distance_only = True

@rcprobe.hookimpl
def register_encodings(register):
    register("quiet", "silent:Silent")
""",
}


def test_what_failed_is_listed_and_shown_with_its_state_and_error(tmp_path):
    for name, source in SOURCES.items():
        (tmp_path / f"{name}.py").write_text(source)
    script = """
import sys
from rcprobe.cli import main
for line in sys.argv[1:]:
    sys.argv = ["rcprobe", *line.split()]
    try:
        main()
    except SystemExit as ended:
        print("ended", ended.code)
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    switches = {"RCPROBE_PLUGINS": "quits,half_there,never,silent", "RCPROBE_DISABLE_PLUGINS": "never"}
    lines = ("plugins list", *(f"plugins show {name}" for name in ("quits", "half", "never", "quiet")))
    done = python("-c", script, *lines, env={**os.environ, **switches, "PYTHONPATH": path})
    listed, left_out, broken, disabled, lacking = (part.split() for part in done.stdout.split("ended ")[:5])
    text = " ".join(listed)
    for state in ("quits unknown distribution left out", "never unknown distribution disabled", "distribution loaded"):
        assert state in text
    assert "left out: plugin 'quits' (unknown distribution): RuntimeError: needs a licence key" in done.stderr
    assert "state left out: RuntimeError: needs a licence key" in " ".join(left_out)
    assert "state broken: plugin 'half_there'" in " ".join(broken)
    assert "No module named 'no_such_module'" in " ".join(broken)
    assert "state disabled" in " ".join(disabled)
    assert [part.split()[0] for part in done.stdout.split("ended ")[1:]] == ["None", "1", "1", "None", "1"]
    assert "state broken: encoding 'quiet' lacks a declaration: set values_carry_position" in " ".join(lacking)


# --- stopping ---


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--data-option", "length=six"), r"dataset 'letters' can't be made with length='six' \(TypeError: "),
        (("--steps", "2", "--lr", "-1"), "training: lr is -1; it must be positive"),
        (("--train", "lora", "--steps", "2"), r"declares no lora_targets; name .* \[train\], targets"),
    ],
)
def test_values_that_cannot_be_are_refused_without_a_traceback(asked, said):
    assert re.search(said, refused("run", "radd", "letters", "--limit", "2", "--option", "width=8", *asked))


def test_a_model_of_few_positions_is_verified_and_can_be_asked_nothing_longer():
    asked = ("letters", "--limit", "2", "--metric", "accuracy", "--option")
    assert "it has 10 tokens, the model holds 3" in refused("run", "radd", *asked, "max_length=3")
    assert "it has 10 tokens, the model holds 2" in refused("run", "radd", *asked, "max_length=2")
    short = ("letters", "--data-option", "length=2", "--limit", "2", "--metric", "accuracy", "--option", "max_length=2")
    for model in ("radd", "gpt2-mini"):
        assert call("run", model, *short).code is None
    failed = call("run", "radd", *asked, "max_length=1")
    assert (failed.code, "a query needs two" in failed.err) == (1, True)


def test_training_inside_its_warm_up_says_how_far_the_rate_got():
    asked = ("--limit", "2", "--metric", "accuracy", "--option", "width=8", "--steps", "5", "--lr", "0.01")
    done = call("run", "radd", "letters", *asked)
    assert "training ended in its 100 warm-up steps: the learning rate got to 0.0005 of 0.01" in done.out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_behind_standard_output_is_said_in_a_line():
    command = [sys.executable, "-m", "rcprobe", "plugins", "list", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "rcprobe: standard output can't be written (no space left)\n"


def test_a_reader_that_has_gone_is_told_nothing():
    code = (
        "import sys; from rcprobe import cli; cli._add_plugin_commands = lambda: None; "
        "cli.cli = lambda **_: (sys.stdin.read(), sys.stdout.write('short')); cli.main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, env=environment, **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_short_answer_that_is_written_at_the_end_alone_is_missed_too():
    code = (
        "import sys; from rcprobe import cli; cli._add_plugin_commands = lambda: None; "
        "cli.cli = lambda **_: sys.stdout.write('short'); cli.main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )
    assert done.returncode == 1
    assert done.stderr == "rcprobe: standard output can't be written (no space left)\n"
