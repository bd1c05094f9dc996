"""Masked language models of transformers: BERT, ModernBERT, and whatever calls itself ForMaskedLM."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rcprobe.adapter import Adapter
from rcprobe_plugins.models.stock import ANY_GROUPS, ANY_TARGETS, architecture_of, masked_name


class MaskedLm(Adapter):
    """A masked language model: full attention, unshifted, the mask its tokenizer's."""

    name = "masked_lm"
    objective, attention, shift = "masked", "full", 0
    architecture = "BertForMaskedLM"
    groups = ANY_GROUPS
    lora_targets = ANY_TARGETS
    unused = (r"(^|\.)pooler\.", r"^cls\.seq_relationship\.", r"\.position_ids$")  # of sentence pairs, and a table
    generality = 1
    tiny_config: ClassVar[Mapping[str, Any]] = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """A stock architecture of the name ``…ForMaskedLM``."""
        return masked_name(config) and architecture_of(config).endswith("ForMaskedLM")

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type["MaskedLm"]:
        """This family with the checkpoint's architecture."""
        return cls.variant({"architecture": architecture_of(raw)})
