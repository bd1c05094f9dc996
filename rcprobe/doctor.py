"""What this machine has, what won't work on it and why, each with the way out. No secret is ever shown."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rcprobe import __version__
from rcprobe.packages import installed
from rcprobe.plugins import BUNDLED, DISABLE, RAISE, registry

GIB = 2**30
PYTHON = (3, 11)
LITTLE_DISK, LITTLE_MEMORY = 20 * GIB, 2 * GIB
EXTRAS = {  # extra → the modules that it brings, and what doesn't work without them
    "accelerate": (("accelerate",), "spreading a model over GPU, CPU and disk (device_map)"),
    "data": (("datasets",), "datasets of the hub as tables"),
    "gguf": (("accelerate", "gguf"), "GGUF files"),
    "peft": (("peft",), "low-rank adapters (--peft)"),
    "quantized": (("accelerate", "bitsandbytes", "torchao"), "weights made smaller on loading"),
    "report": (("jinja2", "matplotlib"), "report.html and figures"),
    "tensorboard": (("tensorboard",), "following a run in TensorBoard"),
    "wandb": (("wandb",), "following a run in Weights & Biases"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``state`` is ``ok``, ``note`` (something won't work, the rest does) or ``broken`` (the core doesn't work);
    ``way_out`` says what to do, and is empty where there is nothing to do.
    """

    topic: str
    state: Literal["ok", "note", "broken"]
    seen: str
    way_out: str = ""


def examine() -> list[Finding]:
    """Look at everything that ``rcprobe`` stands on. Takes as long as importing torch and asking the hub once."""
    looks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "devices": _devices,
        "cache": _cache,
        "hub": _hub,
        "keeping runs": _keeping,
        "extras": _extras,
        "plugins": _plugins,
    }
    found: list[Finding] = []
    for topic, look in looks.items():
        try:
            found += look()
        except Exception as error:  # noqa: BLE001 - a broken package raises anything, and the rest is looked at still
            told = f"it can't be looked at ({type(error).__name__}: {error})"
            found.append(Finding(topic, "broken", told, "pip install --force-reinstall rcprobe"))
    return found


def _versions() -> Iterator[Finding]:
    enough = sys.version_info >= PYTHON
    wanted = ".".join(map(str, PYTHON))
    told = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", "ok" if enough else "broken", told, "" if enough else f"use Python {wanted} or newer")
    try:
        needed = metadata.requires("rcprobe") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "rcprobe", "note", f"{__version__}, not installed", "pip install rcprobe, to have its plugins found"
        )
        return
    yield Finding("rcprobe", "ok", __version__)
    from packaging.requirements import Requirement

    for requirement in map(Requirement, needed):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement.name, str(requirement.specifier), requirement.specifier.contains)


def _package(name: str, wanted: str, fits: Callable[..., bool]) -> Finding:
    way_out = f"pip install '{name}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "broken", "not installed", way_out)
    if not fits(version, prereleases=True):
        return Finding(name, "broken", f"{version}, and rcprobe needs {wanted}", way_out)
    return Finding(name, "ok", version)


def _devices() -> Iterator[Finding]:
    import torch

    from rcprobe.probing.sizes import UNKNOWN, free_memory

    yield Finding("devices", "ok", f"cpu, {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        yield Finding("devices", "ok", f"cuda:{i}, {torch.cuda.get_device_name(i)}, {_gib(free)} of {_gib(total)} free")
    if torch.backends.mps.is_available():
        yield Finding("devices", "ok", "mps")
    elif not torch.cuda.is_available():
        built = "this torch is built without CUDA" if torch.version.cuda is None else "CUDA finds no device"
        yield Finding("devices", "note", f"no GPU: {built}", "models of billions of parameters want one; see --device")
    free = free_memory(torch.device("cpu"))
    if free == UNKNOWN:
        yield Finding("memory", "ok", "this system doesn't say how much is free")
    else:
        little = free < LITTLE_MEMORY
        way_out = "take a smaller --batch-size, or --dtype bfloat16" if little else ""
        yield Finding("memory", "note" if little else "ok", f"{_gib(free)} free", way_out)


def _cache() -> Iterator[Finding]:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    way_out = "set HF_HOME to a folder that can"
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
    except PermissionError:
        yield Finding("cache", "note", f"{folder} can't be looked into", way_out)
        return
    if not os.access(there, os.W_OK):
        yield Finding("cache", "note", f"{folder} can't be written", way_out)
        return
    free = shutil.disk_usage(there).free
    little = free < LITTLE_DISK
    way_out = "an 8B model takes 16 GiB: set HF_HOME to a larger disk" if little else ""
    yield Finding("cache", "note" if little else "ok", f"{folder}, {_gib(free)} free", way_out)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    from rcprobe.hub import reachable

    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "note", "offline by HF_HUB_OFFLINE", "unset it, or give folders instead of hub ids")
    elif reachable():
        yield Finding("hub", "ok", "it answers")
    else:
        way_out = "give folders instead of hub ids; HF_HUB_OFFLINE=1 saves the waiting"
        yield Finding("hub", "note", "it doesn't answer: what isn't in the cache can't be had", way_out)
    token = get_token() is not None
    yield Finding("hub token", "ok", "set" if token else "not set (gated models need one: hf auth login)")


def _keeping() -> Iterator[Finding]:
    if importlib.util.find_spec("fcntl") is None:
        yield Finding(
            "keeping runs", "note", "this system has no fcntl: --out can't lock its folder", "run without --out"
        )
    else:
        yield Finding("keeping runs", "ok", "folders can be locked")


def _extras() -> Iterator[Finding]:
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [module for module in modules if not installed(module)]
        if missing:
            seen = f"{', '.join(missing)} not installed, so not here: {purpose}"
            yield Finding(f"extra {extra}", "note", seen, f"pip install 'rcprobe[{extra}]'")
        else:
            yield Finding(f"extra {extra}", "ok", f"installed: {purpose}")


def _plugins() -> Iterator[Finding]:
    names = registry()
    for origin in names.known():
        state, seen = names.state(origin), f"{origin.package}: {names.state(origin)}"
        topic = f"plugin {origin.plugin}"
        if state == "loaded":
            yield Finding(topic, "ok", seen)
        elif state == "disabled":
            yield Finding(topic, "note", seen, f"it is named in {DISABLE}")
        else:
            told = f"{seen}: {names.reasons(origin)}"
            way_out = f"tell its author; {RAISE}=1 shows the traceback, {DISABLE}={origin.plugin} leaves it out"
            yield Finding(topic, "broken" if origin.value == BUNDLED else "note", told, way_out)
    if not any(origin.value == BUNDLED for origin in names.known()):
        yield Finding(
            "plugins", "broken", "rcprobe's own plugins aren't found", "pip install --force-reinstall rcprobe"
        )


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB"
