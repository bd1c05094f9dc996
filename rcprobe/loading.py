"""``load``: from a name, a path, a hub id or a module to a verified model."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rcprobe.adapter import Adapter
from rcprobe.errors import AdapterError, PluginError, UnknownNameError, UsageError
from rcprobe.loaded import LoadedModel
from rcprobe.plugins import registry
from rcprobe.probing.verify import verify


def load(
    model: str | Path | nn.Module,
    *,
    adapter: type[Adapter] | None = None,
    tokenizer: Any = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> LoadedModel:
    """Make a model ready for probing, and verify that it behaves as its adapter declares.

    ``model`` is the name of a registered family (built from ``options`` with random weights drawn from ``seed``), a
    folder or hub id with safetensors, or a module of your own (with ``adapter`` and ``tokenizer``; it is used as it
    is). Raises ``UnknownNameError``, ``AdapterError``, ``VerificationError``, ``UsageError``.
    """
    if not isinstance(model, nn.Module) and not str(model).strip():
        raise UsageError("the model has an empty name; give a registered name, a folder or a hub id")
    if isinstance(model, nn.Module):
        loaded = _wrap(model, adapter, tokenizer)
    elif str(model) in registry().names("models"):
        loaded = _build(registry().checked("models", str(model), Adapter), dict(options or {}), seed, tokenizer)
    elif Path(model).is_dir() or "/" in str(model):
        loaded = _from_checkpoint(str(model), adapter, tokenizer)
    else:
        raise UnknownNameError("model (or folder, or hub id)", str(model), registry().names("models"))
    if not isinstance(model, nn.Module) or device != "cpu" or dtype is not None:
        loaded.model.to(device=_device(device), dtype=_dtype(dtype))
    loaded.model.eval()
    verify(loaded)
    return loaded


def _wrap(model: nn.Module, adapter: type[Adapter] | None, tokenizer: Any) -> LoadedModel:
    if adapter is None or tokenizer is None:
        raise UsageError("a module of your own needs adapter= (a subclass of rcprobe.Adapter) and tokenizer=")
    return LoadedModel(model, adapter(), tokenizer, type(model).__name__)


def _build(adapter: type[Adapter], options: dict[str, Any], seed: int, tokenizer: Any) -> LoadedModel:
    def factory(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return adapter.build(options)

    return LoadedModel(
        factory(seed),
        adapter(),
        tokenizer or adapter.default_tokenizer(options),
        adapter.name,
        options,
        factory,
    )


def _from_checkpoint(source: str, adapter: type[Adapter] | None, tokenizer: Any) -> LoadedModel:
    from transformers import AutoTokenizer

    raw = _raw_config(source)
    family = adapter or adapter_for(raw, source)
    architecture = _architecture(family)
    try:
        model, info = architecture.from_pretrained(
            source,
            config=family.config(raw),
            key_mapping=dict(family.keys) or None,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except OSError as error:
        raise AdapterError(f"{source}: no safetensors weights could be read ({error})") from error
    wrong = {
        kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(kind)
    }
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise AdapterError(
            f"{source}: {family.name} doesn't fit this checkpoint: {len(keys)} {kind.replace('_', ' ')}, "
            f"e.g. {keys[0]}; nothing was loaded in their place"
        )
    return LoadedModel(model, family(), tokenizer or AutoTokenizer.from_pretrained(source), source)


def adapter_for(raw: Mapping[str, Any], source: str) -> type[Adapter]:
    """The one registered adapter that takes a raw configuration. Raises ``AdapterError`` for none or several."""
    families = {}
    for name in registry().names("models"):
        try:
            families[name] = registry().checked("models", name, Adapter)
        except PluginError as error:  # somebody else's broken family is no reason not to load this model
            registry().blame(registry().entry("models", name).origin, str(error))
    fitting = {name: family for name, family in families.items() if family.matches(raw)}
    if len(fitting) != 1:
        what = f"several adapters claim it ({', '.join(fitting)})" if fitting else "no installed adapter takes it"
        raise AdapterError(
            f"{source} (model_type {raw.get('model_type')!r}, architectures {raw.get('architectures')!r}): {what}; "
            "name one with adapter=, or write one (docs/add-a-model.md)"
        )
    found: type[Adapter] = next(iter(fitting.values()))
    return found


def _raw_config(source: str) -> dict[str, Any]:
    path = Path(source) / "config.json"
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(source, "config.json"))
        except Exception as error:  # the hub client raises many kinds, each meaning: not to be had
            raise UsageError(
                f"{source}: no such folder, and the hub gave no config.json ({type(error).__name__})"
            ) from error
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: can't be read as a model's configuration ({error})") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: a model's configuration is an object with names, not a {type(raw).__name__}")
    return raw


def _architecture(family: type[Adapter]) -> Any:
    module, colon, name = family.architecture.partition(":")
    if colon:
        return getattr(importlib.import_module(module), name)
    return getattr(importlib.import_module("transformers"), family.architecture)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:
        raise UsageError(
            f"device {name!r} can't be used on this machine; use --device cpu ({str(error).splitlines()[0]})"
        ) from error
    return device


def _dtype(name: str | None) -> torch.dtype | None:
    known = {
        "float32": torch.float32,
        "float64": torch.float64,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if name is not None and name not in known:
        raise UsageError(f"dtype {name!r}; use one of {', '.join(known)}")
    return known.get(name) if name else None
