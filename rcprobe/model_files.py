"""Trained weights in a folder that ``load`` takes, and back."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError, RunError
from rcprobe.files import TEMPORARY, make_folder, unwritable, write_bytes, write_json
from rcprobe.loaded import LoadedModel
from rcprobe.low_rank import FILE as ADAPTERS
from rcprobe.low_rank import SETTINGS as ADAPTER_SETTINGS
from rcprobe.low_rank import has_low_rank, low_rank_files, put_low_rank
from rcprobe.step_files import write_safetensors

WEIGHTS, READ_AS = "model.safetensors", "rcprobe.json"


def save_model(m: LoadedModel, folder: Path) -> None:
    """Write the weights in safetensors, each file whole; of a transformers model its configuration and tokenizer too.

    Of a model under low-rank adapters these alone, as ``load(…, peft=folder)`` takes them. Raises ``RunError``.
    """
    from safetensors.torch import save_file

    make_folder(folder)
    write_json(folder / READ_AS, {**declared(type(m.adapter)), "mask_id": m.mask_id})
    adapters = low_rank_files(m.model)
    if adapters is not None:
        settings, weights = adapters
        small = {name: tensor.contiguous() for name, tensor in weights.items()}
        write_safetensors(folder / ADAPTERS, lambda path: save_file(small, path, metadata={"format": "pt"}))
        write_json(folder / ADAPTER_SETTINGS, settings)
        return
    tensors = _once(m.model.state_dict())
    write_safetensors(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    to_dict = getattr(m.config, "to_diff_dict", None)
    if to_dict is not None:
        write_json(folder / "config.json", {**to_dict(), "architectures": [type(m.model).__name__]})
    if hasattr(m.tokenizer, "save_pretrained"):
        _save_tokenizer(m.tokenizer, folder)


def declared(family: type[Adapter]) -> dict[str, Any]:
    """How a family reads its models, by which weights that are kept are told from those of another."""
    return {
        "adapter": family.name,
        "objective": getattr(family, "objective", None),
        "attention": getattr(family, "attention", None),
        "shift": family.shift,
        "mask_in_softmax": family.mask_in_softmax,
    }


def read_as(folder: Path) -> dict[str, Any] | None:
    """What was ``declared`` of weights that a run kept in a folder, and their mask; None for a folder from elsewhere.

    Raises ``RunError`` for a file that can't be read.
    """
    path = folder / READ_AS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in (*declared(Adapter), "mask_id")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: can't be read ({type(error).__name__}: {error})") from error


def check_kept(folder: Path, m: LoadedModel) -> None:
    """Raise ``AdapterError`` if a run kept the weights in a folder under another reading than the model's."""
    kept = read_as(folder)
    if kept is not None:
        refuse_another(kept, {**declared(type(m.adapter)), "mask_id": m.mask_id}, str(folder))


def refuse_another(kept: Mapping[str, Any], now: Mapping[str, Any], source: str) -> None:
    """Raise ``AdapterError`` for the first thing that differs between two ways of reading weights."""
    for what, value in now.items():
        if kept[what] != value:
            raise AdapterError(
                f"{source}: a run kept these weights with {what} {kept[what]!r}, and {now['adapter']} would read them "
                f"with {value!r}; only the adapter that they were kept under reads them as they were trained"
            )


def load_model(m: LoadedModel, folder: Path, fingerprint: str) -> None:
    """Put kept weights back into the model. Raises ``RunError`` if they aren't those of the fingerprint."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    adapters = has_low_rank(m.model)
    path = folder / (ADAPTERS if adapters else WEIGHTS)
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: can't be read ({error})") from error
    if adapters:
        put_low_rank(m.model, found)
    else:
        m.model.load_state_dict(found, strict=False)  # of tied weights the file holds one; the fingerprint tells all
    if m.fingerprint() != fingerprint:
        raise RunError(f"{path}: isn't what was probed; its fingerprint differs")


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors takes: tied ones once, and none that shares another's memory."""
    kept: dict[str, Tensor] = {}
    names: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    storages: set[int] = set()
    for name, tensor in state.items():
        same = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        storage = tensor.untyped_storage().data_ptr()
        if same not in names:
            kept[name] = tensor.clone().contiguous() if storage in storages else tensor.contiguous()
        names.add(same)
        storages.add(storage)
    return kept


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    temporary = folder / f"tokenizer.{os.getpid()}{TEMPORARY}"
    try:
        tokenizer.save_pretrained(temporary)
        for path in temporary.iterdir():
            write_bytes(folder / path.name, path.read_bytes())
    except OSError as error:
        raise RunError(unwritable(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
