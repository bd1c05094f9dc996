"""A checkpoint in a folder or on the hub: its configuration, its weights, and why either can't be used."""

import importlib.util
import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError, MissingExtraError, UsageError
from rcprobe.gguf import SUFFIX, forget_gguf, gguf_config, gguf_file
from rcprobe.hub import from_hub, reachable
from rcprobe.memory import out_of_memory
from rcprobe.weights import check_weights

WANTED = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja"]
PICKLED = "pytorch_model*.bin"
WRONG = {
    "missing_keys": "missing from the checkpoint",
    "unexpected_keys": "not of this architecture",
    "mismatched_keys": "of another shape",
    "error_msgs": "not readable",
}
EXTRAS = {"gguf": "gguf", "bitsandbytes": "quantized", "torchao": "quantized", "accelerate": "accelerate"}
DeviceMap = str | Mapping[str, int | str]


@dataclass(frozen=True)
class Reading:
    """How a checkpoint is read: what ``load`` was told of it, by the same names."""

    revision: str | None = None
    device_map: DeviceMap | None = None
    quantization_config: Any = None
    allow_pickle: bool = False

    def told(self) -> dict[str, Any]:
        """What was asked for, as a manifest holds it."""
        quantized = self.quantization_config
        given = {
            "revision": self.revision,
            "device_map": self.device_map,
            "quantization_config": quantized.to_dict() if hasattr(quantized, "to_dict") else quantized,
            "allow_pickle": self.allow_pickle,
        }
        return {name: value for name, value in given.items() if value}


def raw_config(source: str, revision: str | None = None) -> dict[str, Any]:
    """A checkpoint's ``config.json`` as it is written, or what a GGUF file says in its place.

    Raises ``UsageError`` where there is none to read.
    """
    check_exists(source)
    found = gguf_file(source)
    if found is not None:
        return gguf_config(found)
    folder = Path(source)
    path = folder / "config.json" if folder.is_dir() else _config_from_hub(source, revision)
    if folder.is_dir() and not path.exists():
        raise UsageError(f"{source}: holds no config.json; name the folder of a checkpoint, a GGUF file or a hub id")
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: can't be read as a model's configuration ({error})") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: a model's configuration is an object with names, not a {type(raw).__name__}")
    return raw


def check_exists(source: str) -> None:
    """Raise ``UsageError`` for a path that isn't there and that no hub id can be (``owner/name``)."""
    is_path = source.startswith(("/", ".", "~", "\\")) or source.count("/") > 1 or source.endswith(SUFFIX)
    if is_path and not Path(source).is_dir() and gguf_file(source) is None:
        what = "a file, where a folder or a .gguf file was expected" if Path(source).is_file() else "no such folder"
        raise UsageError(f"{source}: {what}; give the folder that holds config.json and the weights, or a hub id")


def local_folder(source: str, how: Reading) -> Path:
    """The folder of a checkpoint, or a GGUF file; brought from the hub first if ``source`` is neither."""
    found = gguf_file(source)
    if found is not None or Path(source).is_dir():
        if how.revision is not None:
            raise UsageError(f"{source}: a folder has no revisions; leave the revision out (revision=, --revision)")
        return found or Path(source)
    from huggingface_hub import snapshot_download

    return Path(
        from_hub(
            source,
            "weights",
            lambda: snapshot_download(
                source,
                revision=how.revision,
                allow_patterns=[*WANTED, PICKLED] if how.allow_pickle else WANTED,
                ignore_patterns=["*/*"],
                local_files_only=not reachable(),
            ),
        )
    )


