"""Low-rank adapters of peft on a loaded model: every one of them, or none."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcprobe.errors import AdapterError, MissingExtraError, UsageError

FILE, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def with_low_rank(model: nn.Module, folder: str | Path) -> nn.Module:
    """The model under the adapters of a folder, trainable; each weight of the folder is used and none made up.

    Raises ``MissingExtraError`` without peft, ``UsageError`` for a folder without safetensors, ``AdapterError`` where
    the adapters were made for modules of other names: peft would leave those out with a warning at most.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise MissingExtraError("putting adapters on a model", "peft", "peft") from error
    from safetensors import safe_open

    path = Path(folder) / FILE
    if not path.is_file():
        raise UsageError(f"{path}: no such file; adapters are read from a local folder, from safetensors alone")
    with safe_open(path, framework="pt") as opened:
        saved = set(opened.keys())
    try:
        with _old_name():
            adapted: nn.Module = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (ValueError, RuntimeError) as error:
        raise AdapterError(f"{folder}: the adapters don't fit this model ({error})") from error
    got = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if got != saved:
        name = sorted(got ^ saved)[0]
        raise AdapterError(
            f"{folder}: it holds {len(saved)} weights of adapters, and the model took {len(got & saved)} of the "
            f"{len(got)} it has places for; e.g. {name}. Were they trained on another layout of this model?"
        )
    return adapted


def new_low_rank(model: nn.Module, modules: Sequence[str], rank: int, alpha: int, seed: int) -> nn.Module:
    """The model, frozen, under fresh adapters on the named linear modules: A drawn from the seed, B zero.

    Raises ``MissingExtraError`` without peft, ``UsageError`` for modules of two kinds.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError("training low-rank adapters", "peft", "peft") from error
    turned = {type(model.get_submodule(name)).__name__ == "Conv1D" for name in modules}
    if len(turned) > 1:
        raise UsageError("targets names linear modules of two kinds (Linear and Conv1D); train one kind at a time")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(modules), fan_in_fan_out=turned == {True})
    cards = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cards), _old_name():
        torch.manual_seed(seed)
        adapted: nn.Module = get_peft_model(model, config)
    return adapted


def has_low_rank(model: nn.Module) -> bool:
    """Whether a model is under adapters of peft."""
    return hasattr(model, "peft_config")


def low_rank_files(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """(configuration, weights) of a model's adapters as peft keeps them, without the place of its base; else None."""
    if not has_low_rank(model):
        return None
    from peft import get_peft_model_state_dict

    (config,) = model.peft_config.values()  # type: ignore[operator]
    settings = {**config.to_dict(), "base_model_name_or_path": None, "inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    return plain, get_peft_model_state_dict(model, save_embedding_layers=False)


def put_low_rank(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put kept weights back into a model's adapters."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, dict(weights))


@contextmanager
def _old_name() -> Iterator[None]:
    """Without the warning that peft 0.21 asks transformers by an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
