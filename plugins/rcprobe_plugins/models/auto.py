"""Any other causal or masked language model of transformers, taken as its configuration describes it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rcprobe.adapter import Adapter
from rcprobe_plugins.models.stock import (
    ANY_GROUPS,
    ANY_TARGETS,
    TINY_DECODER,
    architecture_of,
    masked_name,
    stock_causal,
)


class Auto(Adapter):
    """What no other adapter claims: causal or masked by its stock architecture, and then as the checks confirm it."""

    name = "auto"
    objective, attention, shift = "causal", "causal", 1
    architecture = "AutoModelForCausalLM"
    groups = ANY_GROUPS
    lora_targets = ANY_TARGETS
    generality = 2
    tiny_config: ClassVar[Mapping[str, Any]] = {
        **TINY_DECODER,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
    }

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """A stock architecture for causal or masked language models that brings no code of its own."""
        return stock_causal(config) or masked_name(config)

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type["Auto"]:
        """Objective, attention and shift by what the architecture is for; layers of other kinds make a hybrid."""
        found: dict[str, Any] = {"architecture": architecture_of(raw)}
        if masked_name(raw):
            return cls.variant({**found, "objective": "masked", "attention": "full", "shift": 0})
        kinds = getattr(cls.config(raw), "layer_types", None) or ()
        if any(kind == "linear_attention" or "attention" not in kind for kind in kinds):
            found["attention"] = "hybrid"
        return cls.variant(found)