def read_model(
    at: Path, family: type[Adapter], raw: Mapping[str, Any], dtype: torch.dtype | None, how: Reading
) -> nn.Module:
    """The family's architecture with the weights of a folder or file, each of them used and none made up.

    ``dtype`` None takes the checkpoint's. Raises ``AdapterError`` for weights that are missing, left over, of another
    shape, corrupt, or pickled and not allowed.
    """
    files = check_weights(at, how.allow_pickle)
    where = {"gguf_file": at.name} if files == [at] else {"use_safetensors": files[0].suffix == ".safetensors"}
    config = configuration(family, raw, str(at))
    try:
        with errors_only():
            model, info = architecture(family).from_pretrained(
                at.parent if files == [at] else at,
                config=config,
                key_mapping=dict(family.keys) or None,
                dtype=dtype or "auto",
                device_map=how.device_map,
                quantization_config=how.quantization_config,
                weights_only=True,  # of a pickle, tensors alone
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that they are listed, below, with the others
                output_loading_info=True,
                **where,
            )
    except ImportError as error:
        raise _needs(at, error) or AdapterError(f"{at}: reading it needs what isn't installed ({error})") from error
    except (
        OSError, RuntimeError, ValueError, AttributeError, TypeError, ArithmeticError, pickle.UnpicklingError
    ) as error:  # fmt: skip
        if out_of_memory(error):
            raise
        needed = _needs(at, error)
        if needed is not None:
            raise needed from error
        raise AdapterError(f"{at}: {family.name}: the weights can't be loaded ({error})") from error
    wrong = {kind: _names(info[kind]) for kind in WRONG if info.get(kind)}
    wrong["unexpected_keys"] = [
        name
        for name in wrong.get("unexpected_keys", ())
        if not any(re.search(unused, name) for unused in family.unused)
    ]
    if any(wrong.values()):
        listed = "; ".join(f"{len(names)} {WRONG[kind]} ({_listed(names)})" for kind, names in wrong.items() if names)
        raise AdapterError(
            f"{at}: {family.name} doesn't fit this checkpoint; of its weights {listed}; nothing was loaded in "
            "their place. Correct the adapter's keys (names), or its config() (shapes, number of layers): "
            "docs/add-a-model.md"
        )
    loaded: nn.Module = model
    if files == [at]:
        forget_gguf(loaded)
    if family.keys:
        # save_pretrained would write the weights by their old names beside the stock configuration of the new ones,
        # and whoever reads that without the adapter gets random weights
        loaded._weight_conversions = None  # type: ignore[assignment]
    return loaded


def _needs(at: Path, error: Exception) -> MissingExtraError | None:
    """What is to be installed, where transformers says that something isn't."""
    said = str(error).lower()
    wanted = isinstance(error, ImportError) or "install" in said or "require" in said
    for package, extra in EXTRAS.items():
        if package in said and wanted and importlib.util.find_spec(package) is None:
            return MissingExtraError(f"{at}: reading it so", package, extra)
    return None


def architecture(family: type[Adapter]) -> Any:
    """The transformers class that runs a family."""
    module, colon, name = family.architecture.partition(":")
    try:
        return getattr(importlib.import_module(module if colon else "transformers"), name if colon else module)
    except (AttributeError, ImportError) as error:
        raise AdapterError(
            f"{family.name}: architecture {family.architecture!r} can't be found ({error}); name a class of "
            'transformers, or "module:class"'
        ) from error


def configuration(family: type[Adapter], raw: Mapping[str, Any], source: str) -> Any:
    """The transformers configuration that a family makes of a raw one. Raises ``AdapterError`` where it can't."""
    try:
        return family.config(raw)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        said = str(error).split(". ")[0].strip()[:300]
        raise AdapterError(
            f"{source}: {family.name}: no configuration could be made of its config.json ({said}); name another "
            "adapter (adapter=, --adapter), or override config(raw), which turns it into that of the architecture"
        ) from error


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


def _config_from_hub(source: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        from_hub(
            source,
            "config.json",
            lambda: hf_hub_download(source, "config.json", revision=revision, local_files_only=not reachable()),
        )
    )


def _names(found: Any) -> list[str]:
    return sorted(_shapes(*item) if isinstance(item, tuple) else str(item) for item in found)


def _shapes(name: str, there: Sequence[int], here: Sequence[int]) -> str:
    return f"{name} {list(there)}, where the configuration says {list(here)}"


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
