"""The files that a checkpoint's weights lie in, looked at before they are read."""

import json
from pathlib import Path

from rcprobe.errors import AdapterError
from rcprobe.gguf import gguf_file

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
PICKLED_INDEX, PICKLED = "pytorch_model.bin.index.json", "pytorch_model.bin"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_weights(at: Path, allow_pickle: bool = False) -> list[Path]:
    """The files of a checkpoint's weights, each safetensors file with a whole header.

    Safetensors come before what is pickled, which is taken only where ``allow_pickle`` says so. Raises
    ``AdapterError`` naming the file at fault.
    """
    found = gguf_file(at)
    if found is not None:
        return [found]
    files = _listed(at, INDEX, WEIGHTS) or (_listed(at, PICKLED_INDEX, PICKLED) if allow_pickle else [])
    if not files:
        raise AdapterError(f"{at}: no {WEIGHTS} and no {INDEX}{_pickles(at, allow_pickle)}")
    for path in files:
        if not path.is_file():
            raise AdapterError(f"{path}: named in the index and not there; the download isn't complete")
        if path.suffix == ".safetensors":
            _check_header(path)
    return files


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path}: the file is corrupt or cut short ({error}); download it again") from error


def _listed(folder: Path, index_name: str, single: str) -> list[Path]:
    """The files that an index names, or the only one; none if there is neither."""
    index = folder / index_name
    if not index.is_file():
        return [folder / single] if (folder / single).is_file() else []
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{index}: no index of weights ({type(error).__name__}: {error})") from error


def _pickles(folder: Path, allowed: bool) -> str:
    """What is said of pickled weights where there are no others."""
    names = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    convert = "convert a copy you trust with save_pretrained, or take a revision with safetensors"
    if not names:
        return f". {convert.capitalize()}"
    if allowed:
        return f", and of pickled weights only {names[0]}; allowed are {PICKLED} and its shards. {convert.capitalize()}"
    return (
        f", only {names[0]}: pickled weights can run code as they load and aren't read. Allow it for weights you trust "
        f"(--allow-pickle, or allow_pickle=True; tensors alone are read then), {convert}"
    )
