"""A checkpoint in a folder or on the hub: its configuration, its weights, and why either can't be used."""

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import nn

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError, UsageError

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
WANTED = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
PATIENCE = 5.0  # seconds until a hub that doesn't answer is given up
WRONG = {
    "missing_keys": "missing from the checkpoint",
    "unexpected_keys": "not of this architecture",
    "mismatched_keys": "of another shape",
    "error_msgs": "not readable",
}
DeviceMap = str | Mapping[str, int | str]


def raw_config(source: str, revision: str | None = None) -> dict[str, Any]:
    """A checkpoint's ``config.json`` as it is written. Raises ``UsageError`` where there is none to read."""
    folder = Path(source)
    path = folder / "config.json" if folder.is_dir() else _config_from_hub(source, revision)
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: can't be read as a model's configuration ({error})") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: a model's configuration is an object with names, not a {type(raw).__name__}")
    return raw


def local_folder(source: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint, brought from the hub first if ``source`` is no folder."""
    if Path(source).is_dir():
        if revision is not None:
            raise UsageError(f"{source}: a folder has no revisions; leave revision= out")
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(
        _from_hub(
            source,
            "weights",
            lambda: snapshot_download(
                source,
                revision=revision,
                allow_patterns=WANTED,
                ignore_patterns=["*/*"],
                local_files_only=not _reachable(),
            ),
        )
    )


def read_model(
    folder: Path, family: type[Adapter], raw: Mapping[str, Any], dtype: torch.dtype | None, device_map: DeviceMap | None
) -> nn.Module:
    """The family's architecture with a folder's weights, each of them used and none made up.

    ``dtype`` None takes the checkpoint's. Raises ``AdapterError`` for weights that are missing, left over, of another
    shape, corrupt, or pickled.
    """
    check_weights(folder)
    try:
        with errors_only():
            model, info = architecture(family).from_pretrained(
                folder,
                config=family.config(raw),
                key_mapping=dict(family.keys) or None,
                dtype=dtype or "auto",
                device_map=device_map,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that they are listed, below, with the others
                output_loading_info=True,
            )
    except (OSError, RuntimeError) as error:
        raise AdapterError(f"{folder}: {family.name}: the weights can't be loaded ({error})") from error
    wrong = {kind: _names(info[kind]) for kind in WRONG if info.get(kind)}
    wrong["unexpected_keys"] = [
        name
        for name in wrong.get("unexpected_keys", ())
        if not any(re.search(unused, name) for unused in family.unused)
    ]
    if any(wrong.values()):
        listed = "; ".join(f"{len(names)} {WRONG[kind]} ({_listed(names)})" for kind, names in wrong.items() if names)
        raise AdapterError(
            f"{folder}: {family.name} doesn't fit this checkpoint; of its weights {listed}; nothing was loaded in "
            "their place. Correct the adapter's keys (docs/add-a-model.md)"
        )
    loaded: nn.Module = model
    if family.keys:
        # save_pretrained would write the weights by their old names beside the stock configuration of the new ones,
        # and whoever reads that without the adapter gets random weights
        loaded._weight_conversions = None  # type: ignore[assignment]
    return loaded


def check_weights(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each with a whole header. Raises ``AdapterError`` naming the file at fault."""
    from safetensors import SafetensorError, safe_open

    files = _weight_files(folder)
    for path in files:
        if not path.is_file():
            raise AdapterError(f"{path}: named in {INDEX} and not there; the download isn't complete")
        try:
            with safe_open(path, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise AdapterError(f"{path}: the file is corrupt or cut short ({error}); download it again") from error
    return files


def architecture(family: type[Adapter]) -> Any:
    """The transformers class that runs a family."""
    module, colon, name = family.architecture.partition(":")
    return getattr(importlib.import_module(module if colon else "transformers"), name if colon else module)


@contextmanager
def errors_only() -> Iterator[None]:
    """Transformers' report of what it filled in is silent inside: it is an error here, raised after."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterError(f"{index}: no index of weights ({type(error).__name__}: {error})") from error
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    only = f", only {pickles[0]}: pickled weights run code as they load and are never read" if pickles else ""
    raise AdapterError(
        f"{folder}: no {WEIGHTS} and no {INDEX}{only}. Convert a copy you trust with "
        "save_pretrained, or take a revision with safetensors"
    )


def _config_from_hub(source: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        _from_hub(
            source,
            "config.json",
            lambda: hf_hub_download(source, "config.json", revision=revision, local_files_only=not _reachable()),
        )
    )


def _reachable() -> bool:
    """Whether the hub answers at all: its client would ask five times, for minutes, before it looks in its cache."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE):
            return True
    except HTTPError:  # an answer, if an unkind one
        return True
    except OSError:
        return False


def _from_hub(source: str, what: str, download: Callable[[], str]) -> str:
    try:
        return download()
    except Exception as error:  # the hub client raises many kinds, each meaning: not to be had
        raise UsageError(
            f"{source}: no such folder, and the hub gave no {what} ({type(error).__name__}). Give the path of a local "
            f"copy instead (elsewhere: hf download {source} --local-dir FOLDER)"
        ) from error


def _names(found: Any) -> list[str]:
    return sorted(str(item[0] if isinstance(item, tuple) else item) for item in found)


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
