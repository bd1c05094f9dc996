"""A plugin to start from: a package that installs, is typed, and passes its own test."""

import ast
import builtins
import importlib.util
import keyword
import re
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from string import Template

from rcprobe.errors import RunError, UsageError
from rcprobe.files import make_folder, unwritable, write_bytes
from rcprobe.plugins import registry

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclass(frozen=True)
class Start:
    """What a kind of plugin starts from: its module, whether its target is a class, what it imports, how it is used."""

    module: str
    is_class: bool
    imports: tuple[str, ...]
    use: str


STARTS = {
    "model": Start("family", True, ("tokenizers", "torch", "transformers"), "rcprobe run $name letters --steps 300"),
    "dataset": Start("facts", False, (), "rcprobe run MODEL $name"),
    "metric": Start("measure", False, ("torch",), "rcprobe run MODEL DATASET --metric $name"),
    "encoding": Start("position", True, ("torch",), "rcprobe run radd letters --option encoding=$name"),
    "decoder": Start("order", False, ("torch",), "rcprobe run --config FILE  # which says: decoding.decoder = '$name'"),
}


def new_plugin(name: str, kind: str, folder: str | Path | None = None) -> list[Path]:
    """Write a package ``name`` that adds a plugin of a kind (``STARTS``) of that name; the files, in a new folder.

    The folder is ``name`` with dashes where none is given. Raises ``UsageError`` for a name that is no identifier of
    lower-case letters, digits and single underscores, or is taken, and for a folder that holds anything; nothing is
    written then.
    """
    if kind not in STARTS:
        raise UsageError(f"kind {kind!r}; use one of {', '.join(STARTS)}")
    check_name(name, kind)
    distribution = name.replace("_", "-")
    path = Path(distribution if folder is None else folder)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path}: is there already and not an empty folder; name another with --out")
    except OSError as error:
        raise UsageError(unwritable(path, error)) from error
    start = STARTS[kind]
    words = {
        "name": name,
        "distribution": distribution,
        "kind": kind,
        "article": "An" if kind == "encoding" else "A",
        "module": start.module,
        "target": _target(name, kind),
        "dependencies": ", ".join(f'"{package}"' for package in ("rcprobe", *start.imports)),
        "use": Template(start.use).substitute(name=name),
    }
    texts = {
        "pyproject.toml": _filled("pyproject", words),
        "README.md": _filled("readme", words),
        f"{name}/__init__.py": _filled("hook", words),
        f"{name}/{start.module}.py": _filled(kind, words),
        f"{name}/py.typed": "",
        f"test_{name}.py": _filled(f"{kind}_check", words),
    }
    try:
        make_folder(path / name)
    except RunError as error:
        raise UsageError(str(error)) from error
    for place, text in texts.items():
        write_bytes(path / place, text.encode())
    return [path / place for place in texts]


def check_name(name: str, kind: str) -> None:
    """Raise ``UsageError`` where a new plugin of a kind can't have this name, and say what is in the way."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UsageError(
            f"{name!r} can't name a package and what is in it; use an identifier of lower-case letters, digits and "
            "single underscores, such as my_plugin"
        )
    names = registry()
    for entry in names.entries:
        if entry.kind == f"{kind}s" and entry.name.replace("-", "_") == name:
            raise UsageError(f"the {kind} {entry.name!r} is already registered by {entry.origin}; use another name")
    for origin in names.known():
        if origin.plugin.replace("-", "_") == name:
            raise UsageError(f"{name!r} is taken by {origin}; use another name")
    installed = {(dist.name or "").lower().replace("-", "_").replace(".", "_") for dist in metadata.distributions()}
    if name in installed or importlib.util.find_spec(name) is not None:
        raise UsageError(f"{name!r} is taken by an installed package or module; use another name")
    for word in (name, _target(name, kind)):
        if keyword.iskeyword(word) or hasattr(builtins, word) or word in _used(kind):
            raise UsageError(
                f"{name!r}: {word} means something else in Python, or in what a {kind} starts from; use another name"
            )


def _target(name: str, kind: str) -> str:
    """What the plugin's object is called: a class in capitals, anything else as the plugin."""
    return "".join(part.capitalize() for part in name.split("_")) if STARTS[kind].is_class else name


def _used(kind: str) -> set[str]:
    """Every name that a kind's templates use themselves."""
    blank = dict.fromkeys(("name", "target", "module", "kind"), "_")
    texts = [_filled(template, blank) for template in ("hook", kind, f"{kind}_check")]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    return {getattr(node, field, "") for node in nodes for field in ("id", "arg", "name")}


def _filled(template: str, words: dict[str, str]) -> str:
    text = resources.files("rcprobe").joinpath("templates", f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(words)
