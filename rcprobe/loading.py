"""``load``: from a name, a path, a hub id or a module to a verified model."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rcprobe.adapter import Adapter
from rcprobe.checkpoint import DeviceMap, Reading, errors_only, local_folder, raw_config, read_model
from rcprobe.errors import AdapterError, PluginError, UnknownNameError, UsageError
from rcprobe.gguf import SUFFIX, gguf_file, gguf_tokenizer
from rcprobe.loaded import LoadedModel, cast
from rcprobe.low_rank import with_low_rank
from rcprobe.memory import out_of_memory, too_large
from rcprobe.model_files import check_kept, declared, read_as, refuse_another
from rcprobe.plugins import registry
from rcprobe.probing.verify import verify


def load(
    model: str | Path | nn.Module,
    *,
    adapter: type[Adapter] | str | None = None,
    tokenizer: Any = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
    quantization_config: Any = None,
    allow_pickle: bool = False,
    peft: str | Path | None = None,
) -> LoadedModel:
    """Make a model ready for probing, and verify that it behaves as its adapter declares.

    ``model`` is the name of a registered family (built from ``options`` with random weights drawn from ``seed``), a
    folder or hub id with safetensors, a GGUF file, or a module of your own (with ``adapter`` and ``tokenizer``; it is
    used as it is). ``adapter`` is a subclass of ``Adapter`` or a registered name; None finds the one that claims a
    checkpoint. ``dtype`` None keeps the dtype that the weights have. Of checkpoints alone: ``revision`` pins a hub
    id; ``device_map`` places the weights instead of ``device``, and ``quantization_config`` makes them smaller, both
    as transformers takes them; ``allow_pickle`` reads pickled weights where there are no others, tensors and nothing
    else. ``peft`` is a folder of low-rank adapters to put on top. Raises ``UnknownNameError``, ``AdapterError``,
    ``VerificationError``, ``UsageError``.
    """
    if not isinstance(model, nn.Module) and not str(model).strip():
        raise UsageError("the model has an empty name; give a registered name, a folder or a hub id")
    wanted = _dtype(dtype)
    how = Reading(revision, device_map, quantization_config, allow_pickle)
    named = not isinstance(model, nn.Module) and str(model) in registry().names("models")
    if (isinstance(model, nn.Module) or named) and how != Reading():
        raise UsageError(
            "revision=, device_map=, quantization_config= and allow_pickle= (--revision, --allow-pickle) are for "
            "checkpoints: a folder or a hub id"
        )
    if named and adapter is not None:
        raise UsageError(
            f"an adapter (adapter=, --adapter) is for a checkpoint or a module of your own; {model} is a family itself"
        )
    try:
        if isinstance(model, nn.Module):
            family = registry().checked("models", adapter, Adapter) if isinstance(adapter, str) else adapter
            loaded = _wrap(model, family, tokenizer)
        elif named:
            loaded = _build(registry().checked("models", str(model), Adapter), dict(options or {}), seed, tokenizer)
        elif Path(model).exists() or "/" in str(model) or str(model).endswith(SUFFIX):
            loaded = _from_checkpoint(str(model), adapter, tokenizer, wanted, _device(device), how)
        else:
            raise UnknownNameError("model (or folder, or hub id)", str(model), registry().names("models"))
        placed = device_map is not None or getattr(loaded.model, "hf_quantizer", None) is not None
        if not placed and (not isinstance(model, nn.Module) or device != "cpu" or dtype is not None):
            cast(loaded.model, _device(device), wanted)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise too_large(str(model) if not isinstance(model, nn.Module) else type(model).__name__) from error
    if peft is not None:
        if loaded.factory is not None:
            plain = loaded.factory
            loaded.factory = lambda seed: with_low_rank(plain(seed), peft)
        loaded.model = with_low_rank(loaded.model, peft)
        loaded.told["peft"] = str(peft)
        if not isinstance(adapter, type):
            check_kept(Path(peft), loaded)
    if isinstance(adapter, str):
        loaded.told["adapter"] = adapter
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


def _from_checkpoint(
    source: str,
    adapter: type[Adapter] | str | None,
    tokenizer: Any,
    dtype: torch.dtype | None,
    device: torch.device,
    how: Reading,
) -> LoadedModel:
    raw = raw_config(source, how.revision)
    family = family_of(raw, source, adapter)
    at, told = local_folder(source, how), how.told()
    if how.quantization_config is not None and how.device_map is None:
        how = replace(how, device_map={"": str(device)})  # quantised weights can't be moved later
    model = read_model(at, family, raw, dtype, how)
    if at != gguf_file(source) and at != Path(source):  # the hub client names a snapshot's folder by its commit
        model.config._commit_hash = at.name  # type: ignore[union-attr]
    loaded = LoadedModel(model, family(), tokenizer or _tokenizer(family, at), source, told=told)
    if not isinstance(adapter, type):
        check_kept(at, loaded)
    return loaded


def _tokenizer(family: type[Adapter], at: Path) -> Any:
    try:
        with errors_only():
            return gguf_tokenizer(at) if at.is_file() else family.tokenizer(at)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(
            f"{at}: {family.name}: no tokenizer could be read ({str(error).splitlines()[0]}); put its "
            "tokenizer.json there, or pass tokenizer= in Python"
        ) from error


def family_of(raw: Mapping[str, Any], source: str, adapter: type[Adapter] | str | None = None) -> type[Adapter]:
    """The family of a checkpoint as its configuration resolves it: the one that is named, or that it was kept under, or
    that claims it.

    Raises ``AdapterError`` where there is none, several, one that can't read the configuration, or one that would read
    it otherwise than the run did that kept it; a class of the caller's own is trusted.
    """
    kept = read_as(Path(source))
    if isinstance(adapter, type):
        return _resolved(adapter, raw, source)
    name = adapter or (kept or {}).get("adapter")
    if name is None:
        return _resolved(adapter_for(raw, source), raw, source)
    if adapter is None and name not in registry().names("models"):
        raise AdapterError(
            f"{source}: a run kept these weights under the adapter {name!r}, which no plugin registers here; install "
            "its plugin, or give the class itself (adapter=)"
        )
    family = _resolved(registry().checked("models", name, Adapter), raw, source)
    if kept is not None:
        refuse_another(kept, declared(family), source)
    return family


def _resolved(family: type[Adapter], raw: Mapping[str, Any], source: str) -> type[Adapter]:
    try:
        return family.resolve(raw)
    except AdapterError:
        raise
    except Exception as error:
        raise AdapterError(
            f"{source}: {family.name} can't read this config.json ({type(error).__name__}: {str(error)[:200]}); name "
            "another adapter (adapter=, --adapter), or correct its resolve(raw)"
        ) from error


def adapter_for(raw: Mapping[str, Any], source: str) -> type[Adapter]:
    """The one registered adapter that takes a raw configuration. Raises ``AdapterError`` for none or several."""
    fitting = candidates(raw)
    least = min((family.generality for family in fitting.values()), default=0)
    chosen = {name: family for name, family in fitting.items() if family.generality == least}
    if len(chosen) != 1:
        what = f"several adapters claim it ({', '.join(chosen)})" if chosen else "no installed adapter takes it"
        own = "; its own code (auto_map) is never run" if raw.get("auto_map") and not chosen else ""
        raise AdapterError(
            f"{source} (model_type {raw.get('model_type')!r}, architectures {raw.get('architectures')!r}): {what}{own}"
            "; name one (adapter=, --adapter), or write one (docs/add-a-model.md)"
        )
    return next(iter(chosen.values()))


def candidates(raw: Mapping[str, Any]) -> dict[str, type[Adapter]]:
    """Every registered adapter that claims a raw configuration, by name."""
    families: dict[str, type[Adapter]] = {}
    for name in registry().names("models"):
        try:
            families[name] = registry().checked("models", name, Adapter)
        except PluginError as error:  # somebody else's broken family is no reason not to load this model
            registry().blame(registry().entry("models", name).origin, str(error))
    return {name: family for name, family in families.items() if family.matches(raw)}


def _device(name: str) -> torch.device:
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # each process started by torchrun has its own card
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is none that torch knows; use cpu, cuda, cuda:1 or mps") from error
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
