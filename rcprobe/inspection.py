"""What would be done with a checkpoint, told from its configuration alone: no weight is read."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rcprobe.adapter import Adapter
from rcprobe.checkpoint import architecture, configuration, raw_config
from rcprobe.errors import AdapterError, UsageError
from rcprobe.loading import candidates, family_of
from rcprobe.model_files import read_as
from rcprobe.plugins import registry
from rcprobe.probing.capture import attention_paths


@dataclass(frozen=True)
class Inspection:
    """What ``load`` and the readings would do with a checkpoint.

    Attributes:
        adapter, why: the adapter that takes it, and by what.
        architecture, objective, attention, shift: as the adapter has it for this checkpoint.
        mask_id: None for a causal model, or where the tokenizer alone knows it.
        layers, score_layers, heads: how many layers there are, and which of them have readable attention scores.
        parameters: how many; ``lora_targets``, ``lora_modules``: the patterns, and how many modules they name.
        against: what won't work, or needs a second look.
    """

    source: str
    adapter: str
    why: str
    architecture: str
    objective: str
    attention: str
    shift: int
    mask_id: int | None
    layers: int
    score_layers: tuple[int, ...]
    heads: int
    parameters: int
    lora_targets: tuple[str, ...]
    lora_modules: int
    against: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        mask = "none" if self.objective == "causal" else "the tokenizer's" if self.mask_id is None else self.mask_id
        rows = {
            "adapter": f"{self.adapter}: {self.why}",
            "runs as": f"{self.architecture}, {self.parameters:,} parameters",
            "asked as": f"{self.objective}, {self.attention} attention, shift {self.shift}, mask {mask}",
            "scores": f"{len(self.score_layers)} of {self.layers} layers, {self.heads} heads each",
            "LoRA": f"{self.lora_modules} modules by {', '.join(self.lora_targets)}"
            if self.lora_targets
            else "no targets named",
        }
        lines = [self.source, *(f"  {name:<9} {text}" for name, text in rows.items())]
        return "\n".join([*lines, *(f"  {'but':<9} {text}" for text in self.against)])


def inspect(source: str, revision: str | None = None, adapter: str | None = None) -> Inspection:
    """Inspect a checkpoint in a folder or on the hub, as the registered ``adapter`` or as the one that takes it.

    Raises ``UsageError``, ``AdapterError`` as ``load`` would.
    """
    if source in registry().names("models") and not Path(source).exists():
        raise UsageError(
            f"{source} is a registered family, not a checkpoint: rcprobe plugins show {source} says what it is; "
            "inspect takes a folder, a GGUF file or a hub id"
        )
    raw = raw_config(source, revision)
    family = family_of(raw, source, adapter)
    config = configuration(family, raw, source)
    with torch.device("meta"):
        model: nn.Module = _built(family, config, source)
    layers = int(getattr(config, "num_hidden_layers", 0))
    paths = attention_paths(model)
    score_layers = tuple(int(found[1]) for found in (re.search(r"\.(\d+)\.", path) for path in paths) if found)
    mask = family.mask_token if family.mask_token is not None else raw.get("mask_token_id")
    return Inspection(
        source=source,
        adapter=family.name,
        why=_why(raw, family, source, adapter),
        architecture=family.architecture.rpartition(":")[2],
        objective=family.objective,
        attention=family.attention,
        shift=family.shift,
        mask_id=None if family.objective == "causal" or mask is None else int(mask),
        layers=layers,
        score_layers=score_layers,
        heads=int(getattr(config, "num_attention_heads", 0)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        lora_targets=family.lora_targets,
        lora_modules=len(family().lora_modules(model)),
        against=tuple(_against(raw, family, config, layers, score_layers)),
    )


def _built(family: type[Adapter], config: Any, source: str) -> nn.Module:
    try:
        return architecture(family)(config)  # type: ignore[no-any-return]
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise AdapterError(
            f"{source}: {family.name}: no {family.architecture} can be built from its config.json "
            f"({type(error).__name__}: {str(error)[:200]}); name another adapter (--adapter), or mend its config(raw)"
        ) from error


def _why(raw: Mapping[str, Any], family: type[Adapter], source: str, adapter: str | None) -> str:
    if adapter is not None:
        return "it is the one named"
    if read_as(Path(source)) is not None:
        return "a run kept these weights under it"
    marks = {name: raw[name] for name in ("is_causal", "mask_token_id") if raw.get(name) is not None}
    said = ", ".join(f"{k} {v!r}" for k, v in {"architectures": raw.get("architectures"), **marks}.items())
    others = [name for name in candidates(raw) if name != family.name]
    before = f"; before {', '.join(others)}" if others else ""
    return f"model_type {raw.get('model_type')!r}, {said}{before}"


def _against(
    raw: Mapping[str, Any], family: type[Adapter], config: Any, layers: int, score_layers: tuple[int, ...]
) -> list[str]:
    found = []
    if raw.get("auto_map"):
        found.append(f"the checkpoint's own code (auto_map) isn't run: {family.architecture} is, in its place")
    if not score_layers:
        found.append("no attention call shows in its code: scores may be unsupported; loading tells")
    elif len(score_layers) < layers:
        other = [n for n in range(layers) if n not in score_layers]
        found.append(f"layers {', '.join(map(str, other))} have no pair scores: they aren't softmax attention")
    kinds = getattr(config, "layer_types", None) or ()
    if "sliding_attention" in kinds:
        found.append(f"{kinds.count('sliding_attention')} layers see a window only: far pairs aren't attendable there")
    if family.ov_circuit is None:
        found.append("storage is undefined: the adapter declares no ov_circuit")
    if family.objective == "masked" and family.shift:
        found.append(f"a target at one of the first {family.shift} positions can't be asked")
    if raw.get("quantization_config"):
        found.append("its weights are quantised: their gradients are left out")
    return found
