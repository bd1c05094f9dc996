"""Qwen 2.5, 3 and 3.5, whose layers are softmax attention in part only."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rcprobe.adapter import Adapter
from rcprobe_plugins.models.stock import (
    DECODER_CIRCUIT,
    DECODER_GROUPS,
    DECODER_TARGETS,
    TINY_DECODER,
    architecture_of,
    stock_causal,
)

STOCK = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3_5ForCausalLM")
WITH_IMAGES = "Qwen3_5ForConditionalGeneration"  # read as the text model inside


class Qwen(Adapter):
    """Qwen: causal, token i predicted at position i − 1; 3.5 is a hybrid."""

    name = "qwen"
    objective, attention, shift = "causal", "causal", 1
    architecture = "Qwen2ForCausalLM"
    groups = DECODER_GROUPS
    ov_circuit = DECODER_CIRCUIT
    lora_targets = DECODER_TARGETS
    tiny_config: ClassVar[Mapping[str, Any]] = {
        **TINY_DECODER,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 4,
    }

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """A stock causal Qwen, or the released Qwen3.5, whose text model stands inside one that also sees."""
        found = architecture_of(config)
        inside = found == WITH_IMAGES and "text_config" in config and not config.get("auto_map")
        return inside or (found in STOCK and stock_causal(config))

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type["Qwen"]:
        """The release's architecture; a hybrid where some layers are linear attention."""
        stock = "Qwen3_5ForCausalLM" if architecture_of(raw) == WITH_IMAGES else architecture_of(raw)
        if "linear_attention" not in (cls.config(raw).layer_types or ()):
            return cls.variant({"architecture": stock})
        return cls.variant(
            {
                "architecture": stock,
                "attention": "hybrid",
                "groups": {r"\.linear_attn\.": "linear attention", **DECODER_GROUPS},
                "ov_circuit": None,  # a gate stands between value and output, and some layers have no value
                "lora_targets": (*DECODER_TARGETS, r"\.linear_attn\.(in_proj_\w+|out_proj)$"),
            }
        )

    @classmethod
    def config(cls, raw: Mapping[str, Any]) -> Any:
        """The text model's configuration."""
        inside = raw.get("text_config")
        if inside is None:
            return super().config(raw)
        tied = inside.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))
        return super().config({**inside, "model_type": "qwen3_5_text", "tie_word_embeddings": tied})
