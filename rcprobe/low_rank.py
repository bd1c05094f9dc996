"""Low-rank adapters of peft on a loaded model: every one of them, or none."""

from pathlib import Path

from torch import nn

from rcprobe.errors import AdapterError, MissingExtraError, UsageError

FILE = "adapter_model.safetensors"


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
        adapted: nn.Module = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (ValueError, RuntimeError) as error:
        raise AdapterError(f"{folder}: the adapters don't fit this model ({error})") from error
    got = set(get_peft_model_state_dict(adapted))
    if got != saved:
        name = sorted(got ^ saved)[0]
        raise AdapterError(
            f"{folder}: it holds {len(saved)} weights of adapters, and the model took {len(got & saved)} of the "
            f"{len(got)} it has places for; e.g. {name}. Were they trained on another layout of this model?"
        )
    return adapted
